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
from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from beam_jobs.common.contract_json import ContractError, shown

TENSORFLOW = "tensorflow"
_NOT_NOTED = "2.17"


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
    noted = found.get(TENSORFLOW, _NOT_NOTED)
    try:
        there, here = _series(str(noted)), _series(tensorflow_version())
    except InvalidVersion as error:
        raise ContractError(f"{begun}: {TENSORFLOW} {shown(noted)}: a version required") from error
    if there != here:
        raise ContractError(
            f"{begun} was begun with TensorFlow {there}, this is {here}: go on in an environment "
            f"with {there}, or {otherwise}"
        )


def _series(version: str) -> str:
    """Of 2.21.0 and of 2.21.0.dev1: 2.21."""
    known = Version(version)
    return f"{known.major}.{known.minor}"
