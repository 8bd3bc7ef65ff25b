"""Export with evidence: calibration in the graph, training statistics, card, warm-up request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet
from scipy.special import expit, logit
from tensorflow.core.framework import tensor_pb2

from beam_jobs.core.manifest import Manifest
from beam_jobs.core.tfrecord import read_records
from serving import export
from serving.model.calibration import Calibration
from serving.model.contract import CARD_NAME, load_contract, load_statistics
from serving.model.loaded_model import LoadedModel, load_model
from serving.model.warmup import WARMUP_NAME
from tests.commands import outcome
from tests.datasets import make_cases, write_cases
from tests.serving.models import schema_of, spec_of, write_out_of_fold, write_run
from trainer.training.run_files import Run

PATIENTS = 40


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the dataset `data` and, trained on it, the run `run` of two folds."""
    root = tmp_path_factory.mktemp("calibrated")
    schema = schema_of(spec_of())
    cases = make_cases(schema, patients=PATIENTS, folds=2, unlabelled=3)
    manifest = write_cases(root / "data", cases, schema, folds=2, spec=spec_of())
    rows = ["patient,modality,verdict,plane,row_spacing,column_spacing,slice_step,field_strength"]
    for patient, label, _ in manifest.patients:
        plane = "axial" if label is not None else "sagittal"
        rows += [f"{patient},{name},used,{plane},1,1,2,3" for name in schema.modalities]
    (root / "data" / "series.csv").write_text("\n".join(rows) + "\n")
    run = write_run(root / "run", dataset_fingerprint=manifest.dataset_fingerprint)
    write_out_of_fold(run, patients=PATIENTS)
    return root


@pytest.fixture(scope="module")
def exported(training: Path) -> Path:
    argv = ["--runs", training / "run", "--data", training / "data", "--output", training / "model"]
    assert export.main([*map(str, argv), "--ensemble", "probabilities"]) == 0
    return training / "model"


@pytest.fixture(scope="module")
def calibrated(exported: Path) -> LoadedModel:
    return load_model(exported)


def volumes() -> npt.NDArray[Any]:
    return np.random.default_rng(3).integers(0, 256, (5, *schema_of(spec_of()).volume_shape), "u1")


def member_logits(run: Run) -> npt.NDArray[Any]:
    members = [run.load_member(index) for index in range(len(run.members))]
    return np.array([[np.asarray(m(v[None])).item() for m in members] for v in volumes()])


def test_ensemble_and_temperature_are_in_the_graph(calibrated: LoadedModel, training: Path) -> None:
    calibration = calibrated.contract.calibration
    assert isinstance(calibration, Calibration)
    temperature = calibration.temperature
    assert temperature > 1.2  # the logits were made too sharp
    assert calibrated.contract.ensemble == "probabilities"
    logits = member_logits(Run.load(training / "run"))
    expected = logit(expit(logits).mean(axis=1)) / temperature
    probability, found, of_members = calibrated.predict_volumes(volumes())
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(probability, expit(expected), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(of_members, expit(logits / temperature), rtol=1e-6, atol=1e-6)


def test_isotonic_is_a_line_in_the_graph(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    logits = member_logits(run).mean(axis=1)
    low, high = float(logits.min()), float(logits.max())
    middle = (low + high) / 2
    for number, knots in enumerate(
        (((middle, -1.0), (middle + 1e-3, 0.5), (high, 2.0)), ((low, 3.0),))
    ):
        calibration = Calibration(method="isotonic", knots=knots)
        contract = export.contract_of([run], calibration=calibration)
        export.export([run], contract, tmp_path / f"model{number}")
        _, found, _ = load_model(tmp_path / f"model{number}").predict_volumes(volumes())
        expected = calibration.apply(logits)
        assert np.ptp(expected) > 0.01
        np.testing.assert_allclose(found, expected, atol=1e-3 if number == 0 else 1e-6)
        np.testing.assert_array_equal(np.argsort(found), np.argsort(logits))


def test_training_statistics_are_of_the_labelled_patients(exported: Path, training: Path) -> None:
    statistics = load_statistics(exported)
    manifest = Manifest.loads((training / "data" / "manifest.json").read_bytes())
    assert statistics is not None
    assert statistics.patients == PATIENTS
    assert statistics.dataset_fingerprint == manifest.dataset_fingerprint
    for modality in manifest.schema.modalities:
        assert statistics.bins(modality, "plane") == {"axial": PATIENTS}
        assert statistics.bins(modality, "field_strength") == {"3.0": PATIENTS}
        assert statistics.bins(modality, "missing") == {"no": PATIENTS}
        assert statistics.bins(modality, "intensity")["n"] == PATIENTS


def test_a_held_out_fold_is_no_part_of_what_was_trained_on(training: Path, tmp_path: Path) -> None:
    manifest = Manifest.loads((training / "data" / "manifest.json").read_bytes())
    write_run(tmp_path / "run", seeds=(3,), dataset_fingerprint=manifest.dataset_fingerprint)
    argv = ["--runs", tmp_path / "run", "--data", training / "data", "--output", tmp_path / "model"]
    assert export.main([*map(str, argv)]) == 0
    statistics = load_statistics(tmp_path / "model")
    assert statistics is not None
    assert statistics.patients == PATIENTS // 2
    cohort = {"patients": PATIENTS // 2, "positive": PATIENTS // 4}
    assert load_contract(tmp_path / "model").cohort == cohort


def test_the_card_tells_cohort_calibration_use_and_limits(exported: Path) -> None:
    card = (exported / CARD_NAME).read_text()
    measured = load_contract(exported).calibration.measured
    assert "40 patients: 20 positive, 20 negative" in card
    assert f"| log loss (nats) | {measured['before']['log_loss']:.4f} | " in card
    assert measured["after"]["log_loss"] < measured["before"]["log_loss"]
    assert "| T1wCE | 0 of 40 | axial 40 | 3.0 T 40 |" in card
    for heading in ("Intended use", "Calibration", "Limits"):
        assert f"## {heading}\n" in card
    assert "No clinical use" in card


def prediction_log() -> Any:
    """PredictionLog of tensorflow/serving, as far as a warm-up needs it, from its .proto files."""
    pool = descriptor_pool.DescriptorPool()
    for name in (
        "types",
        "tensor_shape",
        "full_type",
        "resource_handle",
        "tensor",
    ):
        module = __import__(f"tensorflow.core.framework.{name}_pb2", fromlist=["DESCRIPTOR"])
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        pool.Add(file)
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="log.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=["tensorflow/core/framework/tensor.proto"],
    )

    def message(name: str, *fields: tuple[str, int, Any]) -> Any:
        made = file.message_type.add(name=name)
        for label, number, kind in fields:
            if kind is str:
                made.field.add(name=label, number=number, type=field.TYPE_STRING, label=1)
            else:
                made.field.add(
                    name=label, number=number, type=field.TYPE_MESSAGE, label=kind[1],
                    type_name=f".tensorflow.{kind[0]}",
                )  # fmt: skip
        return made

    message("ModelSpec", ("name", 1, str), ("signature_name", 3, str))
    request = message(
        "PredictRequest",
        ("model_spec", 1, ("serving.ModelSpec", 1)),
        ("inputs", 2, ("serving.PredictRequest.InputsEntry", 3)),
    )
    entry = request.nested_type.add(name="InputsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=1)
    entry.field.add(
        name="value", number=2, type=field.TYPE_MESSAGE, label=1,
        type_name=".tensorflow.TensorProto",
    )  # fmt: skip
    message("PredictLog", ("request", 1, ("serving.PredictRequest", 1)))
    message("PredictionLog", ("predict_log", 6, ("serving.PredictLog", 1)))
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.serving.PredictionLog")
    )


def warmups(model: Path) -> Iterator[Any]:
    log = prediction_log()
    with (model / WARMUP_NAME).open("rb") as stream:
        for record in read_records(stream):
            found = log.FromString(record)
            request = found.predict_log.request
            for message in (found, found.predict_log, request, request.model_spec):
                assert len(UnknownFieldSet(message)) == 0
            yield request


def test_the_warm_up_requests_are_what_the_signatures_take(
    exported: Path, calibrated: LoadedModel
) -> None:
    signatures = tf.saved_model.load(str(exported)).signatures
    names = []
    for request in warmups(exported):
        names.append(request.model_spec.signature_name)
        tensors = {
            name: tf.make_ndarray(tensor_pb2.TensorProto.FromString(value.SerializeToString()))
            for name, value in request.inputs.items()
        }
        answer = signatures[names[-1]](**{n: tf.constant(t) for n, t in tensors.items()})
        assert np.isfinite(answer["probability"].numpy()).all()
    assert sorted(names) == sorted(signatures)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--data", "{other}"], 1, "dataset_fingerprint: .* in .*other, .* in run .*run"),
        (["--data", "{root}/run"], 2, r"--data: .*run: no manifest\.json"),
        (["--calibration", "isotonic"], 2, "isotonic wants at least 1000 .* 40 found"),
        (["--calibration", "votes"], 2, "invalid choice"),
        (["--ensemble", "votes"], 2, "invalid choice"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    training: Path,
    tmp_path: Path,
    argv: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    schema = schema_of(spec_of())
    other = tmp_path / "other"
    write_cases(other, make_cases(schema, patients=4, folds=2), schema, folds=2, spec=spec_of())
    given = [text.format(root=training, other=other) for text in argv]
    flags = ["--runs", training / "run", "--output", tmp_path / "model", *given]
    found, out, err = outcome(export.main, flags, capsys, monkeypatch)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert re.search(message, err), err
    assert not (tmp_path / "model").exists()


def test_a_run_on_permuted_labels_is_not_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", seeds=(0,), no_claim=("permuted",))
    flags = ["--runs", tmp_path / "run", "--output", tmp_path / "model", "--calibration", "none"]
    code, _, err = outcome(export.main, flags, capsys, monkeypatch)
    assert (code, err.count("\n")) == (1, 1)
    assert "permuted labels" in err


def test_an_in_fold_prediction_stops_the_export(
    training: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Members 0 and 1 exchange their patients: every row is in fold, none is out of place alone."""
    manifest = Manifest.loads((training / "data" / "manifest.json").read_bytes())
    run = write_run(tmp_path / "run", dataset_fingerprint=manifest.dataset_fingerprint)
    write_out_of_fold(run, patients=PATIENTS)
    file = tmp_path / "run" / "oof_predictions.csv"
    exchanged = {"0,0": "1,1", "1,1": "0,0"}  # fold, seed
    header, *lines = file.read_text().splitlines()
    cells = [line.split(",", 4) for line in lines]
    lines = [",".join([c[0], c[1], exchanged[f"{c[2]},{c[3]}"], c[4]]) for c in cells]
    file.write_text("\n".join([header, *lines]) + "\n")
    flags = ["--runs", tmp_path / "run", "--output", tmp_path / "model"]
    with_data = [*flags, "--data", training / "data"]
    code, _, err = outcome(export.main, with_data, capsys, monkeypatch)
    assert code == 1
    assert "patient 00000 is of fold 1, the dataset says 0: not out of fold" in err
    file.write_text("\n".join([header, lines[0].replace(",1,1,", ",2,1,", 1)]) + "\n")
    code, _, err = outcome(export.main, flags, capsys, monkeypatch)
    assert code == 1
    assert "no member of the run held out that fold" in err
    assert not (tmp_path / "model").exists()
