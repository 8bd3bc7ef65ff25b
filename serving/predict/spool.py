"""Where a job's rows lie before they are a table: beside the output, gone when the job is."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from beam_jobs.common.files import interface as files
from beam_jobs.core import drift
from beam_jobs.core.drift import Statistics
from serving.model.loaded_model import Prediction
from serving.predict.damaged_records import Reject

_LOCK = ".lock"
_PART = "rows-"

# A prediction, something refused, or what some cases look like.
JobRow = Prediction | Reject | Statistics


@contextlib.contextmanager
def rows_directory(output: str) -> Iterator[str]:
    """A directory for the pipeline's rows; those of killed runs for the same output go first.

    On a local disk each has a lock that ends with its process, so that a run which still works
    keeps its own. In a store a killed run cannot be told from a living one; there only the run
    itself clears up.
    """
    directory = f"{output}.rows-{uuid.uuid4().hex[:8]}"
    if files.is_remote(output):
        try:
            yield directory
        finally:
            files.delete(files.join(directory, name) for name in files.names(directory))
        return
    _remove_orphans(Path(output))
    try:
        with files.lock(os.path.join(directory, _LOCK), f"{directory} is another job's"):
            yield directory
    finally:  # a full disk may take the directory and not the lock in it
        shutil.rmtree(directory, ignore_errors=True)


def _remove_orphans(output: Path) -> None:
    """Removes the directories of this output whose runs are no more."""
    for lock in output.parent.glob(f"{glob.escape(output.name)}.rows-{8 * '[0-9a-f]'}/{_LOCK}"):
        with contextlib.suppress(files.LockedError), files.lock(lock, f"{lock} is held"):
            shutil.rmtree(lock.parent, ignore_errors=True)


def to_line(row: JobRow) -> str:
    """A row as a line of JSON: a prediction's fields, a reject as it is, statistics as a text."""
    if isinstance(row, Statistics):
        return json.dumps(row.dumps())
    return json.dumps(row._asdict() if isinstance(row, Prediction) else row)


def write_rows(directory: str, part: int, lines: Iterable[str]) -> None:
    """Writes a part of the rows whole; a part written again replaces itself."""
    name = f"{_PART}{part:05d}"
    files.write_text(files.join(directory, name), "".join(f"{line}\n" for line in sorted(lines)))


def read_rows(directory: str) -> tuple[list[Prediction], list[Reject], Statistics]:
    """Predictions, rejects and the sum of the statistics, as `write_rows` left them."""
    predictions, rejects, total = [], [], drift.NONE
    for name in files.names(directory):
        if not name.startswith(_PART):
            continue
        for line in files.read_text(files.join(directory, name)).splitlines():
            row = json.loads(line)
            if isinstance(row, str):
                total += Statistics.loads(row)
            elif "reason" in row:
                rejects.append(row)
            else:
                predictions.append(Prediction(**{**row, "missing": tuple(row["missing"])}))
    return predictions, rejects, total
