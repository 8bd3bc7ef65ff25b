"""A clock that goes back, jumps, or was never set: nothing stale, nothing negative, no waiting."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from beam_jobs.common.files import interface as files
from beam_jobs.convert.planning import Assignment
from beam_jobs.convert.resume import shard_inputs
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.plan import PatientPlan
from beam_jobs.core.dicom.headers import index_files, read_headers
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.series import assemble
from tests.dicom_files import image_dataset, recipe_image, save

YEAR = 365 * 24 * 3600
TIMES = {
    "1970": 0,
    "before 1970": -YEAR,
    "beyond 2^31": (1 << 31) + YEAR,
    "in the future": 1 << 32,
}


def image(path: Path, turn: int = 0) -> Path:
    """A slice of the middle of three."""
    pixels = recipe_image(12, turn=turn).astype(np.uint16)
    rows, columns = pixels.shape
    for height in range(3):
        dataset = image_dataset(
            rows=rows, columns=columns, ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, height], PixelSpacing=[1, 1], InstanceNumber=height + 1,
        )  # fmt: skip
        dataset.SOPInstanceUID = f"1.2.3.{height}"
        place = path if height == 1 else path.with_name(f"{height}.dcm")
        if height == 1 or not place.exists():
            save(dataset, place, uid.ExplicitVRLittleEndian, [pixels])
    return path


def inputs(path: Path, root: Path) -> str:
    """What a shard of this one file says that it was made of."""
    ((series,), _) = assemble(index_files(sorted(root.glob("*.dcm")))[0])
    plan = PatientPlan(key="1", series={"T1w": series}, rows=(), firsts=(), refusal=None)
    assignment = Assignment(patient_id="1", label=None, fold=None, shard="a")
    return shard_inputs([(plan, assignment)], {}, IdPolicy(), str(root))


@pytest.mark.parametrize("seconds", TIMES.values(), ids=TIMES)
def test_a_file_of_any_time_is_read_and_remembered(tmp_path: Path, seconds: int) -> None:
    path = image(tmp_path / "a.dcm")
    os.utime(path, (seconds, seconds))
    assert read_headers(path)[0].modified == seconds * 1_000_000_000
    assert len(list(stored_slices(read_headers(path)))) == 1
    assert inputs(path, tmp_path) == inputs(path, tmp_path)


@pytest.mark.parametrize("seconds", TIMES.values(), ids=TIMES)
def test_other_content_of_the_same_size_is_another_input_however_old(
    tmp_path: Path, seconds: int
) -> None:
    path = image(tmp_path / "a.dcm")
    before, size = inputs(path, tmp_path), path.stat().st_size
    image(path, turn=3)
    os.utime(path, (seconds, seconds))
    assert path.stat().st_size == size
    assert inputs(path, tmp_path) != before


def test_spans_are_measured_by_a_clock_that_only_goes_forward() -> None:
    """The wall's may go back: a span could be negative, a deadline never come."""
    names = re.compile(r"\btime\.time(_ns)?\(|datetime\.now|utcnow|from time import")
    root = Path(__file__).resolve().parents[2]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for package in ("beam_jobs", "trainer", "serving")
        for path in sorted((root / package).rglob("*.py"))
        for line in path.read_text().splitlines()
        if names.search(line)
    ]
    assert found == []


def test_a_lock_does_not_ask_what_time_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.lock(tmp_path / "lock", "another has it"):
        for moment in (-1e9, 0.0, 1e12):
            monkeypatch.setattr(time, "time", lambda moment=moment: moment)
            with pytest.raises(files.LockedError), files.lock(tmp_path / "lock", "another has it"):
                pass
    for seconds in TIMES.values():
        os.utime(tmp_path / "lock", (seconds, seconds))
        with files.lock(tmp_path / "lock", "another has it"):
            pass
