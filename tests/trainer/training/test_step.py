"""One optimizer step: what moves, what is averaged, what a restart needs, what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from tests.datasets import make_schema
from trainer.config.run import TrainConfig
from trainer.training.environment import Cluster
from trainer.training.predict_fold import inference
from trainer.training.step import FoldSetup, StepSeed, Trainee

SHAPE = (10, 10, 10)


def _trainee(*, precision: str = "float32", **settings: Any) -> Trainee:
    chosen = {
        "network": {"name": "seed_cnn", "width": 0.125},
        "modalities": ("T1w",),
        "augment": "none",
        "batch_size": 4,
        **settings,
    }
    keras.utils.clear_session()
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(precision)
    try:
        return Trainee(
            TrainConfig.from_json(chosen),
            FoldSetup(
                schema=make_schema(shape=SHAPE),
                voxel_mm=(1.0, 1.0, 1.0),
                precision=precision,
                steps_per_epoch=2,
                weights=(1.0, 1.0),
                seed=3,
            ),
            strategy=tf.distribute.get_strategy(),
            cluster=Cluster(),
        )
    finally:
        keras.config.set_dtype_policy("float32")


def _batch(seed: int = 0) -> dict[str, tf.Tensor]:
    volumes = np.random.default_rng(seed).integers(0, 256, (4, *SHAPE, 1)).astype(np.uint8)
    return {"volume": tf.constant(volumes), "label": tf.constant([[0.0], [1.0], [1.0], [0.0]])}


def _learn(trainee: Trainee, steps: range) -> list[float]:
    return [float(trainee.step(_batch(number), number, 4)) for number in steps]


def test_the_loss_is_the_mean_over_the_batch_before_the_step() -> None:
    trainee = _trainee(network={"name": "seed_cnn", "width": 0.125, "dropout": 0.0})
    batch = _batch()
    logit = np.asarray(trainee.network(batch["volume"], training=True))
    # Those statistics have moved; the loss of a step is that of training mode.
    expected = np.mean(np.log1p(np.exp(np.where(batch["label"] == 1.0, -logit, logit))))
    assert float(trainee.step(batch, 0, 4)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_frozen_stages_stay_and_the_others_learn_each_at_its_rate(
    tmp_path: Path, precision: str
) -> None:
    file = tmp_path / "net.weights.h5"
    _trainee().network.save_weights(file)
    settings: dict[str, Any] = {
        "precision": precision,
        "network": {"name": "seed_cnn", "width": 0.125, "weights": str(file)},
        "freeze": 1,
        "optimizer": {
            **{"learning_rate": 0.01, "schedule": "constant", "weight_decay": 0.1},
            **{"clip_norm": 1.0, "ema": 0.9, "stage_decay": 0.1},
        },
    }
    trainee = _trainee(**settings)
    assert dict(trainee.rows) == {
        "weights": f"28 of 28 arrays of {file}",
        "frozen": "1 of 4 stages, 224 of 20,089 weights",
        "rates": "a stage: 0.01, 0.1, 1 of the highest",
    }
    before = [np.asarray(variable) for variable in trainee.network.variables]
    _learn(trainee, range(2))
    names = [variable.path for variable in trainee.network.variables]
    moved = {
        name: np.abs(np.asarray(variable) - start).max()
        for name, variable, start in zip(names, trainee.network.variables, before, strict=True)
    }
    assert moved["conv3d/kernel"] == moved["conv3d/bias"] == 0
    # Adam's first steps are as long as the rate.
    assert 0 < moved["batch_normalization/gamma"] < 3e-4
    assert 3e-4 < moved["conv3d_2/kernel"] < 4e-3
    assert 4e-3 < moved["logit/kernel"] < 4e-2
    state = trainee.state()
    expected = _learn(trainee, range(2, 4))
    again = _trainee(**settings)
    again.restore(state)
    assert _learn(again, range(2, 4)) == expected
    for number in range(4, 20):  # of averages that would be rounded at each
        trainee.step(_batch(number), number, 4)
    settled = trainee.settle()
    kept = {"conv3d/kernel", "conv3d/bias"}
    same = {
        name
        for name, variable, start in zip(names, settled.variables, before, strict=True)
        if np.array_equal(np.asarray(variable), start)
    }
    assert same >= kept
    assert not any("batch_normalization" in name for name in same - kept)


def test_a_hypermodel_is_trained_with_its_optimizer_and_its_penalties() -> None:
    trainee = _trainee(network={"name": f"{__name__}:penalised", "options": {"rate": 0.5}})
    assert isinstance(trainee.optimizer, keras.optimizers.SGD)
    (kernel, bias), batch = trainee.network.trainable_variables, _batch()
    before = kernel.numpy()
    np.testing.assert_array_equal(bias.numpy(), 0)
    logit = np.asarray(trainee.network(batch["volume"]))
    each = np.log1p(np.exp(np.where(batch["label"] == 1.0, -logit, logit)))
    expected = np.mean(each) + 0.25 * np.sum(before**2)
    assert float(trainee.step(batch, 0, 4)) == pytest.approx(expected, rel=1e-5)
    slope = np.mean(1 / (1 + np.exp(-logit)) - batch["label"])
    np.testing.assert_allclose(bias.numpy(), -0.5 * slope, rtol=1e-4)


def penalised(hp: Any) -> keras.Model:
    """KerasTuner's form, with a regulariser."""
    model = keras.Sequential([keras.Input((*SHAPE, 1)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.25)))
    model.compile(keras.optimizers.SGD(hp.Float("rate", 0, 1)), "binary_crossentropy")
    return model


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_steps_on_the_same_batch_lower_its_loss(precision: str) -> None:
    trainee = _trainee(
        precision=precision,
        network={"name": "seed_cnn", "width": 0.125, "dropout": 0.0},
        optimizer={"learning_rate": 1e-2},
    )
    losses = [float(trainee.step(_batch(), number, 4)) for number in range(10)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(variable.dtype == "float32" for variable in trainee.network.trainable_variables)


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    """Dropout, schedule, moving average and augmentation included."""
    settings: dict[str, Any] = {"augment": "flip", "optimizer": {"ema": 0.9, "decay_steps": 2}}
    whole = _trainee(**settings)
    _learn(whole, range(3))
    state = [array.copy() for array in whole.state()]
    rest = _learn(whole, range(3, 5))
    other = _trainee(**settings)
    _learn(other, range(7, 8))
    other.restore(state)
    assert _learn(other, range(3, 5)) == rest
    for one, two in zip(whole.state(), other.state(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_state_of_another_network_is_refused() -> None:
    state = _trainee().state()
    wider = _trainee(network={"name": "seed_cnn", "width": 0.25})
    with pytest.raises(ValueError, match="other shapes"):
        wider.restore(state)


def test_the_evaluated_network_is_the_moving_average_of_the_trained_one() -> None:
    trainee = _trainee(optimizer={"ema": 0.15, "learning_rate": 0.05})
    index = 0
    average = np.asarray(trainee.network.trainable_variables[index])
    for number in range(4):
        trainee.step(_batch(number), number, 4)
        decay = min(0.15, (1 + number) / (10 + number))
        value = np.asarray(trainee.network.trainable_variables[index])
        average = decay * average + (1 - decay) * value
    found = np.asarray(trainee.settle().trainable_variables[index])
    np.testing.assert_allclose(found, average, rtol=1e-5)
    assert np.abs(found - value).max() > 1e-4


def test_no_call_makes_a_graph_of_which_tensorflow_would_warn_at_the_fifth_fold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorflow.python.eager.polymorphic_function import polymorphic_function as functions

    warned: list[str] = []
    monkeypatch.setattr(functions, "FREQUENT_TRACING_WARNING_THRESHOLD", 1)
    monkeypatch.setattr(functions.logging, "warning", warned.append)
    trainee, batch = _trainee(optimizer={"ema": 0.9}), _batch()
    trainee.augmented(batch["volume"], batch["label"], 0)
    trainee.step(batch, 0, 4)
    trainee.step({name: rows[:3] for name, rows in batch.items()}, 1, 3)  # an epoch's last
    inference(trainee.settle())(batch["volume"])
    assert not warned


def test_a_gradient_longer_than_the_limit_is_shortened_to_it() -> None:
    """Adam forgets a gradient's length; its first moment does not: (1 - beta_1) times it."""
    norms = []
    for clip in (None, 1e-3):
        trainee = _trainee(optimizer={"clip_norm": clip})
        trainee.step(_batch(), 0, 4)
        moments = [v for v in trainee.optimizer.variables if "momentum" in v.path]
        assert len(moments) == len(trainee.network.trainable_variables)
        norms.append(float(np.sqrt(sum(np.square(np.asarray(v)).sum() for v in moments))))
    assert norms[0] > 0.1 * 1e-2
    assert norms[1] == pytest.approx(0.1 * 1e-3, rel=1e-4)


def test_float16_scales_the_loss_and_not_what_it_reports() -> None:
    trainee = _trainee(precision="mixed_float16")
    assert isinstance(trainee.optimizer, keras.optimizers.LossScaleOptimizer)
    assert 0.1 < _learn(trainee, range(1))[0] < 10


def test_draws_differ_by_step_replica_and_place_and_by_nothing_else() -> None:
    def draws(seed: int, step: int, replica: int) -> list[tuple[int, ...]]:
        source = StepSeed(seed).at(tf.constant(step), replica, 2)
        return [tuple(np.asarray(source.next()).tolist()) for _ in range(3)]

    seen = [
        draw
        for seed in (0, 1)
        for step in (0, 1, 2)
        for replica in (0, 1)
        for draw in draws(seed, step, replica)
    ]
    assert len(set(seen)) == len(seen) == 36
    assert draws(1, 2, 1) == draws(1, 2, 1)


def test_more_devices_than_patients_in_a_batch_are_refused() -> None:
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(UsageError, match="--batch_size 2: 3 devices"):
        Trainee(
            TrainConfig(modalities=("T1w",), batch_size=2),
            FoldSetup(make_schema(shape=SHAPE), (1.0, 1.0, 1.0), "float32", 1, (1.0, 1.0), 0),
            strategy=Three(),
            cluster=Cluster(),
        )
