"""The files that a run's networks start from, and what tells one state of them from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.core.manifest import digest
from trainer.config.network import START_FILES, NetworkConfig

WEIGHTS = "weights"


def start_files(
    network: NetworkConfig, known: Sequence[Mapping[str, str]] = ()
) -> list[dict[str, str]]:
    """Setting, name and sha256 of each file of weights that a network starts from.

    Args:
      network: which names them.
      known: of a finished run, which is read where its files are gone.

    Raises:
      UsageError: a file is not there, and not known.
      CommandError: a store fails.
    """
    found = []
    for setting in START_FILES:
        name = getattr(network, setting)
        if name is None:
            continue
        there = [dict(one) for one in known if one["setting"] == setting and one["file"] == name]
        if there and files.stat(name) is None:
            found += there
            continue
        sha256 = sha256_of(name, flag=f"--{setting}")
        found.append({"setting": setting, "file": name, "sha256": sha256})
    return found


def sha256_of(name: str, *, flag: str) -> str:
    """Of a file, on a disk or in a store.

    Raises:
      UsageError: it is not there; the message names the flag.
      CommandError: a store fails.
    """
    if files.stat(name) is None:
        raise UsageError(f"{flag}: {name} is not a file")
    with files.fetched(name) as local:
        return digest(local)[1]
