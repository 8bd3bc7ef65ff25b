"""Where settings come from: whom the study that chose them has seen.

best_hyperparameters.json carries it under a key of its own; settings written by hand carry none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.ids import normalised_id

PROVENANCE = "provenance"
SEARCHED = "searched"  # the reason in no_claim where searched patients are scored


def split_provenance(settings: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Settings without their provenance, and the ids of the patients on whom they were searched.

    Args:
      settings: as JSON.

    Returns:
      The settings, and the ids as `normalised_id` has them; none without a provenance.

    Raises:
      UsageError: a provenance that does not name its patients.
    """
    rest = {name: value for name, value in settings.items() if name != PROVENANCE}
    if PROVENANCE not in settings:
        return rest, frozenset()
    found = settings[PROVENANCE]
    patients = found.get("patients") if isinstance(found, Mapping) else None
    named = isinstance(patients, list) and all(isinstance(name, str) for name in patients)
    if not (patients and named):
        raise UsageError(f"{PROVENANCE}: an object with the list of its patients is needed")
    return rest, frozenset(map(normalised_id, patients))
