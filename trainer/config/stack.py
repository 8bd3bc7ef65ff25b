"""Which TensorFlow trains: what was begun with one is not gone on with by another.

Either would train the rest as well, but for rounding. The whole could be repeated with neither, and
scores on permuted labels would be of another recipe than the run's. What is finished is read with
any.

    {"tensorflow": "2.21.0"}    in a run's config.json and a study's study.json

Versions before 0.9 knew TensorFlow 2.17 alone and did not note it; what is begun with it still does
not, and so has the bytes that it always had.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from beam_jobs.common.contract_json import ContractError, shown

TENSORFLOW = "tensorflow"
_NOT_NOTED = "2.17"
_VERSION = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}(?![0-9])")


def tensorflow_version() -> str:
    """The version of the TensorFlow that is installed; whose distribution may be a nightly one's.

    Raises:
      PackageNotFoundError: there is none.
    """
    try:
        return importlib.metadata.version(TENSORFLOW)
    except importlib.metadata.PackageNotFoundError:
        named = importlib.metadata.packages_distributions().get(TENSORFLOW)
        if not named:
            raise
        return importlib.metadata.version(named[0])


def noted_stack() -> dict[str, str]:
    """What config.json or study.json says of this TensorFlow; nothing of 2.17."""
    here = tensorflow_version()
    return {} if _series(here) == _NOT_NOTED else {TENSORFLOW: here}


def require_same_stack(found: Mapping[str, Any], begun: str, *, otherwise: str) -> None:
    """Refuses to go on with what another TensorFlow has begun; its patch releases are the same.

    Args:
      found: has the version, where it was noted.
      begun: what was begun, with its place, for the message.
      otherwise: what else one can do, for the message.

    Raises:
      ContractError: names both versions.
    """
    there, here = found.get(TENSORFLOW, _NOT_NOTED), tensorflow_version()
    if not isinstance(there, str) or not _VERSION.match(there):
        raise ContractError(f"{begun}: {TENSORFLOW} {shown(there)}: a version required")
    if _series(there) != _series(here):
        raise ContractError(
            f"{begun} was begun with TensorFlow {_series(there)}, this is {_series(here)}: go on "
            f"in an environment with {_series(there)}, or {otherwise}"
        )


def _series(version: str) -> str:
    """Of 2.21.0 and of 2.21.0.dev1: 2.21."""
    found = _VERSION.match(version)
    return version if found is None else found[0]
