"""A step of training as XLA compiles it, and as it is, each against the same step in float64.

    python -m tests.trainer.networks.compiled_step CASE

prints, as JSON, how far each way is off: in the loss, in the statistics that BatchNormalization
found in the batch (and so in every map of the way forward), and in the gradient of every weight.
The step is `Trainee.step` itself, which tells no gradient; but Adam's first moment is, after one
step, 1 - beta_1 of it.

"gpu" is the graph that a step is made of where there is a GPU: layers and optimizer as Keras has
them, and 16 bits convolved as such. It too is compiled for this machine's CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tests.datasets import make_schema
from tests.trainer.networks.networks_tried import CASES, ROWS, Case, steady, waves
from trainer.config.run import TrainConfig
from trainer.networks import layers as own_layers
from trainer.training import step as step_module
from trainer.training.environment import Cluster
from trainer.training.step import FoldSetup, Trainee

Array = npt.NDArray[Any]

WAYS = ("plain", "xla", "gpu")
BATCHES = 3


def ways_of(case: str) -> tuple[str, ...]:
    """The graphs of a case that are tried; B1 to B7 are B0's operations over again."""
    larger = case.startswith("efficientnet") and case != "efficientnet_b0"
    return WAYS[:2] if larger else WAYS


class Found(NamedTuple):
    """A step's loss, (mean, variance) of each BatchNormalization, and gradients of weights."""

    loss: float
    statistics: list[tuple[Array, Array]]
    gradients: list[Array]


class Off(NamedTuple):
    """How far a way is off float64.

    Attributes:
      loss: relative where it is above 1; the most of the batches.
      statistics: of a normalisation's mean, in its deviations, or its variance, relative; norms
        over the channels, the most of them.
      gradient: of a weight's, norms over its numbers; relative to its own, or to a hundredth of
        all weights' where that is more. The most of the weights, each by its median over the
        batches: where rounding decides which of two voxels is the greater, or whether one is above
        0, another voxel gets the whole gradient, and that is no error of either. Such a batch is
        one of three.
      seconds: that the first step took.
    """

    loss: float
    statistics: float
    gradient: float
    seconds: float


def batch_of(case: Case, seed: int) -> dict[str, tf.Tensor]:
    """Volumes of noise with a corner of background, labels and covariates of `ROWS` patients."""
    volumes = waves(case.shape, seed)
    outputs, number = case.target.outputs, np.arange(ROWS)
    labels = {
        "binary": number[:, None] % 2,
        "multiclass": np.eye(outputs)[number % outputs],
        "multilabel": np.stack([number % 2, number // 2 % 2], axis=1),
        "regression": 1000.0 + 10 * number[:, None],
    }
    known = np.stack([50.0 + number, number % 2], axis=1)
    known[0] = np.nan
    return {
        "volume": tf.constant(volumes),
        "label": tf.constant(labels[case.task], tf.float32),
        "covariates": tf.constant(known, tf.float32),
    }


def trainee_of(case: Case, way: str, precision: str = "float32", **settings: Any) -> Trainee:
    """A network in training, always of the same weights."""
    config = TrainConfig.from_json(
        {
            "network": dataclasses.asdict(case.network),
            "modalities": ("T1w", "T2w"),
            "augment": "none",
            "batch_size": ROWS,
            "xla": "off" if way == "plain" else "on",
            "optimizer": {"ema": None},
            **settings,
        }
    )
    schema = make_schema(
        shape=case.shape,
        modalities=("T1w", "T2w"),
        target=case.target,
        covariates=case.covariates,
    )
    batch = batch_of(case, 0)
    setup = FoldSetup(
        schema=schema,
        voxel_mm=(1.0, 1.0, 1.0),
        precision=precision,
        steps_per_epoch=BATCHES,
        weights=(1.0, 1.0),
        seed=3,
        target=case.target,
        covariates=case.covariates,
        targets=np.asarray(batch["label"]),
        known=np.asarray(batch["covariates"]) if case.covariates else None,
    )
    keras.utils.set_random_seed(1)
    with own_layers.under_policy(precision):
        made = Trainee(config, setup, strategy=tf.distribute.get_strategy(), cluster=Cluster())
    steady(made.network)
    for variable in _moving(made.network):  # then they are, after a step, the batch's share alone
        variable.assign(variable * 0.0)
    return made


@contextlib.contextmanager
def traced_as(way: str) -> Iterator[None]:
    """What is traced within is what `way` says."""
    if way != "gpu":
        yield
        return
    with (
        mock.patch.object(step_module, "fused", return_value=contextlib.nullcontext()),
        mock.patch.object(own_layers, "has_gpu", return_value=True),
    ):
        yield


def _moving(network: keras.Model) -> list[Any]:
    """The moving statistics of a network, mean and variance in turn."""
    return [
        variable
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def _found(network: keras.Model, loss: Any, gradients: Sequence[Array]) -> Found:
    moving = [np.asarray(variable, np.float64) for variable in _moving(network)]
    return Found(float(loss), list(zip(moving[::2], moving[1::2], strict=True)), list(gradients))


def stepped(trainee: Trainee, batch: dict[str, tf.Tensor]) -> Found:
    """What the step finds."""
    loss = trainee.step(batch, 0, ROWS)
    optimizer = getattr(trainee.optimizer, "inner_optimizer", trainee.optimizer)
    moments = [np.asarray(one, np.float64) for one in optimizer._momentums]
    return _found(trainee.network, loss, [one / (1 - optimizer.beta_1) for one in moments])


# ---------------------------------------------------------------------------------- the referee


def _in_float64(config: Any) -> Any:
    """A layer's configuration with every policy in it, a nested layer's too, in float64."""
    if isinstance(config, dict):
        return {
            key: "float64" if key == "dtype" else _in_float64(value)
            for key, value in config.items()
        }
    return [_in_float64(one) for one in config] if isinstance(config, list) else config


def _twin(layer: keras.layers.Layer) -> keras.layers.Layer:
    made = type(layer).from_config(_in_float64(layer.get_config()))
    made.dtype_policy = keras.DTypePolicy("float64")  # of those that are float32 by themselves
    if isinstance(made, (keras.layers.MaxPooling3D, keras.layers.AveragePooling3D)):
        made.call = functools.partial(_pooled, made)
    return made


def _pooled(layer: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """Maxima or means, one axis after the other: in 3D TensorFlow has no kernel in float64."""
    least = -np.inf if isinstance(layer, keras.layers.MaxPooling3D) else np.nan
    for axis, (size, stride) in enumerate(zip(layer.pool_size, layer.strides, strict=True), 1):
        before = behind = 0
        if layer.padding == "same":
            length = int(x.shape[axis])
            added = max((-(-length // stride) - 1) * stride + size - length, 0)
            before, behind = added // 2, added - added // 2
        around = [(0, 0)] * 5
        around[axis] = (before, behind)
        x = tf.pad(x, around, constant_values=least)
        starts = np.arange((int(x.shape[axis]) - size) // stride + 1) * stride
        parts = tf.stack([tf.gather(x, starts + place, axis=axis) for place in range(size)])
        if least == -np.inf:
            x = tf.reduce_max(parts, axis=0)
        else:  # of what lies within the map
            known = tf.logical_not(tf.math.is_nan(parts))
            total = tf.reduce_sum(tf.where(known, parts, tf.zeros_like(parts)), axis=0)
            x = total / tf.reduce_sum(tf.cast(known, x.dtype), axis=0)
    return x


_LOSSES = {
    "binary": functools.partial(keras.losses.binary_crossentropy, from_logits=True),
    "multiclass": functools.partial(keras.losses.categorical_crossentropy, from_logits=True),
    "multilabel": functools.partial(keras.losses.binary_crossentropy, from_logits=True),
    "regression": keras.losses.huber,
}


def referee(case: Case, batches: Sequence[dict[str, tf.Tensor]]) -> list[Found]:
    """The step's mathematics in float64, from the same weights, a batch each."""
    trainee = trainee_of(case, "plain")
    network = keras.models.clone_model(trainee._trunk, clone_function=_twin)
    start = [np.asarray(weight, np.float64) for weight in trainee._trunk.weights]
    assert {weight.dtype for weight in network.weights} == {"float64"}

    @tf.function(autograph=False)
    def learn(given: Any, label: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(_LOSSES[case.task](label, network(given, training=True)))
        return loss, tape.gradient(loss, [one.value for one in network.trainable_variables])

    found = []
    for batch in batches:
        for weight, value in zip(network.weights, start, strict=True):
            weight.assign(value)
        volume = np.asarray(batch["volume"], np.float64)
        inside = volume > 0
        spatial: Any = {"axis": (1, 2, 3), "keepdims": True, "where": inside}
        centred = np.where(inside, volume - volume.mean(**spatial), 0.0)
        given: Any = tf.constant(centred / np.sqrt(np.square(centred).mean(**spatial)))
        if case.covariates:
            given = [given, tf.cast(trainee._encode(batch["covariates"]), tf.float64)]
        label = tf.cast(batch["label"], tf.float64)
        if case.task == "regression":
            # As the layer holds them, in float32: what they are is not the step's to find.
            label = tf.cast(trainee._objective.parts(batch["label"])[0], tf.float64)
        loss, gradients = learn(given, label)
        found.append(_found(network, loss, [np.asarray(one) for one in gradients]))
    return found


# ----------------------------------------------------------------------------------- the distance


def _norm(array: Array) -> float:
    return float(np.linalg.norm(array))


def _statistics_off(found: Found, exact: Found) -> float:
    off = [0.0]
    pairs = zip(found.statistics, exact.statistics, strict=True)
    for (mean, variance), (exact_mean, exact_variance) in pairs:
        # A fifth of the mean and of the variance is what moves: see MOMENTUM.
        deviation = _norm(np.sqrt(exact_variance * 0.2))
        off.append(_norm(mean - exact_mean) / deviation)
        off.append(_norm(variance - exact_variance) / _norm(exact_variance))
    return max(off)


def _gradients_off(found: Found, exact: Found) -> list[float]:
    whole = np.sqrt(sum(_norm(one) ** 2 for one in exact.gradients))
    return [
        _norm(one - other) / max(_norm(other), 0.01 * whole)
        for one, other in zip(found.gradients, exact.gradients, strict=True)
    ]


def off(case: Case, ways: Sequence[str] = WAYS) -> dict[str, Off]:
    """How far each way is off."""
    batches = [batch_of(case, seed) for seed in range(BATCHES)]
    exact = referee(case, batches)
    result = {}
    for way in ways:
        keras.utils.clear_session()
        trainee = trainee_of(case, way)
        start, found, seconds = trainee.state(), [], []
        with traced_as(way):
            for batch in batches:
                trainee.restore(start)
                began = time.perf_counter()
                found.append(stepped(trainee, batch))
                seconds.append(time.perf_counter() - began)
        pairs = list(zip(found, exact, strict=True))
        by_weight = np.median([_gradients_off(*pair) for pair in pairs], axis=0)
        result[way] = Off(
            max(abs(one.loss - other.loss) / max(abs(other.loss), 1.0) for one, other in pairs),
            max(_statistics_off(*pair) for pair in pairs),
            float(by_weight.max()),
            seconds[0],
        )
    return result


def main(case: str) -> None:
    """Prints how far each way of a case is off, and what this process held."""
    found = {way: one._asdict() for way, one in off(CASES[case], ways_of(case)).items()}
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"off": found, "peak_gb": peak_gb}))


if __name__ == "__main__":
    main(sys.argv[1])
