"""A record's series in the input again: found by series.csv wherever it lies, or a reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.series import Series
from tests.dicom_files import COLUMNS, ROWS, write_slices
from trainer.explain.source_series import UsedSeries, find_series, read_used

SLICES = 4
SIZES = (str(ROWS), str(COLUMNS), str(SLICES))
HEADER = "patient,path,modality,verdict,rows,columns,slices,transfer_syntax\n"


def write_series(folder: Path, uid: str, *, slices: int = SLICES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_slices(folder, np.zeros((slices, ROWS, COLUMNS), np.uint16), series_uid=uid)


def used(path: str, sizes: tuple[str, str, str] = SIZES, *, nifti: bool = False) -> UsedSeries:
    return UsedSeries(path=path, sizes=sizes, nifti=nifti)


def found_in(root: Path, one: UsedSeries) -> Series:
    (series,) = find_series(str(root), [one]).values()
    assert isinstance(series, Series), series
    return series


def why_not(root: Path, one: UsedSeries) -> str:
    (reason,) = find_series(str(root), [one]).values()
    assert isinstance(reason, str)
    return reason


def zipped(root: Path) -> Path:
    """The input with an archive in place of each patient's directory."""
    for patient in [path for path in root.iterdir() if path.is_dir()]:
        shutil.make_archive(str(patient), "zip", patient)
        shutil.rmtree(patient)
    return root


def tarred(root: Path) -> Path:
    """The input as one archive."""
    return Path(shutil.make_archive(str(root.parent / "all"), "gztar", root))


@pytest.mark.parametrize("packed", [lambda root: root, zipped, tarred], ids=["dir", "zip", "tar"])
def test_a_series_is_found_where_the_table_says(
    tmp_path: Path, packed: Callable[[Path], Path]
) -> None:
    root = tmp_path / "cohort"
    write_series(root / "00005" / "T1w", "1.2.5")
    write_series(root / "00006" / "T1w", "1.2.6")
    one, other = used("00005/T1w/001.dcm"), used("00006/T1w/001.dcm")
    found = find_series(str(packed(root)), [one, other])
    for row, uid in ((one, "1.2.5"), (other, "1.2.6")):
        series = found[row]
        assert isinstance(series, Series)
        assert {header.series_uid for header in series.headers} == {uid}
        assert len(series.headers) == SLICES


def test_a_series_is_found_among_others_of_one_directory(tmp_path: Path) -> None:
    write_series(tmp_path / "one", "1.2.5")
    write_series(tmp_path / "other", "1.2.6")
    heap = tmp_path / "heap"
    heap.mkdir()
    for name in ("one", "other"):
        for path in (tmp_path / name).iterdir():
            path.rename(heap / f"{name}-{path.name}")
    series = found_in(heap, used("other-001.dcm"))
    assert {header.series_uid for header in series.headers} == {"1.2.6"}


def test_a_series_whose_files_lie_in_several_directories_is_found(tmp_path: Path) -> None:
    write_series(tmp_path / "disc" / "A", "1.2.5")
    (tmp_path / "disc" / "B").mkdir()
    for name in ("003.dcm", "004.dcm"):
        (tmp_path / "disc" / "A" / name).rename(tmp_path / "disc" / "B" / name)
    series = found_in(tmp_path, used("disc/A/001.dcm"))
    assert len(series.headers) == SLICES


def test_compressed_files_are_found_by_their_plain_names(tmp_path: Path) -> None:
    import gzip

    write_series(tmp_path / "1", "1.2.5")
    for path in (tmp_path / "1").iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert len(found_in(tmp_path, used("1/001.dcm")).headers) == SLICES


def test_a_series_that_has_changed_is_none(tmp_path: Path) -> None:
    write_series(tmp_path / "1", "1.2.5", slices=SLICES + 1)
    reason = why_not(tmp_path, used("1/001.dcm"))
    assert f"{ROWS} x {COLUMNS} x {SLICES + 1}" in reason
    assert f"series.csv says {ROWS} x {COLUMNS} x {SLICES}" in reason


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "1", "1.2.5")
    assert "1/009.dcm is not below" in why_not(tmp_path, used("1/009.dcm"))
    assert "2/001.dcm is not below" in why_not(tmp_path, used("2/001.dcm"))


@pytest.mark.parametrize("path", ["../1/001.dcm", "a/../../1/001.dcm", "/{}/1/001.dcm"])
def test_no_table_leads_out_of_the_input(tmp_path: Path, path: str) -> None:
    write_series(tmp_path / "1", "1.2.5")
    (tmp_path / "in" / "a").mkdir(parents=True)
    assert "is not below" in why_not(tmp_path / "in", used(path.format(tmp_path)))


def test_what_is_no_dicom_any_more_is_told(tmp_path: Path) -> None:
    (tmp_path / "001.dcm").write_bytes(b"x" * 200)
    assert "no DICM prefix" in why_not(tmp_path, used("001.dcm"))


def test_nifti_has_no_study_to_go_to(tmp_path: Path) -> None:
    assert "NIfTI" in why_not(tmp_path, used("1/T1w.nii.gz", nifti=True))


def test_rows_that_were_used_are_read_whatever_zeros_ids_begin_with(tmp_path: Path) -> None:
    syntax = "Explicit VR Little Endian"
    (tmp_path / "series.csv").write_text(
        HEADER
        + f"00005,00005/T1w/1.dcm,T1w,used,8,9,4,{syntax}\n"
        + f"00005,00005/T2w/1.dcm,T2w,unused,8,9,4,{syntax}\n"
        + f"00006,00006/T1w/1.dcm,T1w,used,8,9,4,{syntax}\n"
        + "a,a/T1w.nii.gz,T1w,used,8,9,4,NIfTI-1\n"
    )
    found = read_used(str(tmp_path), ["5", "a"], ["T1w", "T2w"])
    assert found == {
        ("5", "T1w"): used("00005/T1w/1.dcm", ("8", "9", "4")),
        ("a", "T1w"): used("a/T1w.nii.gz", ("8", "9", "4"), nifti=True),
    }


def test_a_dataset_without_its_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"series\.csv"):
        read_used(str(tmp_path), ["5"], ["T1w"])
    (tmp_path / "series.csv").write_text("a,b\n")
    with pytest.raises(ContractError, match="no column patient"):
        read_used(str(tmp_path), ["5"], ["T1w"])
