"""A part of the patients: batches of a size, rows of the requested, one file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.owner import LostOutputError
from beam_jobs.common.progress_files import Units
from beam_jobs.core import drift
from beam_jobs.core.record import PreparedCase
from serving.model.answers import Prediction
from serving.predict.damaged_records import reject_row
from serving.predict.part import PartPredictor
from serving.predict.reasons import Unpredicted
from serving.predict.spool import Rows, rows_beside
from tests.datasets import make_cases, make_schema

SCHEMA = make_schema(shape=(4, 4, 2), modalities=("T1w",))
CASES = make_cases(SCHEMA, patients=7, folds=2)
REJECT = reject_row(scope="record", subject="s", reason=Unpredicted.CORRUPT_RECORD, detail="d")


class Model:
    """Answers, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def answer(self, cases: Sequence[PreparedCase]) -> list[Prediction]:
        self.batches.append(len(cases))
        return [
            Prediction(patient_id=case.patient_id, values={"probability": 0.5}, missing=())
            for case in cases
        ]


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    with rows_beside(str(tmp_path / "a.csv")) as made:
        yield made


def test_batches_are_full_but_the_last(rows: Rows, tmp_path: Path) -> None:
    model, ticks = Model(), str(tmp_path / "ticks")
    predictor = PartPredictor(schema=SCHEMA, batch_size=3, rows=rows, ticks=ticks)
    for _ in range(2):  # an engine may run it again
        predictor.write("0", [REJECT, *CASES], model.answer)
    assert model.batches == [3, 3, 1] * 2
    answers, rejects, counted, _ = rows.read()
    assert [answer.patient_id for answer in answers] == [case.patient_id for case in CASES]
    assert (rejects, counted) == ([REJECT], drift.NONE)
    assert Units(ticks).done() == len(CASES)


def test_only_the_requested_are_predicted_and_counted(rows: Rows) -> None:
    model = Model()
    predictor = PartPredictor(
        schema=SCHEMA, batch_size=3, rows=rows, requested=frozenset(("1", "4")), counted=True
    )
    found: list[Any] = [*CASES, drift.Statistics(patients=0, counts={("T1w", "plane", "axial"): 2})]
    predictor.write("0", found, model.answer)
    answers, _, counted, _ = rows.read()
    assert [answer.patient_id for answer in answers] == ["00001", "00004"]
    assert model.batches == [2]
    expected = found[-1] + drift.of_case(CASES[1], SCHEMA) + drift.of_case(CASES[4], SCHEMA)
    assert counted == expected


def test_nothing_is_predicted_for_a_run_that_is_over(rows: Rows) -> None:
    model = Model()
    rows.owner.leave()
    predictor = PartPredictor(schema=SCHEMA, batch_size=3, rows=rows)
    with pytest.raises(LostOutputError):
        predictor.write("0", CASES, model.answer)
    assert model.batches == []
