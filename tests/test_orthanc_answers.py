"""Answers go back to a real PACS, and come back as they were stored."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset

from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, export
from tests.commands import outcome
from tests.orthanc import Orthanc, orthanc
from tests.serving.models import write_run

pytestmark = [pytest.mark.slow, pytest.mark.emulator]
SPEC = PreprocessSpec(modalities=("FLAIR", "T1wCE"), shape=(12, 12, 6), dtype="uint8")
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "orthanc") as started:
        yield started


def reports_of(server: Orthanc) -> dict[str, bytes]:
    """The SRs that a server holds: SOPInstanceUID -> bytes, by its own interface."""
    found = {}
    for name in server.get("/instances"):
        data = server.request("GET", f"/instances/{name}/file")
        header = pydicom.dcmread(io.BytesIO(data))
        if header.SOPClassUID == REPORT:
            found[str(header.SOPInstanceUID)] = data
    return found


def test_reports_are_stored_in_the_pacs_that_the_images_came_from_and_read_back_the_same(
    server: Orthanc,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VOXELBEAM_SPOOL", str(tmp_path / "spool"))
    config = PhantomConfig(
        patients=2,
        test_patients=3,
        seed=3,
        matrix=(24, 28),
        slices=(8, 9),
        modalities=SPEC.modalities,
    )
    cohort = tmp_path / "cohort"
    write_cohort(config, cohort)
    run, model = tmp_path / "run", tmp_path / "model"
    write_run(run, spec=SPEC.to_json(), schema=SPEC.schema, modalities=SPEC.modalities)
    export.main(["--runs", str(run), "--output", str(model)])
    server.store(sorted((cohort / "test").rglob("*.dcm")))

    def predict(source: object, reports: object, name: str) -> list[dict[str, Any]]:
        """The rows, predicted, of patients as they are called in the headers."""
        output = tmp_path / f"{name}.csv"
        places = ("--input", source, "--output", output, "--dicom_sr", reports)
        argv = ("--model", model, *places, "--patient_from", "patient_id")
        code, out, err = outcome(batch_predict.main, argv, capsys, monkeypatch)
        assert (code, err) == (0, ""), out + err
        assert "3 in " in out
        with output.open(newline="") as stream:
            return list(csv.DictReader(stream))

    directory = tmp_path / "reports"
    rows = predict(cohort / "test", directory, "from_directory")
    assert predict(server.root, server.root, "from_pacs") == rows
    expected = {
        str(pydicom.dcmread(path).SOPInstanceUID): path.read_bytes() for path in directory.iterdir()
    }
    assert len(expected) == 3
    assert reports_of(server) == expected
    # As another client finds and reads them.
    client = DICOMwebClient(f"{server.url}/dicom-web")
    listed = client.search_for_series(search_filters={"Modality": "SR"})
    found = [
        report
        for series in map(Dataset.from_json, listed)
        for report in client.retrieve_series(series.StudyInstanceUID, series.SeriesInstanceUID)
    ]
    assert {str(one.SOPInstanceUID): one for one in found} == {
        uid: pydicom.dcmread(io.BytesIO(data)) for uid, data in expected.items()
    }

    # The reports are no input of the next run, and stored twice they are there once.
    assert predict(server.root, server.root, "again") == rows
    assert reports_of(server) == expected
    rejects = tmp_path / "again.rejects.csv"
    assert not rejects.exists() or "no_pixels" not in rejects.read_text()


def test_a_pacs_that_denies_access_is_told_before_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with orthanc(tmp_path / "orthanc", users={"me": "right"}) as server:
        monkeypatch.setenv("DICOMWEB_USERNAME", "me")
        monkeypatch.setenv("DICOMWEB_PASSWORD", "canary-wrong")
        (tmp_path / "cohort").mkdir()
        (tmp_path / "model").mkdir()
        output = tmp_path / "out.csv"
        argv = ("--model", tmp_path / "model", "--input", tmp_path / "cohort")
        places = ("--output", output, "--dicom_sr", server.root)
        code, out, err = outcome(batch_predict.main, (*argv, *places), capsys, monkeypatch)
    assert code != 0
    assert "401" in err
    assert "canary" not in out + err
    assert len(err.strip().splitlines()) == 1
    assert not output.exists()
