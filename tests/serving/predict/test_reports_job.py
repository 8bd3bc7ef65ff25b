"""Batch prediction with reports: a report a predicted patient, with the submission's number."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
from highdicom.sr import ComprehensiveSR

from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, export
from tests.commands import outcome
from tests.serving.models import write_run

SPEC = PreprocessSpec(modalities=("FLAIR", "T1wCE"), shape=(12, 12, 6), dtype="uint8")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms, one of them without T1wCE, and a patient of unreadable files."""
    root = tmp_path_factory.mktemp("dicom") / "cohort"
    config = PhantomConfig(
        patients=2,
        test_patients=3,
        seed=3,
        matrix=(24, 28),
        slices=(8, 9),
        modalities=SPEC.modalities,
    )
    write_cohort(config, root)
    first = sorted((root / "test").iterdir())[0]
    shutil.rmtree(first / "T1wCE")
    (root / "test" / "00999" / "FLAIR").mkdir(parents=True)
    (root / "test" / "00999" / "FLAIR" / "Image-1.dcm").write_bytes(b"no DICOM at all")
    return root / "test"


@pytest.fixture(scope="module")
def dicom_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dicom_model")
    write_run(
        directory / "run", spec=SPEC.to_json(), schema=SPEC.schema, modalities=SPEC.modalities
    )
    export.main(["--runs", str(directory / "run"), "--output", str(directory / "model")])
    return directory / "model"


def values_of(path: Path) -> list[float]:
    report: Any = ComprehensiveSR.from_dataset(pydicom.dcmread(path))
    return [
        one.value
        for group in report.content.get_image_measurement_groups()
        for one in group.get_measurements()
    ]


@pytest.mark.slow
def test_a_job_reports_whom_it_predicts_and_again_the_same_bytes(
    cohort: Path,
    dicom_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def predict(*argv: object) -> tuple[int, str, str]:
        given = ("--model", dicom_model, "--output", tmp_path / "out.csv", *argv)
        return outcome(batch_predict.main, given, capsys, monkeypatch)

    code, out, err = predict("--input", cohort, "--dicom_sr", tmp_path / "sr")
    assert (code, err) == (0, "")
    assert f"3 in {tmp_path / 'sr'}" in out
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = {row["BraTS21ID"]: float(row["MGMT_value"]) for row in csv.DictReader(stream)}
    reports = {path.stem: path for path in (tmp_path / "sr").iterdir()}
    assert {*rows} - {*reports} == {"00999"}
    for patient, path in reports.items():
        assert values_of(path) == [rows[patient]]
        report = pydicom.dcmread(path)
        assert report.PatientID == patient
        images = [pydicom.dcmread(file) for file in (cohort / patient).rglob("*.dcm")]
        assert {one.StudyInstanceUID for one in images} == {report.StudyInstanceUID}
        [study] = report.CurrentRequestedProcedureEvidenceSequence
        named = {
            (series.SeriesInstanceUID, image.ReferencedSOPInstanceUID)
            for series in study.ReferencedSeriesSequence
            for image in series.ReferencedSOPSequence
        }
        assert named == {(one.SeriesInstanceUID, one.SOPInstanceUID) for one in images}

    before = {name: path.read_bytes() for name, path in reports.items()}
    # Elsewhere, by several workers, of some of the patients, and with a report among the images.
    moved = shutil.copytree(cohort, tmp_path / "moved")
    shutil.copy(reports["00006"], moved / "00006" / "FLAIR" / "report.dcm")
    (tmp_path / "ids.csv").write_text("BraTS21ID\n6\n00007\n")
    code, out, err = predict(
        *("--input", moved, "--dicom_sr", tmp_path / "sr", "--ids", tmp_path / "ids.csv"),
        *("--direct_num_workers", 2, "--direct_running_mode", "multi_processing"),
    )
    assert (code, err) == (0, "")
    assert f"2 in {tmp_path / 'sr'}" in out
    assert {path.stem: path.read_bytes() for path in (tmp_path / "sr").iterdir()} == before

    # What cannot be written costs no answers.
    (tmp_path / "out.csv").unlink()
    reports["00006"].write_bytes(b"somebody's")
    code, out, err = predict("--input", cohort, "--dicom_sr", tmp_path / "sr")
    assert code not in (0, 8)
    assert "00006.dcm lies there, and no prediction wrote it" in err
    assert len(err.splitlines()) == 1
    assert not any(line.startswith("reports") for line in out.splitlines())
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 4
    assert reports["00006"].read_bytes() == b"somebody's"


@pytest.mark.slow
def test_records_have_no_reports(
    dataset: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ("--model", model, "--input", dataset, "--output", tmp_path / "out.csv")
    code, _, err = outcome(
        batch_predict.main, (*given, "--dicom_sr", tmp_path / "sr"), capsys, monkeypatch
    )
    assert code != 0
    assert (
        err.strip()
        .splitlines()[-1]
        .endswith("--dicom_sr is for DICOM; records do not say which images they are of")
    )
    assert not list(tmp_path.iterdir())
