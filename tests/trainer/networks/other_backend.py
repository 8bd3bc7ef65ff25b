"""Answers and gradients of networks under whichever backend Keras has: TensorFlow or JAX.

    KERAS_BACKEND=tensorflow python -m tests.trainer.networks.other_backend write DIRECTORY CASE ...
    KERAS_BACKEND=jax python -m tests.trainer.networks.other_backend compare DIRECTORY CASE ...

The first makes networks, gives BatchNormalization the statistics of a batch, and writes weights,
volumes, answers in inference mode and their gradient. The second builds the same networks, takes
the weights, and prints a line of JSON a case: how far its answers and its gradient are off. Each is
a process of its own: a backend is chosen when Keras is imported.
"""

from __future__ import annotations

import functools
import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from tests.trainer.networks import networks_tried
from tests.trainer.networks.networks_tried import ROWS, Case, of, steady, waves
from trainer.networks.layers import Conv2D, Conv3D, DepthwiseConv2D, DepthwiseConv3D
from trainer.networks.registry import build_model
from trainer.networks.tasks.statistics import set_statistics

Array = npt.NDArray[Any]

CASES = {**networks_tried.CASES, "resnet10-max": Case(of("resnet10", pooling="max"))}


def built(case: str) -> keras.Model:
    """A case's network."""
    tried = CASES[case]
    return build_model(
        tried.network, tried.shape, 2, target=tried.target, covariates=tried.covariates
    )


def given_to(model: keras.Model, case: str) -> list[Array]:
    """What a network is asked: volumes, and covariates where it takes some."""
    volumes = waves(CASES[case].shape, 0)
    known = np.stack([50.0 + np.arange(ROWS), np.arange(ROWS) % 2], axis=1).astype(np.float32)
    known[0] = np.nan
    return [volumes, known][: len(model.inputs)]


_CONVOLUTIONS = (Conv2D, Conv3D, DepthwiseConv2D, DepthwiseConv3D)


def spread(model: keras.Model, given: list[Array]) -> None:
    """Gives layers statistics of what they are given, so that answers are neither 0 nor endless.

    A deviation much smaller than its mean, and sums that are nearly 0, would magnify every
    rounding from layer to layer. So maps are divided by their mean square and never brought to a
    mean of 0, and kernels are above 0.
    """
    for layer in model.layers:
        if isinstance(layer, _CONVOLUTIONS):
            layer.kernel.assign(abs(layer.kernel.numpy()))
    if len(given) > 1:
        set_statistics(model, np.array([[1010.0], [1020.0], [1040.0]]), given[1])

    def measured(layer: keras.layers.Layer, x: Any, **_: Any) -> Any:
        wide = np.asarray(x).reshape(-1, x.shape[-1])
        layer.moving_mean.assign(-0.25 * wide.mean(axis=0))
        layer.moving_variance.assign(np.square(wide).mean(axis=0))
        return type(layer).call(layer, x, training=False)

    norms = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.call = functools.partial(measured, layer)
    model(given if len(given) > 1 else given[0])
    for layer in norms:
        del layer.call


def answers(model: keras.Model, given: list[Array]) -> tuple[Array, list[Array]]:
    """Answers in inference mode, and the gradient of their sum to every trainable weight."""
    asked: Any = given if len(given) > 1 else given[0]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            found = model(asked, training=False)
            total = tf.reduce_sum(found)
        gradients = tape.gradient(total, [one.value for one in model.trainable_variables])
        return np.asarray(found), [np.asarray(one) for one in gradients]
    import jax

    held = [one.value for one in model.non_trainable_variables]

    def asked_of(weights: Any) -> Any:
        found, _ = model.stateless_call(weights, held, asked, training=False)
        return found.sum(), found

    learnt = jax.jit(jax.grad(asked_of, has_aux=True))
    gradients, found = learnt([one.value for one in model.trainable_variables])
    return np.asarray(found), [np.asarray(one) for one in gradients]


def write(case: str, file: Path) -> None:
    """Makes a network and writes what the other backend is to find."""
    model = built(case)
    given = given_to(model, case)
    steady(model)
    spread(model, given)
    found, gradients = answers(model, given)
    arrays = {
        **{f"weight {number}": value for number, value in enumerate(model.get_weights())},
        **{f"gradient {number}": value for number, value in enumerate(gradients)},
    }
    np.savez(file, answers=found, **arrays)


def compare(case: str, file: Path) -> dict[str, float]:
    """How far the answers are off, of the greater of 1 and the answer, and the gradient, of all."""
    model = built(case)
    with np.load(file) as theirs:
        kept = {name: theirs[name] for name in theirs.files}
    model.set_weights([kept[f"weight {number}"] for number in range(len(model.weights))])
    found, gradients = answers(model, given_to(model, case))
    expected = kept["answers"]
    pairs = [(one, kept[f"gradient {number}"]) for number, one in enumerate(gradients)]
    return {
        "answers": float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1.0))),
        "largest": float(np.abs(expected).max()),
        "gradient": _norm([one - other for one, other in pairs]) / _norm([b for _, b in pairs]),
    }


def _norm(arrays: list[Array]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(one, dtype=np.float64)) for one in arrays)))


def main(what: str, directory: str, cases: list[str]) -> None:
    """Goes through the cases; each leaves nothing behind in memory."""
    if what == "compare":
        # JAX compiles the drawing of every shape; what is drawn is replaced.
        zeros = keras.initializers.Zeros()
        keras.initializers.VarianceScaling.__call__ = lambda _, shape, dtype=None: zeros(
            shape, dtype
        )
    for case in cases:
        keras.utils.clear_session()
        keras.utils.set_random_seed(1)
        began = time.perf_counter()
        file = Path(directory, f"{case}.npz")
        found: dict[str, Any] = {"case": case, "backend": keras.backend.backend()}
        if what == "write":
            write(case, file)
        else:
            found |= compare(case, file)
            import jax

            jax.clear_caches()
        gc.collect()
        found["seconds"] = time.perf_counter() - began
        found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] or list(CASES))
