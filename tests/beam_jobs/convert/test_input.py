"""All that lies below the input stands in the sum; its own name and what lies above say nothing."""

import csv
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from beam_jobs import dicom_to_tfrecord, survey
from beam_jobs.common import cli
from beam_jobs.core.manifest import Manifest
from beam_jobs.phantoms.series import SeriesSpec, write_series

CLUTTER = (
    *("DICOMDIR", ".DS_Store", "00005/Thumbs.db", "00005/T1w/.~lock", "00005/T1w/._1.dcm"),
    *(".git/config", ".git/objects/ab/cd", "00006/.cache/x/y/z.dcm"),
)


def images(folder: Path, patient: str, modality: str = "T1w", slices: int = 5) -> None:
    spec = SeriesSpec(modality=modality, rows=12, columns=14, slices=slices)
    seed = sum(patient.encode())
    write_series(spec, folder, lambda xyz: 400 + 20 * xyz[..., 0], patient_id=patient, seed=seed)


def convert(root: Path | str, output: Path | str, *more: str) -> int:
    argv = [
        "--input",
        str(root),
        "--output",
        str(output),
        "--shape",
        "8,8,4",
        "--fov_mm",
        "40,40,25",
    ]
    return dicom_to_tfrecord.main([*argv, "--no_report", "--quiet", *more])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def manifest(dataset: Path) -> Manifest:
    return Manifest.loads((dataset / "manifest.json").read_text())


def listed(*tables: Path) -> Counter[str]:
    """Files by verdict, as the tables have them."""
    found = Counter[str]()
    for row in (row for table in tables for row in rows(table)):
        if row.get("scope", "file") == "file":
            found[row.get("verdict", "rejected")] += int(row["files"])
    return found


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    root = tmp_path / "train"
    for patient in ("00005", "00006"):
        images(root / patient / "T1w", patient)
    return root


@pytest.fixture
def cluttered(cohort: Path) -> Path:
    for name in CLUTTER:
        (cohort / name).parent.mkdir(parents=True, exist_ok=True)
        (cohort / name).write_text("x")
    (cohort / "notes.txt").write_text("no image")
    return cohort


def found_by_find(root: Path) -> int:
    command = ["find", str(root), "(", "-type", "f", "-o", "-type", "l", ")", "-print0"]
    return subprocess.run(command, capture_output=True, check=True).stdout.count(b"\0")


def test_the_sum_of_files_is_that_of_find(cluttered: Path, tmp_path: Path, capsys) -> None:
    total = found_by_find(cluttered)
    argv = ("--modalities", "T1w")
    assert convert(cluttered, tmp_path / "d", *argv) == cli.EXIT_OK
    counts = manifest(tmp_path / "d").counts
    assert counts["files"] == {"used": 10, "unused": len(CLUTTER), "rejected": 1}
    assert sum(counts["files"].values()) == total
    assert counts["series"] == {"used": 2, "unused": 0, "rejected": 0}
    assert counts["reasons"] == {"not_dicom": 1, "not_input": 1}
    tables = tmp_path / "d" / "series.csv", tmp_path / "d" / "rejects.csv"
    assert listed(*tables) == counts["files"]
    (row,) = [row for row in rows(tables[0]) if row["reason"] == "not_input"]
    assert (row["path"], row["patient"], row["verdict"]) == (".", "", "unused")
    assert row["detail"] == "1 DICOMDIR, 1 Thumbs.db, 6 hidden"
    assert survey.main([str(cluttered), "--output", str(tmp_path / "s.csv")]) == cli.EXIT_OK
    assert f"files       {total} = 10 used" in capsys.readouterr().out
    assert listed(tmp_path / "s.csv") == counts["files"]


def test_what_is_never_read_fails_no_strict_run(cluttered: Path, tmp_path: Path) -> None:
    (cluttered / "notes.txt").unlink()
    assert convert(cluttered, tmp_path / "d", "--strict") == cli.EXIT_OK


def test_an_archive_has_the_tables_of_its_cluttered_directory(
    cluttered: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "train"), "zip", cluttered)
    with zipfile.ZipFile(archive) as packed:
        assert ".git/config" in packed.namelist()
    for root, output in ((cluttered, "of_directory"), (archive, "of_archive")):
        assert convert(root, tmp_path / output) == cli.EXIT_OK
    # As a part of the archive, named without what lies above it.
    assert convert(f"{archive}!/00005", tmp_path / "part") == cli.EXIT_OK
    for name in ("series.csv", "rejects.csv", "manifest.json"):
        there = [
            (tmp_path / output / name).read_bytes() for output in ("of_directory", "of_archive")
        ]
        assert there[0] == there[1]
    assert {row["path"] for row in rows(tmp_path / "part" / "series.csv")} == {
        "T1w/Image-1.dcm", "."
    }  # fmt: skip


def test_hashed_names_stay_hashed(cluttered: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a secret of more than sixteen bytes")
    argv = ("--id_policy", "hmac", "--id_key", str(tmp_path / "key"))
    assert convert(cluttered, tmp_path / "d", *argv) == cli.EXIT_OK
    (row,) = [row for row in rows(tmp_path / "d" / "series.csv") if row["reason"] == "not_input"]
    assert len(row["path"]) == 32
    assert row["patient"] == ""


@pytest.mark.parametrize("form", ["plain", "slash", "dot", "zip"])
def test_an_input_named_like_a_modality_is_a_heap(tmp_path: Path, monkeypatch, form: str) -> None:
    """Not one patient, named after what happens to lie above."""
    heap = tmp_path / "site" / "FLAIR"
    for patient in ("A7", "B8"):
        images(heap, patient)
        for path in heap.glob("Image-*.dcm"):
            path.rename(heap / f"{patient}-{path.name}")
    root = {"plain": str(heap), "slash": f"{heap}/", "dot": ".", "zip": f"{heap}.zip"}[form]
    if form == "zip":
        shutil.make_archive(str(heap), "zip", heap)
    monkeypatch.chdir(heap)
    assert convert(root, tmp_path / "d", "--modalities", "T1w,FLAIR") == cli.EXIT_OK
    assert sorted(p for p, _, _ in manifest(tmp_path / "d").patients) == ["A7", "B8"]
    assert survey.main([root, "--output", str(tmp_path / "s.csv")]) == cli.EXIT_OK
    assert {row["patient"] for row in rows(tmp_path / "s.csv")} == {"A7", "B8"}


def test_input_and_output_lie_beside_each_other(cohort: Path, tmp_path: Path) -> None:
    for root, output, message in (
        (cohort, cohort / "d", "--output .* lies inside --input"),
        (cohort, cohort, "--output .* lies inside --input"),
        (cohort, tmp_path, "--input .* lies inside --output"),
        (cohort / "00005", tmp_path, "--input .* lies inside --output"),
        ("s3://b/x/y", "s3://b/x", "--input .* lies inside --output"),
        ("s3://b/x.zip", "s3://b", "--input .* lies inside --output"),
    ):
        with pytest.raises(cli.UsageError, match=message):
            convert(root, output)
    (tmp_path / "link").symlink_to(cohort)
    with pytest.raises(cli.UsageError, match=r"--input .* lies inside --output"):
        convert(tmp_path / "link" / "00005", cohort)
    assert convert(cohort, tmp_path / "train2") == cli.EXIT_OK


@pytest.fixture
def refused(cohort: Path, monkeypatch) -> Path:
    """Every listing of 00006/T1w fails, as where there is no permission."""
    scandir, closed = os.scandir, str(cohort / "00006" / "T1w")

    def refusing(path):
        if str(path).rstrip("/") == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return cohort


def test_a_directory_that_cannot_be_listed_is_a_reject(refused: Path, tmp_path: Path, capsys):
    assert convert(refused, tmp_path / "d", "--strict") == cli.EXIT_REJECTED
    (row,) = rows(tmp_path / "d" / "rejects.csv")
    assert (row["scope"], row["subject"], row["files"]) == ("file", "00006/T1w/", "1")
    assert (row["patient"], row["modality"]) == ("00006", "T1w")
    assert row["reason"] == "unreadable_file"
    assert row["detail"] == "the directory cannot be listed: Permission denied"
    assert manifest(tmp_path / "d").counts["files"]["rejected"] == 1
    assert survey.main([str(refused), "--output", str(tmp_path / "s.csv")]) == cli.EXIT_OK
    assert "unreadable_file 1" in capsys.readouterr().out


def test_an_input_that_cannot_be_listed_is_wrong_usage(cohort: Path, tmp_path: Path, monkeypatch):
    def refusing(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(cli.UsageError, match="cannot be listed: Permission denied"):
        convert(cohort, tmp_path / "d")


def test_only_files_that_are_never_read_are_no_input(tmp_path: Path) -> None:
    (tmp_path / "heap" / ".git").mkdir(parents=True)
    for name in ("DICOMDIR", ".git/config"):
        (tmp_path / "heap" / name).write_text("x")
    with pytest.raises(cli.UsageError, match="holds no file but 2 that are never read"):
        convert(tmp_path / "heap", tmp_path / "d")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux is not installed")
def test_a_real_refusal_of_the_file_system_is_a_reject(cohort: Path) -> None:
    """Without root's power to read everything, where tests run as root."""
    closed = cohort / "00006"
    closed.chmod(0)
    command = [sys.executable, "-m", "beam_jobs.survey", str(cohort)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    finally:
        closed.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "files       6 = 5 used + 0 unused by rule + 1 rejected" in done.stdout
    assert "unreadable_file 1" in done.stdout
