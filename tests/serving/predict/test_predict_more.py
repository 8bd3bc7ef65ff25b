"""The batch job's other formats and files: columns, shards, rejects, skew, and what kills leave."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.tfrecord import read_records
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, export
from serving.model.loaded_model import LoadedModel
from serving.predict.spool import rows_beside
from tests.commands import outcome
from tests.datasets import make_cases, write_cases
from tests.serving.models import schema_of, spec_of, write_run

Command = Callable[..., tuple[int, str, str]]
ALL = "probability,logit,spread,flags"


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return lambda *argv: outcome(batch_predict.main, argv, capsys, monkeypatch)


def test_json_lines_hold_what_the_model_answered(
    predict: Command, model: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    spec = spec_of()
    schema = schema_of(spec)
    cases = make_cases(schema, patients=4, folds=2, unlabelled=2)
    without = cases[1].volume.copy()
    without[..., schema.modalities.index("T1wCE")] = 0
    cases[1] = dataclasses.replace(cases[1], present=(True, True, False), volume=without)
    write_cases(tmp_path / "data", cases, schema, folds=2, spec=spec)
    answers = {}
    for shard in (tmp_path / "data").glob("*.tfrecord"):
        with shard.open("rb") as stream:
            for answer in loaded.predict(list(read_records(stream))):
                answers[answer.patient_id] = answer
    argv = ("--model", model, "--input", tmp_path / "data", "--columns", ALL)
    for batch in (1, 8):
        output = ("--output", tmp_path / "preds.jsonl", "--output_shards", 2)
        code, out, _ = predict(*argv, *output, "--batch_size", batch)
        assert code == 0
        files = sorted(tmp_path.glob("preds-*"))
        assert [file.name for file in files] == [
            f"preds-0000{number}-of-00002.jsonl" for number in range(2)
        ]
        assert all(f"{file}: sha256 " in out for file in files)
        lines = [line for file in files for line in file.read_text().splitlines()]
        rows = [json.loads(line) for line in lines]
        assert [row["BraTS21ID"] for row in rows] == sorted(answers)
        for row in rows:
            answer = answers[row["BraTS21ID"]]
            for name, value in (
                ("MGMT_value", answer.values["probability"]),
                ("logit", answer.values["logit"]),
            ):
                assert np.float32(row[name]) == np.float32(value)
            assert np.float32(row["spread"]) == np.float32(answer.values["spread"]) > 0
            assert row["flags"] == ("missing_T1wCE" if row["BraTS21ID"] == "00001" else "")


def test_a_model_without_statistics_says_that_skew_is_not_measured(
    predict: Command, model: Path, dataset: Path, tmp_path: Path
) -> None:
    code, out, _ = predict("--model", model, "--input", dataset, "--output", tmp_path / "a.csv")
    assert code == 0
    assert "skew        not measured: the model has no training statistics" in out
    assert not (tmp_path / "a.skew.json").exists()


SPEC = PreprocessSpec(modalities=("FLAIR", "T1wCE"), shape=(12, 12, 6), dtype="uint8")


def convert(root: Path, output: Path, *argv: object) -> Path:
    flags = ("--input", root, "--output", output, "--quiet", *argv)
    recipe = ("--modalities", ",".join(SPEC.modalities), "--shape", ",".join(map(str, SPEC.shape)))
    assert dicom_to_tfrecord.main([str(part) for part in (*flags, *recipe)]) == 0
    return output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort, its training data converted, and a model that knows their statistics."""
    root = tmp_path_factory.mktemp("skew")
    config = PhantomConfig(
        patients=4, test_patients=3, seed=3, matrix=(24, 28), slices=(8, 9),
        modalities=SPEC.modalities, trouble_rate=0,
    )  # fmt: skip
    write_cohort(config, root / "cohort", workers=1)
    labels = ("--labels", root / "cohort" / "train_labels.csv", "--folds", 2)
    data = convert(root / "cohort" / "train", root / "data", *labels)
    manifest = Manifest.loads((data / "manifest.json").read_bytes())
    write_run(
        root / "run", spec=SPEC.to_json(), schema=SPEC.schema, modalities=SPEC.modalities,
        dataset_fingerprint=manifest.dataset_fingerprint,
    )  # fmt: skip
    argv = ("--runs", root / "run", "--data", data, "--output", root / "model")
    assert export.main([str(part) for part in argv]) == 0
    return root


def test_skew_is_the_same_from_dicom_and_from_records(
    predict: Command, place: Path, tmp_path: Path
) -> None:
    test = place / "cohort" / "test"
    data = convert(test, tmp_path / "data")
    texts = []
    for number, source in enumerate((test, data)):
        output = tmp_path / f"{number}.csv"
        code, out, _ = predict("--model", place / "model", "--input", source, "--output", output)
        assert code == 0
        assert "(3 patients against 4 of training)" in out
        texts.append((tmp_path / f"{number}.skew.json").read_text())
    assert texts[0] == texts[1]
    skew = json.loads(texts[0])
    assert skew["not_compared"] == []
    step = next(row for row in skew["compared"] if row["what"] == "step")
    assert sum(step["found"].values()) == pytest.approx(1)


def test_a_skewed_cohort_is_reported_and_answered_all_the_same(
    predict: Command, place: Path, tmp_path: Path
) -> None:
    data = convert(place / "cohort" / "test", tmp_path / "data")
    manifest = Manifest.loads((data / "manifest.json").read_bytes())
    cases = [
        dataclasses.replace(case, volume=np.full_like(case.volume, 255))
        for case in make_cases(SPEC.schema, patients=30, folds=2)
    ]
    bright = tmp_path / "bright"
    write_cases(bright, cases, manifest.schema, folds=2, spec=SPEC.to_json())
    output = tmp_path / "a.csv"
    code, out, _ = predict("--model", place / "model", "--input", bright, "--output", output)
    assert code == 0
    lines = out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("skew  "))
    assert "comparisons stand out" in lines[first]
    assert "intensity" in lines[first + 1]
    assert "1.00 (training 0." in lines[first + 1]
    assert len(lines) - first <= 5 + 2  # the table's own line, and the model's
    assert len(output.read_text().splitlines()) == 31
    assert json.loads((tmp_path / "a.skew.json").read_text())["drifted"]


def test_refused_files_of_an_answered_patient_stand_in_rejects_and_flags(
    predict: Command, place: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test"
    shutil.copytree(place / "cohort" / "test", test)
    damaged = sorted(test.iterdir())[0]
    slices = sorted((damaged / "FLAIR").iterdir())
    slices[3].write_bytes(b"no DICOM at all")
    output = tmp_path / "a.csv"
    argv = ("--model", place / "model", "--output", output, "--columns", ALL)
    assert predict(*argv, "--input", test)[0] == 0
    with output.open(newline="") as stream:
        flags = {row["BraTS21ID"]: row["flags"] for row in csv.DictReader(stream)}
    assert flags.pop(damaged.name) == "not_dicom"
    assert set(flags.values()) == {""}
    with (tmp_path / "a.rejects.csv").open(newline="") as stream:
        rejects = [(row["scope"], row["patient"], row["reason"]) for row in csv.DictReader(stream)]
    assert rejects == [("file", damaged.name, "not_dicom")]
    # A later run without refusals leaves none of an earlier one.
    assert predict(*argv, "--input", place / "cohort" / "test")[0] == 0
    assert not (tmp_path / "a.rejects.csv").exists()


def test_rows_of_killed_runs_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    killed = tmp_path / ".a.csv.voxelbeam-12345678"
    killed.mkdir()
    (killed / "rows-00001").write_text("{}\n")  # whatever of it was removed already
    foreign = tmp_path / ".a.csv.voxelbeam-mine"
    foreign.mkdir()
    with rows_beside(str(output)) as living:
        assert not killed.exists()
        with rows_beside(str(output)) as other:
            assert Path(living.directory).is_dir()
            assert living.directory != other.directory
    assert list(tmp_path.iterdir()) == [foreign]
