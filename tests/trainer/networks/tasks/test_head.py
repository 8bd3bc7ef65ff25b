"""What a user's own network ends in, a task: logits, features, an activation that is taken off."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.covariates import Covariate
from tests.datasets import AGE_AND_SITE, TARGETS
from tests.trainer.networks.own_networks import HERE
from trainer.config.network import NetworkConfig
from trainer.networks.registry import build_model
from trainer.networks.tasks.statistics import set_statistics

GRID = (8, 9, 7)


def _built(
    name: str, task: str, covariates: tuple[Covariate, ...] = (), **settings: Any
) -> keras.Model:
    config = NetworkConfig(name=f"{HERE}:{name}", **settings)
    return build_model(config, GRID, 2, target=TARGETS[task], covariates=covariates)


def _ending(units: int, activation: str | None, task: str) -> keras.Model:
    return _built("ending", task, options={"units": units, "activation": activation})


@pytest.mark.parametrize(
    ("name", "task"),
    [("feature_map", "multiclass"), *itertools.product(["labelled", "pooled"], TARGETS)],
)
def test_features_and_logits_become_as_many_answers_as_there_are(name: str, task: str) -> None:
    model = _built(name, task)
    logit = model.get_layer("logit")
    assert logit.output.shape == (None, TARGETS[task].outputs)
    dense = isinstance(logit, keras.layers.Dense)
    assert dense == (name != "pooled")
    assert model.output.dtype == "float32"


@pytest.mark.parametrize(
    ("units", "activation", "task"),
    [
        (3, "softmax", "multiclass"),
        (3, "sigmoid", "multiclass"),
        (3, "linear", "multiclass"),
        (2, "sigmoid", "multilabel"),
        (2, "linear", "multilabel"),
        (1, "linear", "regression"),
    ],
)
def test_an_activation_is_taken_off_and_its_layer_is_the_head(
    units: int, activation: str, task: str
) -> None:
    model = _ending(units, activation, task)
    head = model.get_layer("logit")
    assert isinstance(head, keras.layers.Dense)
    assert head.units == units
    assert head.activation is keras.activations.linear
    assert head.kernel.shape == (6, units)


def test_a_softmax_behind_a_pooled_map_is_taken_off() -> None:
    model = _built("pooled", "multiclass", options={"squash": "softmax"})
    assert not any(layer.name.startswith("softmax") for layer in model.layers)
    model = _built("pooled", "multilabel", options={"squash": "sigmoid"})
    answers = np.asarray(model(np.zeros((1, *GRID, 2), np.uint8)))
    np.testing.assert_array_equal(answers, np.zeros((1, 2)))


def test_what_lies_behind_a_rectifier_is_features() -> None:
    model = _ending(3, "relu", "multiclass")
    assert model.get_layer("logit").kernel.shape == (3, 3)
    assert _ending(16, None, "multiclass").get_layer("logit").kernel.shape == (16, 3)


@pytest.mark.parametrize(
    ("units", "activation", "task", "said"),
    [
        (1, None, "multiclass", "1 output: 3 classes are needed, as logits or behind a softmax"),
        (1, "sigmoid", "multiclass", "1 output behind a sigmoid: 3 classes are needed, "),
        (2, "softmax", "multiclass", "2 outputs behind a softmax: 3 classes are needed, "),
        (2, "softmax", "multilabel", "2 outputs behind a softmax: 2 labels are needed, as logits "),
        (1, "sigmoid", "multilabel", "1 output behind a sigmoid: 2 labels are needed, "),
        (1, "sigmoid", "regression", "1 output behind a sigmoid: one value is needed, without an"),
        (1, "relu", "regression", "1 output behind a relu: one value is needed, without an act"),
        (2, "softmax", "regression", "2 outputs behind a softmax: one value is needed, without"),
    ],
)
def test_an_end_that_does_not_fit_is_told_in_a_line(
    units: int, activation: str | None, task: str, said: str
) -> None:
    with pytest.raises(UsageError, match=rf"^--model {HERE}:ending: ends in {said}") as raised:
        _ending(units, activation, task)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["labelled", "pooled", "two_classes"])
def test_covariates_move_the_answers_of_every_form(name: str) -> None:
    task = "binary" if name == "two_classes" else "multiclass"
    model = _built(name, task, AGE_AND_SITE)
    known = np.array([[50.0, 0.0], [70.0, 0.0], [70.0, 1.0], [np.nan, np.nan]], np.float32)
    set_statistics(model, None, known)
    answers = np.asarray(model([np.zeros((4, *GRID, 2), np.uint8), known]))
    assert answers.shape == (4, TARGETS[task].outputs)
    assert len(np.unique(answers[:, 0])) == 4


def test_late_fusion_joins_modalities_and_covariates() -> None:
    model = _built("labelled", "multiclass", AGE_AND_SITE, fusion="late")
    features = model.get_layer("fused").output.shape[1]
    assert model.get_layer("logit").kernel.shape == (features + 5, 3)
