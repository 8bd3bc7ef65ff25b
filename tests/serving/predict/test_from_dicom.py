"""Keystone: DICOM straight to predictions is DICOM to records to predictions, to the last byte."""

import csv
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pydicom
import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.api import open_dataset
from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, fingerprint
from beam_jobs.core.cohort.ids import study_id
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, export
from serving.api import load_model
from tests.commands import outcome
from tests.datasets import make_cases, write_cases
from tests.serving.models import write_run

SPEC = PreprocessSpec(modalities=("FLAIR", "T1wCE"), shape=(12, 12, 6), dtype="uint8")

Command = Callable[..., tuple[int, str, str]]
ALL = "probability,logit,spread,flags"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms to predict, one of them without T1wCE, and a patient of unreadable files."""
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
    for file in (first / "T1wCE").iterdir():
        file.unlink()
    broken = root / "test" / "00999" / "FLAIR" / "Image-1.dcm"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no DICOM at all")
    return root


@pytest.fixture(scope="module")
def dicom_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dicom_model")
    write_run(
        directory / "run", spec=SPEC.to_json(), schema=SPEC.schema, modalities=SPEC.modalities
    )
    export.main(["--runs", str(directory / "run"), "--output", str(directory / "model")])
    return directory / "model"


@pytest.fixture
def predict(
    dicom_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    def run(*argv: object) -> tuple[int, str, str]:
        given = ("--model", dicom_model, *argv)
        return outcome(batch_predict.main, given, capsys, monkeypatch)

    return run


def convert(root: Path, output: Path, *argv: object) -> None:
    """The conversion with the model's recipe."""
    flags: dict[str, object] = {
        "--input": root,
        "--output": output,
        "--modalities": ",".join(SPEC.modalities),
        "--shape": ",".join(map(str, SPEC.shape)),
    }
    pairs = [str(part) for pair in flags.items() for part in pair]
    assert dicom_to_tfrecord.main([*pairs, "--quiet", *map(str, argv)]) == 0


def table(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as stream:
        return [tuple(row) for row in csv.reader(stream)][1:]


def test_dicom_and_its_records_give_the_same_predictions(
    predict: Command, cohort: Path, dicom_model: Path, tmp_path: Path
) -> None:
    convert(cohort / "test", tmp_path / "dataset")
    from_records, from_dicom = tmp_path / "records.csv", tmp_path / "dicom.csv"
    assert predict("--input", tmp_path / "dataset", "--output", from_records)[0] == 0
    code, _, err = predict("--input", cohort / "test", "--output", from_dicom, "--batch_size", 1)
    assert (code, err) == (0, "")
    rows = table(from_dicom)
    assert [row for row in rows if row[0] != "00999"] == table(from_records)
    assert len(table(from_records)) == 3
    assert len({value for _, value in rows}) == 4
    # And so does the model in this process.
    model = load_model(dicom_model)
    for source in (tmp_path / "dataset", cohort / "test"):
        answers = model.predict(source)
        shown = [(row.patient_id, f"{row.probability:.9g}") for row in answers.itertuples()]
        assert sorted(shown) == sorted(table(from_records))
        # pandas' own type for texts, whichever pandas it is.
        assert answers.dtypes[["patient_id", "missing"]].tolist() == 2 * [pd.Series(["a"]).dtype]
    assert answers.attrs["rejects"].reason.tolist().count("not_dicom") == 1
    cases = open_dataset(tmp_path / "dataset").cases()
    assert model.predict(cases).equals(model.predict(tmp_path / "dataset"))
    with pytest.raises(TypeError, match=r"bytes required, 'a\.tfrecord' found"):
        model.predict(["a.tfrecord"])  # type: ignore[arg-type]


def test_a_patient_that_cannot_be_prepared_gets_the_prevalence_and_a_reason(
    predict: Command, cohort: Path, tmp_path: Path
) -> None:
    output = tmp_path / "submission.csv"
    assert predict("--input", cohort / "test", "--output", output)[0] == 0
    assert [row for row in table(output) if row[0] == "00999"] == [("00999", "0.52")]
    assert [row[:2] for row in table(tmp_path / "submission.failures.csv")] == [
        ("00999", "not_dicom")
    ]


@pytest.mark.parametrize(
    "kind", ["zip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tar", "gztar"))]
)
def test_an_archive_gives_the_predictions_of_its_unpacked_directory(
    predict: Command, cohort: Path, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(cohort / "test", tmp_path / "unpacked" / "test")
    archive = shutil.make_archive(str(tmp_path / "test"), kind, cohort / "test")
    for source, name in ((tmp_path / "unpacked" / "test", "from_directory"), (archive, "archive")):
        output = tmp_path / name / "a.csv"
        assert predict("--input", source, "--output", output, "--columns", ALL)[0] == 0
    written = sorted((tmp_path / "from_directory").iterdir())
    assert [file.name for file in written] == ["a.csv", "a.failures.csv", "a.rejects.csv"]
    for file in written:
        assert (tmp_path / "archive" / file.name).read_bytes() == file.read_bytes()


def test_the_sample_submission_of_a_cohort_is_answered_row_by_row(
    predict: Command, cohort: Path, tmp_path: Path
) -> None:
    output = tmp_path / "submission.csv"
    sample = cohort / "sample_submission.csv"
    assert predict("--input", cohort / "test", "--output", output, "--ids", sample)[0] == 0
    assert [row[0] for row in table(output)] == [row[0] for row in table(sample)]
    assert table(tmp_path / "submission.failures.csv") == []


def test_hashed_ids_are_those_of_the_conversion(
    predict: Command, cohort: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("a secret of more than sixteen bytes\n")
    policy = ("--id_policy", "hmac", "--id_key", key)
    convert(cohort / "test", tmp_path / "dataset", *policy)
    from_records, from_dicom = tmp_path / "records.csv", tmp_path / "dicom.csv"
    assert predict("--input", tmp_path / "dataset", "--output", from_records)[0] == 0
    assert predict("--input", cohort / "test", "--output", from_dicom, *policy)[0] == 0
    assert set(table(from_records)) <= set(table(from_dicom))
    assert "00999" not in from_dicom.read_text()
    for name in ("dicom.failures.csv", "dicom.rejects.csv"):
        assert "00999" not in (tmp_path / name).read_text()
        assert (tmp_path / name).read_text().count("\n") > 1


def test_real_ids_are_found_in_hashed_records_and_of_dicom_with_the_key(
    predict: Command, cohort: Path, tmp_path: Path
) -> None:
    key, wrong = tmp_path / "key", tmp_path / "wrong"
    key.write_text("a secret of more than sixteen bytes\n")
    wrong.write_text("another secret, longer than sixteen\n")
    policy = ("--id_policy", "hmac", "--id_key", key)
    dataset, clear = tmp_path / "dataset", tmp_path / "clear"
    convert(cohort / "test", dataset, *policy)
    first, second = (path.name for path in sorted((cohort / "test").iterdir())[:2])
    requested = [second.lstrip("0"), first, "00999", "A-patient"]
    ids = tmp_path / "ids.csv"
    ids.write_text("BraTS21ID\n" + "\n".join(requested) + "\n")
    outputs = []
    for root in (dataset, cohort / "test"):
        outputs.append(tmp_path / f"{root.name}.csv")
        argv = ("--input", root, "--output", outputs[-1], "--ids", ids, *policy)
        code, _, err = predict(*argv)
        assert (code, err) == (0, "")
        failures = outputs[-1].with_suffix(".failures.csv").read_text()
        assert not any(name in failures for name in (*requested[2:], first, second))
        assert failures.count("\n") == 3
    assert outputs[0].read_text() == outputs[1].read_text()
    assert [name for name, _ in table(outputs[0])] == requested
    assert len({value for _, value in table(outputs[0])}) == 3
    # What cannot match says why.
    output = ("--output", tmp_path / "none.csv", "--ids", ids)
    for root, options, code, message in (
        (dataset, (), 1, "its ids are hashed"),
        (dataset, (*policy[:-1], wrong), 1, "is --id_key the key"),
        (dataset / "*.tfrecord", policy, 2, "--id_policy hmac is for"),
    ):
        found, _, err = predict("--input", root, *output, *options)
        assert (found, err.count("\n")) == (code, 1)
        assert message in err
    convert(cohort / "test", clear)
    found, _, err = predict("--input", clear, *output, *policy)
    assert found == 2
    assert "are not hashed" in err
    ids.write_text(f"BraTS21ID\n{second}\n{second.lstrip('0')}\n")
    found, _, err = predict("--input", dataset, *output, *policy)
    assert found == 2
    assert "rows 1 and 2 name one patient" in err


def test_patients_are_who_the_user_says(
    predict: Command, cohort: Path, dicom_model: Path, tmp_path: Path
) -> None:
    """By study, as in a conversion; what cannot be listed or is never read stops nobody."""
    heap = tmp_path / "heap"
    uids = set()
    for number, path in enumerate(sorted((cohort / "test").rglob("*/FLAIR/*.dcm"))):
        if "00999" not in path.parts:
            dataset = pydicom.dcmread(path)
            dataset.PatientID = "ANONYMOUS"
            (heap / path.parts[-3]).mkdir(parents=True, exist_ok=True)
            dataset.save_as(heap / path.parts[-3] / f"{number}.dcm")
            uids.add(dataset.StudyInstanceUID)
    (heap / ".DS_Store").write_text("x")
    code, _, err = predict("--input", heap, "--output", tmp_path / "none.csv")
    assert (code, err.count("\n")) == (1, 1)
    assert "3 series are nobody's: --patient_from directory or study says whose" in err
    assert f"see {tmp_path / 'none.rejects.csv'}" in err
    found = table(tmp_path / "none.rejects.csv")
    assert [row[4] for row in found] == ["no_patient_id"] * 3
    choice = ("--patient_from", "study")
    convert(heap, tmp_path / "dataset", *choice)
    from_records, from_dicom = tmp_path / "records.csv", tmp_path / "dicom.csv"
    assert predict("--input", tmp_path / "dataset", "--output", from_records)[0] == 0
    assert predict("--input", heap, "--output", from_dicom, *choice)[0] == 0
    assert table(from_dicom) == table(from_records)
    assert {row[0] for row in table(from_dicom)} == set(map(study_id, uids))
    assert not (tmp_path / "dicom.rejects.csv").exists()
    model = load_model(dicom_model)
    answers = model.predict(heap, patient_from="directory")
    names = [path.name for path in (cohort / "test").iterdir() if path.name != "00999"]
    assert sorted(answers.patient_id) == sorted(names)
    with pytest.raises(ValueError, match="patient_from 'series' is none of"):
        model.predict(heap, patient_from="series")
    for records in (tmp_path / "dataset", open_dataset(tmp_path / "dataset").cases()):
        with pytest.raises(UsageError, match="patient_from is for DICOM"):
            model.predict(records, patient_from="study")
    output = ("--output", tmp_path / "no.csv")
    code, _, err = predict("--input", tmp_path / "dataset", *output, *choice)
    assert code == 2
    assert "--patient_from is for DICOM" in err


def test_people_whom_no_row_stands_for_are_told(
    predict: Command, cohort: Path, tmp_path: Path
) -> None:
    first, other = sorted((cohort / "test").rglob("*/FLAIR"))[:2]
    heap = tmp_path / "heap"
    for number, path in enumerate((*first.iterdir(), *other.iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "P1" if path.parent == first else "ANONYMOUS"
        heap.mkdir(exist_ok=True)
        dataset.save_as(heap / f"{number}.dcm")
    (tmp_path / "ids.csv").write_text("BraTS21ID\nP1\n")
    argv = ("--input", heap, "--output", tmp_path / "p.csv", "--strict")
    code, out, _ = predict(*argv)
    assert (code, [row[0] for row in table(tmp_path / "p.csv")]) == (8, ["P1"])
    assert "mind        1 series is nobody's: --patient_from directory or study says whose" in out
    assert predict(*argv, "--ids", tmp_path / "ids.csv")[0] == 0  # who was requested is there


def test_a_directory_that_cannot_be_listed_is_a_reject(
    predict: Command, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, closed = [path for path in sorted((cohort / "test").iterdir()) if path.name != "00999"][
        :2
    ]
    shutil.copytree(first, tmp_path / "test" / first.name)
    shutil.copytree(closed, tmp_path / "test" / closed.name)
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path == str(tmp_path / "test" / closed.name / "FLAIR"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert predict("--input", tmp_path / "test", "--output", tmp_path / "a.csv")[0] == 0
    assert [row[0] for row in table(tmp_path / "a.csv")] == [first.name, closed.name]
    (row,) = table(tmp_path / "a.rejects.csv")
    assert (row[1], row[2], row[4]) == (f"{closed.name}/FLAIR/", closed.name, "unreadable_file")


def test_an_empty_directory_is_one_line(predict: Command, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, out, err = predict("--input", empty, "--output", tmp_path / "submission.csv")
    assert (code, out) == (1, "")
    assert "no patient could be predicted (the input holds none)" in err
    assert err.count("\n") == 1


def test_a_model_of_another_recipe_predicts_records_but_no_dicom(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = {**SPEC.to_json(), "recipe": 1, "field_of_recipe_1": True}
    schema = dataclasses.replace(SPEC.schema, spec_fingerprint=fingerprint(spec))
    write_run(tmp_path / "run", spec=spec, schema=schema, modalities=SPEC.modalities)
    model, output = tmp_path / "model", tmp_path / "submission.csv"
    export.main(["--runs", str(tmp_path / "run"), "--output", str(model)])
    given = ("--model", model, "--output", output, "--input")
    code, _, err = outcome(batch_predict.main, (*given, cohort / "test"), capsys, monkeypatch)
    assert (code, err.count("\n")) == (1, 1)
    assert f"model {model} cannot predict from DICOM: " in err
    assert "recipe 1, this version knows recipes 2 and 3: convert and train again" in err
    assert not output.exists()
    with pytest.raises(ContractError, match=r"recipe 1, .* convert and train again"):
        load_model(model).predict(cohort / "test")
    dataset = tmp_path / "dataset"
    write_cases(dataset, make_cases(schema, patients=4, folds=2), schema, folds=2, spec=spec)
    code, _, err = outcome(batch_predict.main, (*given, dataset), capsys, monkeypatch)
    assert (code, err) == (0, "")
