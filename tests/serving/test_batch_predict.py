"""The batch job from records: one row a patient, exactly, and one clear line for what is wrong."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.core.tfrecord import read_records
from serving import batch_predict
from serving.model.loaded_model import LoadedModel
from tests.commands import outcome
from tests.datasets import make_cases, write_cases
from tests.serving.models import ROOT, python, schema_of, spec_of

Command = Callable[..., tuple[int, str, str]]

PREVALENCE = 0.52
IDS = [f"{number:05d}" for number in range(11)]


@pytest.fixture
def predict(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs the command with the session's model, as its user meets it."""

    def run(*argv: object) -> tuple[int, str, str]:
        given = argv if "--model" in argv else ("--model", model, *argv)
        return outcome(batch_predict.main, given, capsys, monkeypatch)

    return run


def table(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as stream:
        return [tuple(row) for row in csv.reader(stream)]


def answers(dataset: Path, loaded: LoadedModel) -> dict[str, np.float32]:
    """Every patient's probability, predicted one by one."""
    examples = []
    for shard in sorted(dataset.glob("*.tfrecord")):
        with shard.open("rb") as stream:
            examples += list(read_records(stream))
    found = [loaded.predict([example])[0] for example in examples]
    return {answer.patient_id: np.float32(answer.values["probability"]) for answer in found}


def damage(dataset: Path, copy: Path, at: float) -> tuple[Path, list[str]]:
    """A copy whose first shard has a flipped bit; the shard's patients in order."""
    shutil.copytree(dataset, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    first = manifest["shards"][0]
    file = copy / first["name"]
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.write_bytes(data)
    return copy, [patient["patient_id"] for patient in first["patients"]]


def test_every_record_gets_its_models_answer_sorted_by_id(
    predict: Command, dataset: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "submission.csv"
    code, out, err = predict("--input", dataset, "--output", output)
    assert (code, err) == (0, "")
    assert out.startswith("patients    11: 11 predicted, 0 not")
    header, *rows = table(output)
    assert header == ("BraTS21ID", "MGMT_value")
    expected = answers(dataset, loaded)
    assert [(name, np.float32(value)) for name, value in rows] == [
        (name, expected[name]) for name in IDS
    ]
    assert len({value for _, value in rows}) == len(rows)
    assert table(output.with_name("submission.failures.csv")) == [
        ("patient_id", "reason", "detail")
    ]
    assert len(list(output.parent.iterdir())) == 2


def test_neither_source_nor_batches_nor_threads_change_a_byte(
    predict: Command, dataset: Path, tmp_path: Path
) -> None:
    written = set()
    for number, argv in enumerate(
        (
            ("--input", dataset),
            ("--input", dataset / "*.tfrecord", "--batch_size", 1),
            ("--input", dataset, "--batch_size", 3)
            + ("--direct_running_mode=multi_threading", "--direct_num_workers=2"),
        )
    ):
        output = tmp_path / f"{number}.csv"
        assert predict(*argv, "--output", output)[0] == 0
        written.add(output.read_bytes())
    assert len(written) == 1


def test_requested_ids_are_answered_in_their_order_and_spelling(
    predict: Command, dataset: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    ids = tmp_path / "sample.csv"
    ids.write_text("case,score\n7,0.5\n00002,0.5\n999,0.5\n")
    output = tmp_path / "submission.csv"
    columns = ("--id_column", "case", "--value_column", "p")
    code, _, _ = predict("--input", dataset, "--output", output, "--ids", ids, *columns)
    assert code == 0
    expected = answers(dataset, loaded)
    header, *rows = table(output)
    assert header == ("case", "p")
    assert [(name, np.float32(value)) for name, value in rows] == [
        ("7", expected["00007"]),
        ("00002", expected["00002"]),
        ("999", np.float32(PREVALENCE)),
    ]
    assert [row[:2] for row in table(tmp_path / "submission.failures.csv")[1:]] == [
        ("999", "not_in_input")
    ]


def test_a_damaged_record_costs_its_patient_alone(
    predict: Command, dataset: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    damaged, patients = damage(dataset, tmp_path / "damaged", at=0.25)
    output = tmp_path / "submission.csv"
    code, out, _ = predict("--input", damaged, "--output", output, "--strict")
    assert code == 8
    assert "corrupt_record 1, shard_differs 1" in out
    expected = {**answers(dataset, loaded), patients[0]: np.float32(PREVALENCE)}
    assert [(name, np.float32(value)) for name, value in table(output)[1:]] == [
        (name, expected[name]) for name in IDS
    ]
    first, second = table(tmp_path / "submission.failures.csv")[1:]
    assert first[:2] == (patients[0], "corrupt_record")
    assert second[:2] == ("", "shard_differs")
    assert "fold-0-00000-of-00002.tfrecord" in second[2]


def test_a_record_whose_framing_is_lost_costs_its_patient_alone(
    predict: Command, dataset: Path, tmp_path: Path
) -> None:
    damaged, patients = damage(dataset, tmp_path / "damaged", at=0.0)
    output = tmp_path / "submission.csv"
    assert predict("--input", damaged, "--output", output)[0] == 0
    assert [name for name, _ in table(output)[1:]] == IDS
    failed = table(tmp_path / "submission.failures.csv")[1:]
    assert sorted(row[0] for row in failed) == sorted([patients[0], ""])
    assert [row[1] for row in failed if not row[0]] == ["shard_differs"]


def test_a_shard_exchanged_for_another_sound_one_is_reported(
    predict: Command, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    first, second = sorted(copy.glob("fold-0-*.tfrecord"))
    lost = [
        patient["patient_id"]
        for shard in json.loads((copy / "manifest.json").read_text())["shards"]
        for patient in shard["patients"]
        if shard["name"] == first.name
    ]
    first.write_bytes(next(copy.glob("unlabelled-*.tfrecord")).read_bytes())
    second.unlink()
    ids = tmp_path / "ids.csv"
    ids.write_text("BraTS21ID\n" + "\n".join(lost) + "\n00008\n")
    output = tmp_path / "submission.csv"
    (copy / "unlabelled-00000-of-00001.tfrecord").unlink()
    assert predict("--input", copy, "--output", output, "--ids", ids)[0] == 0
    failed = table(tmp_path / "submission.failures.csv")[1:]
    assert [row[:2] for row in failed] == [
        *((name, "shard_differs") for name in lost),
        ("", "shard_differs"),
    ]
    assert all(first.name in row[2] for row in failed)


def test_a_manifest_of_random_bytes_is_one_line(
    predict: Command, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    (copy / "manifest.json").write_bytes(bytes(range(128, 256)))
    code, _, err = predict("--input", copy, "--output", tmp_path / "submission.csv")
    assert (code, err.count("\n")) == (1, 1)
    assert "manifest.json: not UTF-8 text" in err


def test_a_missing_shard_costs_its_patients(
    predict: Command, dataset: Path, tmp_path: Path
) -> None:
    damaged, patients = damage(dataset, tmp_path / "damaged", at=0.0)
    next(iter(sorted(damaged.glob("*.tfrecord")))).unlink()
    output = tmp_path / "submission.csv"
    assert predict("--input", damaged, "--output", output)[0] == 0
    failed = {row[0]: row[1] for row in table(tmp_path / "submission.failures.csv")[1:]}
    assert failed == dict.fromkeys(patients, "unreadable_shard")


def test_without_any_prediction_there_is_no_submission(
    predict: Command, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    for shard in copy.glob("*.tfrecord"):
        shard.write_bytes(b"nothing that is a record")
    output = tmp_path / "submission.csv"
    code, _, err = predict("--input", copy, "--output", output)
    assert code == 1
    assert "no patient could be predicted (corrupt_record 11, shard_differs 5)" in err
    assert err.count("\n") == 1
    assert not output.exists()
    assert len(table(tmp_path / "submission.failures.csv")) == 1 + 11 + 5


@pytest.mark.parametrize("pattern", ["", "*.tfrecord"])
def test_records_of_another_recipe_are_refused_by_field(
    predict: Command, tmp_path: Path, pattern: str
) -> None:
    spec = spec_of(dtype="uint16")
    schema = schema_of(spec)
    other = tmp_path / "other"
    write_cases(other, make_cases(schema, patients=4, folds=2), schema, folds=2, spec=spec)
    output = tmp_path / "submission.csv"
    code, _, err = predict("--input", other / pattern, "--output", output)
    assert code == 1
    assert "dtype: 'uint8' in" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [other]


def test_shards_without_a_manifest_are_not_taken_for_dicom(
    predict: Command, dataset: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "dataset"
    shutil.copytree(dataset, copy)
    (copy / "manifest.json").unlink()
    code, _, err = predict("--input", copy, "--output", tmp_path / "submission.csv")
    assert code == 1
    assert "no manifest.json" in err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--model", "nowhere"), 2, "--model: nowhere does not exist"),
        (("--model", "{tmp}"), 1, "is not a voxelbeam model"),
        (("--input", "nowhere"), 2, "--input: nowhere does not exist"),
        (("--input", "{tmp}/*.tfrecord"), 2, "no file matches"),
        (("--input", "{tmp}/fold-?.tfrecord"), 2, "no file matches"),
        (("--input", "{tmp}/none.tfrecord"), 2, "none.tfrecord does not exist"),
        (("--ids", "nowhere.csv"), 2, "--ids: nowhere.csv does not exist"),
        (("--ids", "{dataset}/manifest.json"), 2, "no column BraTS21ID"),
        (("--output", "{tmp}"), 2, "is a directory"),
        (("--output", "{tmp}/table.xls"), 2, "must end in .csv, .jsonl, .parquet"),
        (("--output_shards", "2"), 2, "--output_shards is for .jsonl"),
        (("--columns", "probability,odds"), 2, "odds is none of probability, logit"),
        (("--columns", "logit,logit"), 2, "are not distinct"),
        (("--id_column", "\udcff"), 2, "not UTF-8"),
        (("--batch_mb", "0"), 2, "--batch_mb"),
        (("--batch_size", "0"), 2, "--batch_size"),
        (("--batch_size", "x"), 2, "--batch_size"),
        (("--no_such_option", "1"), 2, "--no_such_option"),
        (("--id_policy", "hmac"), 2, "needs --id_key FILE"),
        (("--id_key", "{dataset}/manifest.json"), 2, "but --id_policy is keep"),
        (("--id_key", "nowhere"), 2, "--id_key: nowhere does not exist"),
        (
            ("--shared_disk", "--runner=PortableRunner", "--job_endpoint=somewhere:1"),
            2,
            "no TensorFlow can be installed",
        ),
        (
            ("--runner=PortableRunner", "--job_endpoint=some:1", "--environment_type=PROCESS"),
            2,
            "is on this machine, where the workers of",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    predict: Command,
    model: Path,
    dataset: Path,
    tmp_path: Path,
    argv: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    given = [text.format(tmp=tmp_path, dataset=dataset, model=model) for text in argv]
    usual = {"--model": model, "--input": dataset, "--output": tmp_path / "submission.csv"}
    rest = [part for flag, value in usual.items() if flag not in given for part in (flag, value)]
    found, out, err = predict(*given, *rest)
    assert (found, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failing_model_ends_in_one_line_and_leaves_nothing(
    predict: Command, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory left")

    monkeypatch.setattr("serving.model.loaded_model.LoadedModel.answer", fail)
    code, _, err = predict("--input", dataset, "--output", tmp_path / "submission.csv")
    assert code == 1
    assert "no memory left" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_needs_neither_tensorflow_nor_beam(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from serving import batch_predict\n"
        "try:\n    batch_predict.main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print([n for n in ('tensorflow', 'keras', 'apache_beam') if n in sys.modules])"
    )
    assert python(code, cwd=tmp_path, path=str(ROOT)).splitlines()[-1] == "[]"
