"""The loss by its formula, the learning rate by its course."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from beam_jobs.common.cli import UsageError
from trainer.config.run import OptimizerConfig
from trainer.training.optimization import (
    class_weights,
    clips,
    learning_rate,
    make_optimizer,
    weighted_loss,
)


def _loss(label: list[float], logit: list[float], **options: Any) -> npt.NDArray[Any]:
    chosen = {"smoothing": 0.0, "weights": (1.0, 1.0), **options}
    columns = (np.array(values, np.float32)[:, None] for values in (label, logit))
    return np.asarray(weighted_loss(*columns, **chosen))


def test_the_loss_is_the_negative_log_likelihood_of_each_example() -> None:
    labels, logits = [0.0, 1.0, 1.0, 0.0], [2.0, 2.0, -30.0, -0.5]
    signed = np.where(np.array(labels) == 1, -np.array(logits), logits)
    np.testing.assert_allclose(_loss(labels, logits), np.log1p(np.exp(signed)), rtol=1e-5)


def test_smoothing_moves_labels_towards_a_half_and_weights_follow_the_class() -> None:
    plain = _loss([0.05, 0.95], [0.7, 0.7])
    np.testing.assert_allclose(_loss([0, 1], [0.7, 0.7], smoothing=0.1), plain, rtol=1e-5)
    weighted = _loss([0, 1], [0.7, 0.7], weights=(0.5, 3.0))
    np.testing.assert_allclose(weighted, _loss([0, 1], [0.7, 0.7]) * [0.5, 3.0], rtol=1e-5)


def test_balanced_weights_give_both_classes_half_of_the_loss() -> None:
    negative, positive = class_weights("balanced", 0.2)
    assert negative * 0.8 == pytest.approx(positive * 0.2) == pytest.approx(0.5)
    assert class_weights("none", 0.2) == (1.0, 1.0)


def test_the_reference_schedule_falls_in_steps() -> None:
    rate = learning_rate(OptimizerConfig(), epochs=100, steps_per_epoch=10)
    found = [float(rate(step)) for step in (0, 364, 365, 729, 730)]
    expected = [1.5e-4, 1.5e-4, 1.5e-4 * 0.98, 1.5e-4 * 0.98, 1.5e-4 * 0.98**2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_cosine_rises_over_the_warm_up_and_ends_at_nothing() -> None:
    config = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_epochs=2)
    rate = learning_rate(config, epochs=10, steps_per_epoch=5)
    found = [float(rate(step)) for step in range(51)]
    np.testing.assert_allclose(found[:11], np.linspace(0, 1e-3, 11), atol=1e-9)
    assert np.argmax(found) == 10
    assert (np.diff(found[10:]) < 0).all()
    assert found[50] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_warm_up_longer_than_the_run_leaves_an_epoch_to_learn_in(epochs: int) -> None:
    config = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_epochs=5)
    rate = learning_rate(config, epochs=epochs, steps_per_epoch=4)
    assert max(float(rate(step)) for step in range(epochs * 4)) == pytest.approx(1e-3)


def test_weight_decay_spares_biases_and_normalisation() -> None:
    keras.utils.clear_session()
    inputs = keras.Input((4,))
    outputs = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs))
    model = keras.Model(inputs, outputs)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape, np.float32))
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.5)
    optimizer = make_optimizer(config, epochs=1, steps_per_epoch=1, precision="float32", replicas=1)
    optimizer.build(model.trainable_variables)
    nothing = [np.zeros(v.shape, np.float32) for v in model.trainable_variables]
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in nothing], model.trainable_variables)
    left = {v.path.split("/")[-1]: float(v.numpy().mean()) for v in model.trainable_variables}
    assert left == {"kernel": pytest.approx(0.95), "bias": 1.0, "gamma": 1.0, "beta": 1.0}


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_variable_learns_and_decays_by_its_factor(decay: float) -> None:
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=decay)
    settings: dict[str, Any] = {"epochs": 1, "steps_per_epoch": 1, "replicas": 1}
    moved = []
    for factors in ((), (0.25, 1.0)):
        kernels = [keras.Variable([4.0], name="kernel"), keras.Variable([4.0], name="kernel")]
        optimizer = make_optimizer(config, factors=factors, precision="mixed_float16", **settings)
        optimizer.build(kernels)
        scaled = optimizer.scale_loss(keras.ops.convert_to_tensor([3.0]))
        optimizer.apply([scaled, scaled], kernels)
        moved.append([float(4.0 - kernel.numpy()[0]) for kernel in kernels])
    plain, by_factor = moved
    assert plain[0] == plain[1] == pytest.approx(0.1 + 0.1 * decay * 4, rel=1e-4)
    assert by_factor == pytest.approx([0.25 * plain[0], plain[1]], rel=1e-4)


def test_float16_scales_its_loss_around_the_optimizer_that_clips() -> None:
    config = OptimizerConfig(clip_norm=2.0)
    outer = make_optimizer(
        config, epochs=1, steps_per_epoch=1, precision="mixed_float16", replicas=4
    )
    assert isinstance(outer, keras.optimizers.LossScaleOptimizer)
    assert outer.inner_optimizer.global_clipnorm == 0.5


def test_a_network_s_own_optimizer_is_taken_as_it_is() -> None:
    own = keras.optimizers.SGD(0.3, momentum=0.5, clipvalue=4.0)
    settings = {"epochs": 1, "steps_per_epoch": 1, "replicas": 2, "own": own}
    assert not clips(keras.optimizers.SGD(0.3))
    outer = make_optimizer(OptimizerConfig(warmup_epochs=1), precision="mixed_float16", **settings)
    assert outer.inner_optimizer is own
    assert own.clipvalue == 2.0  # of half of the sum of the gradients
    assert clips(outer)
    assert make_optimizer(OptimizerConfig(), precision="float32", **settings) is own
    with pytest.raises(UsageError, match=r"--learning_rate 0.1: the network is compiled with its"):
        make_optimizer(OptimizerConfig(learning_rate=0.1), precision="float32", **settings)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"schedule": "linear"}, "exponential, cosine, constant"),
        ({"weight_decay": -1.0}, "--weight_decay"),
        ({"clip_norm": 0.0}, "--clip_norm"),
        ({"ema": 1.0}, "--ema"),
        ({"warmup_epochs": -1}, "--warmup_epochs"),
    ],
)
def test_an_impossible_setting_is_refused_by_its_option(
    wrong: dict[str, object], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        OptimizerConfig(**wrong)  # type: ignore[arg-type]
