"""Where a job's rows lie before they are a table: beside the output, gone when the job is.

A file for each shard, or part of a cohort, that was predicted, written whole by whoever predicted
it: work that is done again writes the same file again. The directory is one run's alone. It has an
owner (`beam_jobs.common.owner`), who leaves when the run ends, however that is; workers of a
cluster that live on write nothing from then on, and do not make the directory anew. A worker that
does not see the owner fails: while the run goes on its machine shows another disk, and without its
rows patients would be missing from the table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from beam_jobs.common.files import interface as files
from beam_jobs.common.owner import LostOutputError, Owner
from beam_jobs.core import drift
from beam_jobs.core.drift import Statistics
from serving.model.answers import Prediction
from serving.predict.damaged_records import Reject
from serving.predict.images import Images

_PART = "rows-"
_OWNER = "owner.json"

# A prediction, something refused, what some cases look like, or the images that one is made of.
JobRow = Prediction | Reject | Statistics | Images


class Found(NamedTuple):
    """The rows of all parts.

    Attributes:
      predictions: one a case.
      rejects: what was refused.
      statistics: the sum of all.
      images: patient -> what its report needs; {} where none is written.
    """

    predictions: list[Prediction]
    rejects: list[Reject]
    statistics: Statistics
    images: dict[str, Images]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one run; workers get a copy.

    Attributes:
      directory: where they lie.
      owner: the run.
    """

    directory: str
    owner: Owner

    def require(self) -> None:
        """Before work that would be in vain.

        Raises:
          LostOutputError: the run is over, or its directory is not seen from here.
        """
        try:
            self.owner.require()
        except LostOutputError as error:
            raise self._lost() from error

    def write(self, part: str, rows: Iterable[JobRow]) -> None:
        """Writes a part's rows whole; one written again replaces itself.

        Raises:
          LostOutputError: as `require`; nothing is written then.
        """
        path = files.join(self.directory, f"{_PART}{part}")
        lines = sorted(map(to_line, rows))
        try:
            with self.owner.writing():
                files.write_text(path, "".join(f"{line}\n" for line in lines))
            if files.is_remote(path):  # the run may have ended while the request was under way
                self.owner.require()
        except LostOutputError as error:
            files.delete([path])
            raise self._lost() from error

    def _lost(self) -> LostOutputError:
        return LostOutputError(
            f"{self.directory} is gone, or not seen by a worker: the prediction has ended, or its "
            "workers do not share that directory"
        )

    def read(self) -> Found:
        """The rows of all parts.

        Raises:
          LostOutputError: the rows were removed meanwhile.
        """
        self.owner.require()
        predictions, rejects, total, images = [], [], drift.NONE, {}
        for name in files.names(self.directory):
            if not name.startswith(_PART):
                continue
            for line in files.read_text(files.join(self.directory, name)).splitlines():
                row = json.loads(line)
                if isinstance(row, str):
                    total += Statistics.loads(row)
                elif "packed" in row:
                    images[row["patient_id"]] = Images(**row)
                elif "reason" in row:
                    rejects.append(row)
                else:
                    predictions.append(Prediction(**{**row, "missing": tuple(row["missing"])}))
        return Found(predictions, rejects, total, images)


@contextlib.contextmanager
def rows_beside(output: str) -> Iterator[Rows]:
    """A place for the pipeline's rows, beside the output and hidden.

    On a local disk those of killed runs for the same output go first (`files.scratch`). In a store
    a killed run cannot be told from a living one; there only the run itself clears up.
    """
    with _directory(output) as directory:
        owner = Owner(path=files.join(directory, _OWNER), output=output)
        owner.take()
        try:
            yield Rows(directory=directory, owner=owner)
        finally:
            with contextlib.suppress(files.LockedError):  # a worker is stuck amid a write
                owner.leave()


@contextlib.contextmanager
def _directory(output: str) -> Iterator[str]:
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
    """A row as a line of JSON: the fields, a reject as it is, statistics as a text."""
    if isinstance(row, Statistics):
        return json.dumps(row.dumps())
    return json.dumps(row._asdict() if isinstance(row, Prediction | Images) else row)
