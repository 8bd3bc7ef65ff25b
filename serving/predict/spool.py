"""The place of a job's rows before they are a table: beside the output, gone when the job is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from beam_jobs.common.files_before.storage import is_remote

_LOCK = ".lock"


@contextlib.contextmanager
def rows_directory(output: str) -> Iterator[str]:
    """A directory for the pipeline's rows; those of killed runs for the same output go first.

    On a local disk each has a lock that ends with its process, so that a run which still works
    keeps its own. A store has no such locks; there only the run itself clears up.
    """
    directory = f"{output}.rows-{uuid.uuid4().hex[:8]}"
    if is_remote(output):
        from apache_beam.io.filesystems import FileSystems

        try:
            yield directory
        finally:
            if FileSystems.exists(directory):
                FileSystems.delete([directory])
        return
    _remove_orphans(output)
    os.makedirs(directory)
    with open(os.path.join(directory, _LOCK), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_orphans(output: str) -> None:
    """Removes the directories of this output whose runs are no more."""
    path = Path(output)
    if not path.parent.is_dir():
        return
    for entry in path.parent.iterdir():
        name = entry.name.removeprefix(f"{path.name}.rows-")
        if name == entry.name or len(name) != 8 or not (entry / _LOCK).is_file():
            continue
        with open(entry / _LOCK, "rb") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry, ignore_errors=True)
