"""A job's rows: back as they were written, once, and nobody's any more when their run is over."""

import dataclasses
from pathlib import Path

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.owner import LostOutputError, Owner
from beam_jobs.core.drift import Statistics
from serving.model.answers import Prediction
from serving.predict.damaged_records import reject_row
from serving.predict.reasons import SENTENCES, Unpredicted
from serving.predict.spool import Found, Rows, rows_beside

ANSWER = Prediction(patient_id="1", values={"probability": 0.5, "spread": 0.25}, missing=("T2w",))
OTHER = ANSWER._replace(patient_id="2")
REJECT = reject_row(
    scope="shard", subject="s", reason=Unpredicted.UNREADABLE_SHARD, detail="line\u2028end"
)
COUNTED = Statistics(patients=2, counts={("T1w", "plane", "axial"): 2})


def files_of(rows: Rows) -> list[str]:
    return sorted(path.name for path in Path(rows.directory).iterdir())


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    with rows_beside(str(tmp_path / "a.csv")) as rows:
        rows.write("00000", [ANSWER, COUNTED])
        rows.write("00001", [COUNTED, REJECT])
        assert rows.read() == Found([ANSWER], [REJECT], COUNTED + COUNTED, {})


def test_a_part_written_twice_counts_once(tmp_path: Path) -> None:
    with rows_beside(str(tmp_path / "a.csv")) as rows:
        rows.write("00003", [ANSWER, COUNTED, REJECT])
        written = (Path(rows.directory) / "rows-00003").read_bytes()
        rows.write("00003", [REJECT, COUNTED, ANSWER])
        assert rows.read() == Found([ANSWER], [REJECT], COUNTED, {})
        assert (Path(rows.directory) / "rows-00003").read_bytes() == written
        assert files_of(rows) == ["owner.json", "rows-00003"]


def test_a_worker_that_outlives_its_run_writes_nothing(tmp_path: Path) -> None:
    with rows_beside(str(tmp_path / "a.csv")) as rows:
        rows.require()
    with pytest.raises(LostOutputError):
        rows.write("00000", [ANSWER])
    with pytest.raises(LostOutputError):
        rows.require()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LostOutputError):
        rows.read()


def test_a_worker_that_sees_another_disk_fails_and_loses_no_rows_silently(tmp_path: Path) -> None:
    with rows_beside(str(tmp_path / "a.csv")) as rows:
        elsewhere = tmp_path / "other" / Path(rows.directory).name
        there = Rows(
            directory=str(elsewhere),
            owner=dataclasses.replace(rows.owner, path=str(elsewhere / "owner.json")),
        )
        for seen in (False, True):
            if seen:
                elsewhere.mkdir(parents=True)
            with pytest.raises(LostOutputError, match="not seen by a worker"):
                there.write("00000", [ANSWER])
            assert not (elsewhere / "rows-00000").exists()


def test_two_runs_to_one_output_do_not_mix_their_rows(tmp_path: Path) -> None:
    with rows_beside(str(tmp_path / "a.csv")) as first:
        with rows_beside(str(tmp_path / "a.csv")) as second:
            first.write("00000", [ANSWER])
            second.write("00000", [OTHER])
            assert second.read()[0] == [OTHER]
        assert first.read()[0] == [ANSWER]


def test_a_worker_stuck_amid_a_write_does_not_make_the_run_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(_: Owner) -> None:
        raise files.LockedError("a worker is writing, and does not come to an end")

    monkeypatch.setattr(Owner, "leave", stuck)
    with rows_beside(str(tmp_path / "a.csv")) as rows:
        rows.write("00000", [ANSWER])
    assert list(tmp_path.iterdir()) == []


def test_every_reason_has_its_sentence() -> None:
    assert set(SENTENCES) == set(Unpredicted)
