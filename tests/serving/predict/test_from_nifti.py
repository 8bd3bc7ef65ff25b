"""A cohort of NIfTI to a model, and its answers to NIfTI and to the DICOM of the same heads."""

import csv
import subprocess
from pathlib import Path

import dcm2niix
import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, export
from serving.api import load_model
from tests.commands import outcome
from trainer import task

pytestmark = pytest.mark.slow


def table(path: Path) -> dict[str, float]:
    with path.open(newline="") as stream:
        return {row[0]: float(row[1]) for row in list(csv.reader(stream))[1:]}


def test_a_model_learnt_from_nifti_answers_dicom_alike(tmp_path, capsys, monkeypatch):
    config = PhantomConfig(
        patients=8, test_patients=3, seed=5, matrix=(32, 36), slices=(16, 18), trouble_rate=0.0,
        modalities=("FLAIR", "T1wCE"),
    )  # fmt: skip
    write_cohort(config, tmp_path / "dicom")
    for series in sorted((tmp_path / "dicom").glob("t*/*/*")):
        split, person, modality = series.parts[-3:]
        name = f"sub-{person}_{'ce-gd_T1w' if modality == 'T1wCE' else 'FLAIR'}"
        anat = tmp_path / split / f"sub-{person}" / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        command = [dcm2niix.bin, "-z", "y", "-f", name, "-o", str(anat), str(series)]
        subprocess.run(command, check=True, capture_output=True)
    with (tmp_path / "dicom" / "train_labels.csv").open() as lines:
        rows = [(int(row["BraTS21ID"]), row["MGMT_value"]) for row in csv.DictReader(lines)]
    text = "".join(f"sub-{number:05}\t{label}\n" for number, label in rows)
    (tmp_path / "train" / "participants.tsv").write_text(f"participant_id\tgroup\n{text}")
    argv = [
        *("--input", tmp_path / "train", "--output", tmp_path / "ds", "--shape", "24,24,12"),
        *("--labels", tmp_path / "train" / "participants.tsv", "--id_column", "participant_id"),
        *("--label_column", "group", "--folds", "2", "--modalities", "FLAIR,T1wCE", "--quiet"),
    ]
    assert dicom_to_tfrecord.main(list(map(str, argv))) == 0
    assert "NIfTI-1" in (tmp_path / "ds" / "series.csv").read_text()
    argv = ["--data", tmp_path / "ds", "--output_dir", tmp_path / "run", "--epochs", "1"]
    assert task.main([*map(str, argv), "--cross_validate", "--batch_size", "4"]) == 0
    argv = ["--runs", tmp_path / "run", "--output", tmp_path / "model", "--data", tmp_path / "ds"]
    assert export.main(list(map(str, argv))) == 0
    answers = {}
    for name, source in (("nifti", tmp_path / "test"), ("dicom", tmp_path / "dicom" / "test")):
        argv = [
            "--model",
            tmp_path / "model",
            "--input",
            source,
            "--output",
            tmp_path / f"{name}.csv",
        ]
        code, out, err = outcome(batch_predict.main, argv, capsys, monkeypatch)
        assert (code, err) == (0, "")
        assert "field strength" not in out  # which NIfTI does not tell
        answers[name] = table(tmp_path / f"{name}.csv")
    assert len(answers["dicom"]) == 3
    for person, probability in answers["dicom"].items():
        assert answers["nifti"][f"sub-{person}"] == pytest.approx(probability, abs=1e-3)
    found = load_model(tmp_path / "model").predict(tmp_path / "test")
    assert found.attrs["rejects"].empty  # of sidecars, too
    assert dict(zip(found.patient_id, found.probability, strict=True)) == pytest.approx(
        answers["nifti"], abs=1e-6
    )
