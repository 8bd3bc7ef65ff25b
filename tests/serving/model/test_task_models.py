"""Models of classes, findings and values: graph, contract, columns, all against plain numpy."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from scipy.special import expit, log_softmax, logsumexp, softmax
from tensorflow.core.framework import tensor_pb2

from beam_jobs.core.example import encode_case
from serving.model.answers import number_columns
from serving.model.contract import Contract
from serving.model.loaded_model import LoadedModel, load_model
from serving.model.saved_model import write_model
from serving.model.temperatures import Interval, Temperatures
from tests.datasets import TARGETS, make_cases
from tests.serving.model.test_export_calibrated import warmups
from tests.serving.models import MODALITIES, network, task_contract

CLASSES, FINDINGS, VALUES = (TARGETS[task] for task in ("multiclass", "multilabel", "regression"))


def members_of(contract: Contract) -> list[Any]:
    covariates = contract.known_covariates
    return [network(contract.schema, 1, seed, covariates) for seed in range(2)]


def written(contract: Contract, path: Path) -> tuple[LoadedModel, npt.NDArray[Any]]:
    """The model, loaded, and what its members answer of `inputs`: (volumes, members, outputs)."""
    members = members_of(contract)
    write_model(members, contract, path)
    volumes, known = inputs(contract)
    chosen = volumes[..., list(contract.channels)]
    given = [chosen, known] if contract.covariates else chosen
    return load_model(path), np.stack([np.asarray(one(given)) for one in members], axis=1)


def inputs(contract: Contract) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Three volumes, and of their patients site and age, one of each not known."""
    shape = (3, *contract.schema.volume_shape)
    volumes = np.random.default_rng(3).integers(0, 256, shape, "u1")
    known = np.array([[0, 41.5], [1, np.nan], [np.nan, 77]], np.float32)
    return volumes, known[:, : len(contract.covariates)]


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_classes_go_through_softmax_and_one_temperature(ensemble: str, tmp_path: Path) -> None:
    calibration = Temperatures(method="temperature", temperatures=(1.5,))
    contract = task_contract(CLASSES, ensemble=ensemble, calibration=calibration)
    model, logits = written(contract, tmp_path / "model")
    mean = logits.mean(axis=1)
    if ensemble == "probabilities":
        mean = logsumexp(log_softmax(logits, axis=-1), axis=1) - np.log(2)
    found = model.outputs(*inputs(contract))
    assert set(found) == {"probabilities", "logits", "member_probabilities", "classes"}
    assert found["classes"].tolist() == [[b"2", b"3", b"4"]] * 3
    np.testing.assert_allclose(found["logits"], mean / 1.5, rtol=1e-5, atol=1e-5)
    expected = softmax(mean / 1.5, axis=-1)
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-5, atol=1e-6)
    of_members = softmax(logits / 1.5, axis=-1)
    np.testing.assert_allclose(found["member_probabilities"], of_members, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
def test_findings_go_through_a_sigmoid_and_a_temperature_each(
    ensemble: str, tmp_path: Path
) -> None:
    calibration = Temperatures(method="temperature", temperatures=(1.5, 0.75))
    contract = task_contract(FINDINGS, ensemble=ensemble, calibration=calibration)
    model, logits = written(contract, tmp_path / "model")
    mean = logits.mean(axis=1)
    if ensemble == "probabilities":
        share = expit(logits).mean(axis=1)
        mean = np.log(share) - np.log(1 - share)
    found = model.outputs(*inputs(contract))
    expected = expit(mean / [1.5, 0.75])
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert found["classes"].tolist() == [[b"edema", b"necrosis"]] * 3


@pytest.mark.slow
def test_values_are_averaged_and_have_their_interval(tmp_path: Path) -> None:
    contract = task_contract(VALUES)
    model, values = written(contract, tmp_path / "model")
    found = model.outputs(*inputs(contract))
    mean = values[..., 0].mean(axis=1)
    np.testing.assert_allclose(found["value"], mean, rtol=1e-6)
    np.testing.assert_allclose(found["low"], mean - 2.5, rtol=1e-6)
    np.testing.assert_allclose(found["high"], mean + 2.5, rtol=1e-6)
    np.testing.assert_allclose(found["member_value"], values[..., 0], rtol=1e-6)
    few = Interval(level=0.9, half_width=None, n=5, why="too few")
    model, _ = written(task_contract(VALUES, interval=few), tmp_path / "few")
    found = model.outputs(*inputs(contract))
    assert np.isnan(found["low"]).all()
    assert np.isnan(found["high"]).all()
    np.testing.assert_allclose(found["value"], mean, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("task", TARGETS)
def test_records_are_answered_as_volumes_are_and_say_who_lacks_what(
    task: str, tmp_path: Path
) -> None:
    """Each signature, each task; the record has age before site, the model takes site first."""
    contract = task_contract(TARGETS[task])
    model, _ = written(contract, tmp_path / "model")
    cases = make_cases(contract.schema, patients=7, folds=2)
    cases[0] = dataclasses.replace(cases[0], covariates=(61.0, float("nan")))
    examples = [encode_case(case, contract.schema) for case in cases]
    answers = model.predict(examples)
    assert [list(answer.values) for answer in answers] == [number_columns(contract.target)] * 7
    assert answers[0].missing == ("site",)
    assert [set(answer.missing) for answer in answers[1:]] == [*[set()] * 5, {"site", "age"}]
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"](
        examples=tf.constant(examples)
    )
    assert served["patient_id"].numpy().tolist() == [case.patient_id.encode() for case in cases]
    first = {"binary": "probability", "regression": "value"}.get(task, "probabilities")
    rows = served[first].numpy().reshape(7, -1)
    np.testing.assert_array_equal(rows, [answer.answer(contract.target) for answer in answers])
    assert len({row.tobytes() for row in rows}) == 7
    aged = dataclasses.replace(cases[1], covariates=(20.0, cases[1].covariates[1]))
    changed = model.answer([contract.taken(aged)])[0]
    assert changed.answer(contract.target) != answers[1].answer(contract.target)


@pytest.mark.slow
def test_a_network_that_takes_no_covariate_asks_for_none(tmp_path: Path) -> None:
    contract = task_contract(CLASSES, covariates=(), modalities=MODALITIES[:1])
    model, _ = written(contract, tmp_path / "model")
    cases = make_cases(contract.schema, patients=7, folds=2)
    assert model.answer([contract.taken(case) for case in cases])[6].missing == ()


@pytest.mark.slow
@pytest.mark.parametrize("task", TARGETS)
def test_the_warm_up_of_a_model_with_covariates_is_what_its_signatures_take(
    task: str, tmp_path: Path
) -> None:
    written(task_contract(TARGETS[task]), tmp_path / "model")
    signatures = tf.saved_model.load(str(tmp_path / "model")).signatures
    named = []
    for request in warmups(tmp_path / "model"):
        named.append(request.model_spec.signature_name)
        tensors = {
            name: tf.make_ndarray(tensor_pb2.TensorProto.FromString(value.SerializeToString()))
            for name, value in request.inputs.items()
        }
        answer = signatures[named[-1]](**{n: tf.constant(t) for n, t in tensors.items()})
        first = {"binary": "probability", "regression": "value"}.get(task, "probabilities")
        assert np.isfinite(answer[first].numpy()).all()
    assert sorted(named) == sorted(signatures)
