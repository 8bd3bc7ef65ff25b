"""Where a job's rows lie before they are a table: beside the output, gone when the job is."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator

from beam_jobs.common.files import interface as files
from beam_jobs.core import drift
from beam_jobs.core.drift import Statistics
from serving.model.loaded_model import Prediction
from serving.predict.damaged_records import Reject

_PART = "rows-"

# A prediction, something refused, or what some cases look like.
JobRow = Prediction | Reject | Statistics


@contextlib.contextmanager
def rows_directory(output: str) -> Iterator[str]:
    """A directory for the pipeline's rows, beside the output and hidden.

    On a local disk those of killed runs for the same output go first (`files.scratch`). In a store
    a killed run cannot be told from a living one; there only the run itself clears up.
    """
    if not files.is_remote(output):
        with files.scratch("predict", beside=output) as local:
            yield str(local)
        return
    directory = f"{output}.rows-{uuid.uuid4().hex[:8]}"
    try:
        yield directory
    finally:
        files.delete(files.join(directory, name) for name in files.names(directory))


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
