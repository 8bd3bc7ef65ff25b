"""Which files of an output directory are a conversion's: by name, npz files by a shard's state.

A state lists the npz files that were made of its shard ("npz"), and those that were made of an
earlier one and may still lie there ("npz_before"), before the first of them is written. Any other
file is somebody else's: no job runs where one lies, so none is ever replaced or deleted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, json_object, shown
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import own_json
from beam_jobs.convert.npz import is_npz, of_earlier_version, split_and_file
from beam_jobs.core.manifest import FORMAT, MANIFEST_NAME, SHARD_NAME

STATE_NAME = ".state"
SERIES_NAME, REJECTS_NAME, REPORT_NAME = "series.csv", "rejects.csv", "report.html"
JOB, LOCK = f"{STATE_NAME}/job.json", f"{STATE_NAME}/lock"
OWNER, RUNNING = f"{STATE_NAME}/owner.json", f"{STATE_NAME}/running.json"
TABLES = (MANIFEST_NAME, SERIES_NAME, REJECTS_NAME, REPORT_NAME)
# What systems, file managers and whoever looks at a table leave in any directory; it is neither
# read, replaced nor deleted. A network's disk keeps a deleted file that is still read as .nfs*.
_LEFT_BEHIND = re.compile(
    r"(?:.*/)?(?:\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+"
    r"|\.~lock\..*#|~\$.*)|lost\+found/.*"
)


def require_ours(output: str) -> None:
    """Refuses an output with a file in it that no conversion made. Writes nothing.

    Raises:
      UsageError: there is one, or a link to a directory; the message names it.
    """
    foreign = foreign_files(output)
    if not foreign:
        return
    unknown = [name for name in foreign if name.endswith("/")]
    kind = "a link, or cannot be listed" if unknown else "no dataset"
    more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
    raise UsageError(
        f"--output {output} holds files that are {kind}: {shown((unknown or foreign)[0])[1:-1]}"
        f"{more}; nothing was changed: move them elsewhere, or choose another --output"
    )


def foreign_files(output: str) -> list[str]:
    """The files below an output, by their paths from there, that no conversion made or began."""
    there = files.tree(output)
    # Other programs have manifests too.
    begun = JOB in there or own_json(files.join(output, MANIFEST_NAME), FORMAT) is not None
    own = {JOB, LOCK, OWNER, RUNNING, *(TABLES if begun else ())}
    if holds_npz(there):
        own.update(*(npz_of(state, there) for state in read_states(output, there).values()))
    return [
        name
        for name in there
        if not (
            (target := target_of(name)) in own
            or (begun and shard_of(target) is not None)
            or _LEFT_BEHIND.fullmatch(name)
        )
    ]


def read_states(output: str, there: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Shard to state, of those that can be read.

    Args:
      output: the dataset's directory.
      there: the files in it.
    """
    states = {}
    for name in there:
        shard = shard_of(name) if name.startswith(f"{STATE_NAME}/") else None
        if shard is not None:
            with contextlib.suppress(FileNotFoundError, ContractError):
                states[shard] = json_object(files.read(files.join(output, name)))
    return states


def holds_npz(there: Iterable[str]) -> bool:
    """Whether there is an npz file, of ours or not, among the files of an output."""
    return any(is_npz(target_of(name)) for name in there)


def npz_of(state: Mapping[str, Any], there: Sequence[str]) -> set[str]:
    """The npz files that were made of a shard, now or before.

    Args:
      state: the shard's.
      there: the files in the output. An earlier version listed none: then those of them count that
        bear the names of the shard's patients.
    """
    if "npz" in state:
        listed = [*_listed(state, "npz"), *_listed(state, "npz_before")]
        return {name for name in listed if is_npz(name)}
    found: set[tuple[str, str]] = set()
    with contextlib.suppress(KeyError, TypeError):
        found = of_earlier_version(state["result"]["entry"])
    targets = map(target_of, there) if found else ()
    return {name for name in targets if is_npz(name) and split_and_file(name) in found}


def _listed(state: Mapping[str, Any], name: str) -> list[str]:
    found = state.get(name)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def stale_npz(states: Mapping[str, Mapping[str, Any]], there: Sequence[str]) -> list[str]:
    """The npz files, or halves of them, of shards that were replaced.

    Args:
      states: of all shards, of which those to keep have been written anew.
      there: the files in the output.
    """
    made = set().union(*(npz_of(state, there) for state in states.values()))
    now = {name for state in states.values() for name in _listed(state, "npz")}
    return [
        name
        for name in there
        if (target := target_of(name)) in made and (name != target or name not in now)
    ]


def shard_of(name: str) -> str | None:
    """The shard that a file below an output is, or is the state of; None for any other file.

    >>> shard_of(".state/test-00000-of-00001.tfrecord.json")
    'test-00000-of-00001.tfrecord'
    """
    folder, _, file = name.rpartition("/")
    if folder == STATE_NAME and file.endswith(".json"):
        folder, file = "", file.removesuffix(".json")
    return file if not folder and SHARD_NAME.fullmatch(file) else None


def target_of(name: str) -> str:
    """The name that a file has, or was going to have when its writer was killed."""
    while (target := files.temporary_of(name)) is not None:
        name = target
    return name
