"""Where settings come from: whom the study that chose them has seen, and what code they are of.

best_hyperparameters.json carries the patients under a key of its own, settings that a run gives to
its processes the code; settings written by hand carry neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.ids import normalised_id
from trainer.config.code_identity import CODE, require_code, require_same

PROVENANCE = "provenance"
SEARCHED = "searched"  # the reason in no_claim where searched patients are scored


def split_provenance(settings: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Settings without their provenance, and the ids of the patients on whom they were searched.

    Args:
      settings: as JSON.

    Returns:
      The settings, and the ids as `normalised_id` has them; none without a provenance.

    Raises:
      UsageError: a provenance that names neither patients nor code.
    """
    rest = {name: value for name, value in settings.items() if name != PROVENANCE}
    if PROVENANCE not in settings:
        return rest, frozenset()
    found = settings[PROVENANCE]
    patients = found.get("patients") if isinstance(found, Mapping) else None
    if patients is None and isinstance(found, Mapping) and CODE in found:
        return rest, frozenset()
    named = isinstance(patients, list) and all(isinstance(name, str) for name in patients)
    if not (patients and named):
        raise UsageError(f"{PROVENANCE}: an object with the list of its patients is needed")
    return rest, frozenset(map(normalised_id, patients))


def require_same_code(settings: Mapping[str, Any], code: Sequence[Mapping[str, Any]]) -> None:
    """Refuses other code than the process that wrote the settings has told them of.

    Args:
      settings: as JSON, with their provenance.
      code: identities of what this process has loaded.

    Raises:
      UsageError: what is told is no list of identities.
      ContractError: a function differs.
    """
    found = settings.get(PROVENANCE, {})
    if isinstance(found, Mapping) and CODE in found:
        try:
            require_code(found[CODE], where=CODE)
        except ContractError as error:
            raise UsageError(f"{PROVENANCE}: {error}") from error
        require_same(found[CODE], code)
