"""A part of the patients, start to end: batches, answers, what they look like, one file of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from beam_jobs.common.progress_files import tick
from beam_jobs.core import drift
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.drift import Statistics
from beam_jobs.core.record import PreparedCase, RecordSchema
from serving.model.answers import Prediction
from serving.predict.covariates import NOTHING, Taken
from serving.predict.damaged_records import Reject
from serving.predict.images import Images
from serving.predict.spool import JobRow, Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartPredictor:
    """Predicts parts of one job.

    Attributes:
      schema: of the cases.
      batch_size: most patients a call of the model gets.
      rows: where the answers go.
      taken: how the cases' covariates become those that the model takes.
      requested: normalised ids of the patients who are predicted and counted; None for all.
        Which of `5` and `00005` is meant is settled in the table.
      counted: count what the cases look like.
      looked_at: modalities whose images a report will name; () where none is written.
      ticks: a local file that patients done are noted in (`progress_files`); "" for none.
    """

    schema: RecordSchema
    batch_size: int
    rows: Rows
    taken: Taken = NOTHING
    requested: frozenset[str] | None = None
    counted: bool = False
    looked_at: tuple[str, ...] = ()
    ticks: str = ""

    def is_requested(self, patient: str) -> bool:
        """Whether a patient is predicted and counted."""
        return self.requested is None or normalised_id(patient) in self.requested

    def write(
        self,
        part: str,
        found: Iterable[PreparedCase | Reject | Statistics | Images],
        answer: Callable[[Sequence[PreparedCase]], list[Prediction]],
    ) -> None:
        """Predicts a part and writes its rows; one batch of volumes is in memory at a time.

        Args:
          part: its name, of no other part of this job.
          found: its cases, what was refused of it, and counts and images of its series.
          answer: the model's answers for a batch of cases, in their order.

        Raises:
          LostOutputError: the run is over, or its rows' directory is not seen from here.
        """
        self.rows.require()
        rows: list[JobRow] = []
        batch: list[PreparedCase] = []
        total = drift.NONE

        def predict() -> None:
            answers = answer(batch)
            batch.clear()
            rows.extend(answers)
            tick(self.ticks, *(each.patient_id for each in answers))

        for item in found:
            if isinstance(item, Statistics):
                total += item
            elif not isinstance(item, PreparedCase):
                rows.append(item)
            elif self.is_requested(item.patient_id):
                if self.counted:
                    total += drift.of_case(item, self.schema)
                batch.append(self.taken.of(item))
                if len(batch) == self.batch_size:
                    predict()
        if batch:
            predict()
        if self.counted:
            rows.append(total)
        self.rows.write(part, rows)
