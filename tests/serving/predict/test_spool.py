"""A job's rows: back as they were written, once, however often a part is written."""

from pathlib import Path

from beam_jobs.core.drift import Statistics
from serving.model.loaded_model import Prediction
from serving.predict.damaged_records import reject_row
from serving.predict.reasons import SENTENCES, Unpredicted
from serving.predict.spool import read_rows, to_line, write_rows

ANSWER = Prediction(patient_id="1", probability=0.5, logit=0.0, spread=0.25, missing=("T2w",))
REJECT = reject_row(
    scope="shard", subject="s", reason=Unpredicted.UNREADABLE_SHARD, detail="line\u2028end"
)
COUNTED = Statistics(patients=2, counts={("T1w", "plane", "axial"): 2})


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    write_rows(str(tmp_path), 0, [to_line(row) for row in (ANSWER, COUNTED)])
    write_rows(str(tmp_path), 1, [to_line(row) for row in (COUNTED, REJECT)])
    predictions, rejects, total = read_rows(str(tmp_path))
    assert predictions == [ANSWER]
    assert rejects == [REJECT]
    assert total == COUNTED + COUNTED


def test_a_part_written_twice_counts_once(tmp_path: Path) -> None:
    lines = [to_line(row) for row in (ANSWER, COUNTED, REJECT)]
    write_rows(str(tmp_path), 3, lines)
    first = read_rows(str(tmp_path))
    write_rows(str(tmp_path), 3, lines[::-1])
    assert read_rows(str(tmp_path)) == first
    assert len(list(tmp_path.iterdir())) == 1


def test_every_reason_has_its_sentence() -> None:
    assert set(SENTENCES) == set(Unpredicted)
