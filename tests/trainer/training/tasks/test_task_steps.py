"""Steps of every task: what is learnt, what a restart needs, what a batch's patients are worth."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Target
from tests.datasets import AGE_AND_SITE, TARGETS, make_schema
from trainer.config.run import TrainConfig
from trainer.training.environment import Cluster
from trainer.training.step import FoldSetup, Trainee

SHAPE = (10, 10, 10)
LABELS = {
    "binary": [[0.0], [1.0], [1.0], [0.0]],
    "multiclass": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]],
    "multilabel": [[1.0, 0.0], [np.nan, 1.0], [0.0, 1.0], [1.0, np.nan]],
    "regression": [[1010.0], [1020.0], [1030.0], [1040.0]],
}
KNOWN = [[50.0, 0.0], [np.nan, 1.0], [70.0, np.nan], [90.0, 1.0]]


def _trainee(
    target: Target = PLAIN,
    covariates: tuple[Covariate, ...] = (),
    *,
    precision: str = "float32",
    strategy: Any = None,
    **settings: Any,
) -> Trainee:
    chosen = {
        "network": {"name": "seed_cnn", "width": 0.125},
        "modalities": ("T1w",),
        "augment": "none",
        "batch_size": 4,
        "optimizer": {"learning_rate": 0.01, "schedule": "constant"},
        **settings,
    }
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(precision)
    try:
        return Trainee(
            TrainConfig.from_json(chosen),
            FoldSetup(
                schema=make_schema(shape=SHAPE, target=target, covariates=covariates),
                voxel_mm=(1.0, 1.0, 1.0),
                precision=precision,
                steps_per_epoch=2,
                weights=(1.0, 1.0),
                seed=3,
                target=target,
                covariates=covariates,
                targets=np.array(LABELS[target.task], np.float32),
                known=np.array(KNOWN, np.float32) if covariates else None,
            ),
            strategy=strategy or tf.distribute.get_strategy(),
            cluster=Cluster(),
        )
    finally:
        keras.config.set_dtype_policy("float32")


def _batch(task: str, seed: int = 0) -> dict[str, tf.Tensor]:
    volumes = np.random.default_rng(seed).integers(0, 256, (4, *SHAPE, 1)).astype(np.uint8)
    return {
        "volume": tf.constant(volumes),
        "label": tf.constant(LABELS[task], tf.float32),
        "covariates": tf.constant(KNOWN, tf.float32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("mixup", [0.0, 0.2], ids=["alone", "mixed"])
@pytest.mark.parametrize("covariates", [(), AGE_AND_SITE], ids=["plain", "covariates"])
@pytest.mark.parametrize("task", TARGETS)
def test_a_task_is_learnt_and_goes_on_where_it_was_stopped(
    task: str, covariates: tuple[Covariate, ...], mixup: float
) -> None:
    mixed = {"flip": [0.0, 0.0, 0.5 * (mixup > 0)], "mixup_alpha": mixup}
    network = {"name": "seed_cnn", "width": 0.125, "dropout": 0.0}
    settings: dict[str, Any] = {"augment": mixed, "network": network}
    trainee = _trainee(TARGETS[task], covariates, **settings)
    batch = _batch(task)
    losses = [float(trainee.step(batch, number, 4)) for number in range(16)]
    assert np.isfinite(losses).all()
    assert mixup or np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    state = trainee.state()
    expected = [float(trainee.step(batch, number, 4)) for number in (16, 17)]
    again = _trainee(TARGETS[task], covariates, **settings)
    again.restore(state)
    assert [float(again.step(batch, number, 4)) for number in (16, 17)] == expected
    given = [batch["volume"], batch["covariates"]] if covariates else batch["volume"]
    answers = np.asarray(trainee.settle()(given, training=False))
    assert answers.shape == (4, TARGETS[task].outputs)
    assert np.isfinite(answers).all()


@pytest.mark.slow
@pytest.mark.parametrize("task", TARGETS)
def test_a_step_costs_the_same_in_every_precision_and_compiled(task: str) -> None:
    network = {"name": "seed_cnn", "width": 0.125, "dropout": 0.0}
    mixed = {"flip": [0.0, 0.0, 0.0], "mixup_alpha": 0.4}
    losses = {}
    for kind in ("float32", "mixed_float16", "mixed_bfloat16", "xla"):
        given: dict[str, Any] = {"xla": "on"} if kind == "xla" else {"precision": kind}
        trainee = _trainee(
            TARGETS[task],
            AGE_AND_SITE,
            network=network,
            augment=mixed,
            label_smoothing=0.0,
            **given,
        )
        batch = _batch(task)
        losses[kind] = [float(trainee.step(batch, number, 4)) for number in range(2)]
        answers = trainee.network([batch["volume"], batch["covariates"]], training=False)
        assert answers.dtype == "float32"
        assert np.isfinite(answers).all()
    for kind, found in losses.items():
        # What rounds is a network's answer, by which a loss moves however small it is itself.
        near = 1e-4 if kind in ("float32", "xla") else 0.03
        assert found[0] == pytest.approx(losses["float32"][0], abs=near), kind


@pytest.mark.slow  # traces a step
def test_values_are_learnt_standardised_and_answered_in_their_unit() -> None:
    trainee = _trainee(TARGETS["regression"], network={"name": "seed_cnn", "width": 0.125})
    answers = np.asarray(trainee.network(_batch("regression")["volume"], training=False))
    assert (np.abs(answers - 1025.0) < 60.0).all()
    # At 0 and 1.34 deviations: half the square, then the distance less a half.
    loss = float(trainee.step(_batch("regression"), 0, 4))
    assert 0 < loss < 5


@pytest.mark.slow  # traces a step
def test_averages_leave_what_is_standardised_with_as_it_is() -> None:
    settings: dict[str, Any] = {"optimizer": {"ema": 0.9}}
    trainee = _trainee(TARGETS["regression"], AGE_AND_SITE, **settings)
    before = [np.asarray(v) for v in trainee.network.get_layer("value").variables]
    assert before[0] == 1025.0
    for number in range(5):
        trainee.step(_batch("regression", number), number, 4)
    kept = trainee.settle()
    assert kept is not trainee.network
    for name in ("value", "known"):
        pairs = zip(
            kept.get_layer(name).variables, trainee.network.get_layer(name).variables, strict=True
        )
        assert all(np.array_equal(one, other) for one, other in pairs)
    assert np.array_equal(kept.get_layer("value").offset, before[0])


@pytest.mark.slow  # builds networks
@pytest.mark.parametrize("task", TARGETS)
def test_a_network_begins_with_what_covariates_say(task: str) -> None:
    """In every task the last layer's part of covariates answers as their regression does."""
    network = _trainee(TARGETS[task], AGE_AND_SITE).network
    columns = np.asarray(network.get_layer("known")(np.array(KNOWN, np.float32)), np.float64)
    weights = np.array(network.get_layer("logit").kernel)[-columns.shape[1] :]
    found = columns @ weights + np.array(network.get_layer("logit").bias)
    labels = np.array(LABELS[task])
    for place, label in enumerate(labels.T):
        known = np.isfinite(label)
        if task == "regression":
            expected = (label - label.mean()) / label.std()
            assert np.corrcoef(found[:, 0], expected)[0, 1] > 0.9
        elif task != "multiclass" and len(set(label[known])) == 2:
            oracle = LogisticRegression().fit(columns[known], label[known])
            np.testing.assert_allclose(
                found[:, place], oracle.decision_function(columns), rtol=1e-4, atol=1e-5
            )
    if task == "multiclass":
        oracle = LogisticRegression().fit(columns, labels.argmax(axis=1))
        np.testing.assert_allclose(found, oracle.decision_function(columns), rtol=1e-4, atol=1e-5)
