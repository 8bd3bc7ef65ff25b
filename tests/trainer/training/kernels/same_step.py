"""A step by Keras's own operations beside the same step by the project's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.training.kernels.fused import fused


class Step(NamedTuple):
    """What a step was made of, and what it gave.

    Attributes:
      operations: of its graph, and how many of each.
      arrays: output, gradients of input and weights, all variables of network and optimizer.
    """

    operations: Counter[str]
    arrays: list[npt.NDArray[Any]]


def steps(
    make: Callable[[], keras.Model],
    shape: tuple[int, ...],
    *,
    optimizer: Callable[[], keras.optimizers.Optimizer] = keras.optimizers.SGD,
    count: int = 1,
    training: bool = True,
) -> tuple[Step, Step]:
    """By Keras, then by the kernels; from the same weights, on the same numbers.

    Args:
      make: a new network; weights follow from the seed.
      shape: of its input, with the batch.
      optimizer: a new one.
      count: steps on the same batch; the last one's output and gradients are given.
      training: as the network is called.
    """
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(1.0, 2.0, shape), tf.float32)

    def run(ours: bool) -> Step:
        keras.utils.set_random_seed(1)
        network, learns = make(), optimizer()
        weights = network.trainable_variables
        for weight in weights:  # none is 0 or 1 everywhere
            weight.assign(weight + np.linspace(-0.5, 0.5, weight.shape[-1]))
        slope = np.random.default_rng(1).normal(size=network.output_shape[1:])

        def step(x: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.cast(network(x, training=training), tf.float32)
                loss = tf.reduce_sum(y * slope.astype(np.float32) + 0.1 * y * y)
            gradients = tape.gradient(loss, [x, *(weight.value for weight in weights)])
            learns.apply(gradients[1:], weights)
            return [y, *gradients]

        def learn(x: tf.Tensor) -> list[tf.Tensor]:
            if not ours:
                return step(x)
            with fused(network, learns):
                return step(x)

        learns.build(weights)
        graph = tf.function(learn).get_concrete_function(x)
        for _ in range(count):
            given = graph(x)
        operations = Counter(node.op for node in graph.graph.as_graph_def().node)
        variables = [variable.numpy() for variable in (*network.variables, *learns.variables)]
        return Step(operations, [*(np.asarray(array) for array in given), *variables])

    return run(False), run(True)


def require_same(keras_own: Step, ours: Step, tolerance: float = 1e-5) -> None:
    """Every array agrees within `tolerance`, relative to its largest number if that is above 1."""
    for one, other in zip(keras_own.arrays, ours.arrays, strict=True):
        assert np.isfinite(one).all()
        size = max(float(np.abs(one).max()), 1.0)
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * size)
