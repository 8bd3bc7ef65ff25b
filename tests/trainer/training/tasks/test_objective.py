"""The losses of every task, their weights and what is made of unknown labels, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from scipy.special import log_expit, log_softmax

from beam_jobs.common.cli import UsageError
from tests.datasets import TARGETS
from trainer.config.run import TrainConfig
from trainer.metrics.tasks.measure import measure_of
from trainer.networks.augment import mixup
from trainer.networks.tasks.layers import Value
from trainer.training.tasks.objective import make_objective, task_weights

NAN = float("nan")
CLASSES = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
FINDINGS = np.array([[1.0, 0.0], [NAN, 1.0], [0.0, NAN], [0.0, NAN]], np.float32)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (4, 3)).astype(np.float32)
PAIRS = LOGITS[:, :2]
Write = Callable[[str, str], Path]


def _loss(task: str, label: Any, answer: Any, *, targets: Any = None, **settings: Any) -> Any:
    value = None
    if task == "regression":
        value = Value()
        value.build((None, 1))
        value.offset.assign([20.0])
        value.scale.assign([10.0])
    config = TrainConfig.from_json({"network": {"name": "seed_cnn"}, **settings})
    found = make_objective(
        config,
        TARGETS[task],
        weights=(1.0, 1.0),
        targets=label if targets is None else targets,
        value=value,
    )
    return np.asarray(found.loss(answer, *found.parts(label)))


def test_classes_cost_the_cross_entropy_of_the_softmax() -> None:
    each = -log_softmax(LOGITS.astype(np.float64), axis=1)
    truth = CLASSES.argmax(axis=1)
    found = _loss("multiclass", CLASSES, LOGITS)
    np.testing.assert_allclose(found, each[np.arange(4), truth], rtol=1e-5)
    np.testing.assert_allclose(
        found.mean(),
        measure_of(TARGETS["multiclass"]).loss(truth, LOGITS.astype(np.float64)),
        rtol=1e-5,
    )
    smoothed = _loss("multiclass", CLASSES, LOGITS, label_smoothing=0.3)
    np.testing.assert_allclose(smoothed, ((0.7 * CLASSES + 0.1) * each).sum(axis=1), rtol=1e-5)
    balanced = _loss("multiclass", CLASSES, LOGITS, class_weights="balanced")
    weight = np.array([4 / 3, 2 / 3, 4 / 3])[truth]
    np.testing.assert_allclose(balanced, weight * each[np.arange(4), truth], rtol=1e-5)


def test_findings_cost_the_mean_over_labels_of_those_of_whom_each_is_known() -> None:
    found = _loss("multilabel", FINDINGS, PAIRS)
    assert np.isfinite(found).all()
    loss = measure_of(TARGETS["multilabel"]).loss(
        FINDINGS.astype(np.float64), PAIRS.astype(np.float64)
    )
    np.testing.assert_allclose(found.mean(), loss, rtol=1e-5)
    # Whatever is answered of a label that is not known costs nothing.
    other = PAIRS.copy()
    other[1, 0] = other[3, 1] = 50.0
    np.testing.assert_array_equal(_loss("multilabel", FINDINGS, other), found)


def test_findings_weights_and_smoothing_are_a_binarys_of_each_label() -> None:
    settings: dict[str, Any] = {"class_weights": "balanced", "label_smoothing": 0.2}
    found = _loss("multilabel", FINDINGS, PAIRS, **settings)
    expected = np.zeros(4)
    for column, share, positive in ((0, 3 / 4, 1 / 3), (1, 2 / 4, 1 / 2)):
        label = FINDINGS[:, column]
        known = ~np.isnan(label)
        moved = np.where(known, label, 0.0) * 0.8 + 0.1
        cost = -moved * log_expit(PAIRS[:, column]) - (1 - moved) * log_expit(-PAIRS[:, column])
        weight = np.where(label == 1, 0.5 / positive, 0.5 / (1 - positive))
        expected += np.where(known, weight * cost / share, 0.0) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_class_or_an_outcome_that_is_absent_has_a_weight_all_the_same() -> None:
    two = task_weights("balanced", TARGETS["multiclass"], CLASSES[[0, 1]])
    np.testing.assert_allclose(two, [2 / 3, 2 / 3, 1.0])
    alike = np.array([[1.0, NAN], [1.0, NAN]])
    weights = task_weights("balanced", TARGETS["multilabel"], alike)
    np.testing.assert_array_equal(weights, [[1.0, 2.0], [1.0, 2.0]])


def test_values_cost_the_square_near_by_and_the_distance_far_off() -> None:
    label = np.array([[20.0], [25.0], [60.0]], np.float32)
    found = _loss("regression", label, np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(found, [0.0, 0.125, 3.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label_smoothing": 0.1}, "--label_smoothing 0.1: labels are values"),
        ({"class_weights": "balanced"}, "--class_weights balanced: labels are values"),
    ],
)
def test_options_of_classes_are_refused_of_values(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        _loss("regression", CLASSES[:, :1], CLASSES[:, :1], **settings)


def test_mixed_labels_cost_as_much_as_their_parts_where_both_are_known() -> None:
    objective = make_objective(
        TrainConfig.from_json({"network": {"name": "seed_cnn"}}),
        TARGETS["multilabel"],
        weights=(1.0, 1.0),
        targets=np.zeros((4, 2), np.float32),
    )
    parts = objective.parts(FINDINGS)
    seed = keras.random.SeedGenerator(1)
    label, known, weight = mixup(*parts, np.eye(4), alpha=0.4, seed=seed)
    share = np.asarray(weight)
    np.testing.assert_allclose(np.asarray(known), share @ ~np.isnan(FINDINGS), rtol=1e-6)
    found = np.asarray(objective.loss(PAIRS, label, known))
    each = np.where(
        np.isnan(FINDINGS)[None],
        0.0,
        -FINDINGS[None] * log_expit(PAIRS)[:, None]
        - (1 - FINDINGS[None]) * log_expit(-PAIRS)[:, None],
    )
    np.testing.assert_allclose(found, np.einsum("ij,ijk->i", share, each) / 2, rtol=1e-4)


LOSS = """
import keras
from keras import ops

def rank(label, logit):
    return ops.sum(label * (ops.max(logit, axis=1, keepdims=True) - logit), axis=1)

def square(label, value):
    return ops.square(label - value)[:, 0]

def joint(label, logit):
    return ops.mean(ops.square(label - ops.sigmoid(logit)))
"""


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("multiclass", "keras.losses:CategoricalFocalCrossentropy"),
        ("multiclass", "own_task_loss:rank"),
        ("multilabel", "keras.losses:BinaryFocalCrossentropy"),
        ("regression", "keras.losses:MeanAbsoluteError"),
        ("regression", "own_task_loss:square"),
    ],
)
def test_a_loss_of_ones_own_takes_the_place_of_a_tasks(
    user_module: Write, task: str, name: str
) -> None:
    user_module("own_task_loss.py", LOSS)
    label: Any = {"multiclass": CLASSES, "multilabel": FINDINGS}.get(task, 10 * CLASSES[:, :1])
    answer = {"multiclass": LOGITS, "multilabel": PAIRS}.get(task, LOGITS[:, :1])
    found = _loss(task, label, answer, loss=name)
    assert found.shape == (4,)
    assert np.isfinite(found).all()
    assert not np.allclose(found, _loss(task, label, answer))
    if name.endswith("square"):
        np.testing.assert_allclose(found, ((label - 20) / 10 - answer)[:, 0] ** 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [
        ("multiclass", "keras.losses:SparseCategoricalCrossentropy", "it fails: "),
        ("multiclass", "own_task_loss:joint", "gives one number for 9 patients"),
        ("multilabel", "own_task_loss:joint", "gives one number for 6 patients"),
        ("regression", "keras.losses:BinaryCrossentropy", "it is one of logits, and labels are"),
        ("regression", "keras.losses:binary_focal_crossentropy", "it is one of logits, and labels"),
    ],
)
def test_a_loss_of_another_task_is_refused_in_a_line(
    user_module: Write, task: str, name: str, said: str
) -> None:
    user_module("own_task_loss.py", LOSS)
    targets = {"multiclass": CLASSES, "multilabel": FINDINGS}.get(task, CLASSES[:, :1])
    with pytest.raises(UsageError, match=rf"^--loss {name}: {said}") as raised:
        _loss(task, targets, targets, loss=name)
    assert "\n" not in str(raised.value)
