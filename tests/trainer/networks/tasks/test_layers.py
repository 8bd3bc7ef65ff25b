"""Covariates as columns, values in their unit, and the statistics that both are given."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from beam_jobs.core.cohort.target import PLAIN, Target
from tests.datasets import AGE_AND_SITE, TARGETS
from tests.trainer.networks.own_networks import HERE
from trainer.config.network import NetworkConfig
from trainer.data.targets import mean_and_deviation
from trainer.networks.registry import build_model
from trainer.networks.tasks.layers import Covariates, Value
from trainer.networks.tasks.statistics import set_statistics

NAN = float("nan")
GRID = (4, 4, 4)
SMALL = NetworkConfig(name=f"{HERE}:ending", options={"units": 6, "activation": "relu"})
KNOWN = np.array([[50.0, 0.0], [NAN, 1.0], [70.0, NAN], [60.0, 7.0]], np.float32)


def _model(target: Target = PLAIN) -> keras.Model:
    model = build_model(SMALL, GRID, 1, target=target, covariates=AGE_AND_SITE)
    targets = np.array([[10.0], [30.0], [NAN]]) if target.task == "regression" else None
    set_statistics(model, targets, KNOWN)
    return model


def test_numbers_are_standardised_categories_get_a_column_and_what_is_unknown_a_mark() -> None:
    layer = Covariates([0, 2])
    layer.build((None, 2))
    layer.mean.assign([60.0, 5.0])  # of a category nothing is standardised
    layer.deviation.assign([10.0, 9.0])
    found = np.asarray(layer(KNOWN))
    # age, age unknown, A, B, site unknown
    expected = [[-1, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(found, expected)
    endless = np.asarray(layer(np.array([[np.inf, 0.5]], np.float32)))
    np.testing.assert_array_equal(endless, [[0, 1, 0, 0, 1]])
    assert layer.compute_output_shape((None, 2)) == (None, found.shape[1])


def test_statistics_are_of_what_is_known_and_never_divide_by_nothing() -> None:
    values = np.array([[1.0, 5.0, NAN, 1e6], [NAN, 5.0, NAN, 1e6 + 0.5], [3.0, 5.0, NAN, 1e6]])
    mean, deviation = mean_and_deviation(values)
    np.testing.assert_allclose(mean, [2.0, 5.0, 0.0, 1e6 + 1 / 6])
    np.testing.assert_array_equal(deviation, [1.0, 1.0, 1.0, 1.0])


def test_what_is_the_same_for_all_training_patients_moves_no_answer() -> None:
    model = build_model(SMALL, GRID, 1, covariates=AGE_AND_SITE)
    set_statistics(model, None, np.array([[1e6, 0.0], [1e6, 0.0]], np.float32))
    others = np.array([[1e6, 0.0], [2e6, 1.0], [NAN, NAN]], np.float32)
    answers = np.asarray(model([np.zeros((3, *GRID, 1), np.uint8), others]))
    np.testing.assert_array_equal(answers, np.broadcast_to(answers[0], answers.shape))


def test_a_network_asks_for_the_statistics_that_it_needs() -> None:
    model = build_model(SMALL, GRID, 1, target=TARGETS["regression"], covariates=AGE_AND_SITE)
    with pytest.raises(ValueError, match="the covariates of its training patients"):
        set_statistics(model, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="the targets of its training patients"):
        set_statistics(model, None, KNOWN)
    model = build_model(SMALL, GRID, 1)
    set_statistics(model)  # of nothing


def test_values_come_in_their_unit_and_statistics_stand_in_the_file(tmp_path: Path) -> None:
    model = _model(TARGETS["regression"])
    assert [tensor.name for tensor in model.inputs] == ["volume", "covariates"]
    volumes = np.random.default_rng(0).integers(0, 255, (4, *GRID, 1)).astype(np.uint8)
    answers = np.asarray(model([volumes, KNOWN]))
    standardised = keras.Model(model.inputs, model.get_layer("logit").output)
    np.testing.assert_allclose(answers, 20 + 10 * np.asarray(standardised([volumes, KNOWN])))
    value = model.get_layer("value")
    assert isinstance(value, Value)
    np.testing.assert_allclose(value.standardised(np.array([[30.0]])), [[1.0]])
    model.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras", compile=False)
    np.testing.assert_array_equal(again([volumes, KNOWN]), answers)
    assert np.asarray(again.get_layer("known").mean)[0] == 60.0


def test_who_is_older_is_answered_otherwise_and_nobody_knows_is_a_number() -> None:
    model = _model()
    volumes = np.zeros((3, *GRID, 1), np.uint8)
    given = np.array([[50.0, 0.0], [90.0, 0.0], [NAN, NAN]], np.float32)
    answers = np.asarray(model([volumes, given]))
    assert np.isfinite(answers).all()
    assert len(np.unique(answers)) == 3


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_what_is_known_is_not_rounded_in_mixed_precision(precision: str) -> None:
    keras.config.set_dtype_policy(precision)
    try:
        model = build_model(SMALL, GRID, 1, target=TARGETS["regression"],
                            covariates=AGE_AND_SITE)  # fmt: skip
    finally:
        keras.config.set_dtype_policy("float32")
    for name in ("known", "joined", "logit", "value"):
        assert model.get_layer(name).compute_dtype == "float32"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("task", TARGETS)
def test_a_network_without_covariates_takes_a_volume_alone(task: str) -> None:
    model = build_model(SMALL, GRID, 1, target=TARGETS[task])
    assert model.input_shape == (None, *GRID, 1)
    assert model.output_shape == (None, TARGETS[task].outputs)
    last = ["logit", "value"] if task == "regression" else ["logit"]
    assert [layer.name for layer in model.layers][-len(last) :] == last
