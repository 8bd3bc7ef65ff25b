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
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

# LLVM's part of compiling is most of it, and no other sum.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import numpy.typing as npt

from tests.datasets import AGE_AND_SITE, TARGETS
from trainer.config.network import HEADS, MODELS, NetworkConfig
from trainer.networks.layers import Conv2D, Conv3D, DepthwiseConv2D, DepthwiseConv3D
from trainer.networks.registry import _NETWORKS, build_model
from trainer.networks.tasks.statistics import set_statistics

Array = npt.NDArray[Any]

ROWS = 8
WIDTH = 0.25  # as many operations as at full width
CASES: dict[str, tuple[dict[str, Any], str | None]] = {
    **{name: ({"name": name}, None) for name in MODELS},
    **{f"slice_cnn-{head}": ({"name": "slice_cnn", "head": head}, None) for head in HEADS[1:]},
    "resnet10-attention": ({"name": "resnet10", "pooling": "attention"}, None),
    "resnet10-max": ({"name": "resnet10", "pooling": "max"}, None),
    "resnet10-late": ({"name": "resnet10", "fusion": "late"}, None),
    "resnet10-symmetric": ({"name": "resnet10", "padding": "symmetric"}, None),
    **{f"seed_cnn-{task}": ({"name": "seed_cnn"}, task) for task in TARGETS},
}


def built(case: str) -> tuple[keras.Model, tuple[int, ...]]:
    """A case's network on its smallest grid, of slices at least three; a task's has covariates."""
    settings, task = CASES[case]
    rows, columns, slices = _NETWORKS[settings["name"]].smallest
    shape = (rows, columns, max(slices, 3))
    if settings.get("pooling") == "attention":  # of one voxel it has nothing to choose
        shape = (4 * rows, columns, slices)
    known = () if task is None else AGE_AND_SITE
    config = NetworkConfig(**{"width": WIDTH, "dropout": 0.0, **settings})
    model = build_model(config, shape, 2, target=TARGETS[task or "binary"], covariates=known)
    return model, shape


def waves(shape: tuple[int, ...], seed: int) -> Array:
    """uint8 (ROWS, *shape, 2): a wave each, of another direction and length.

    Noise looks alike in every patient once it is averaged: what normalisation then subtracts is
    nearly all there is, and magnifies every rounding.
    """
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    along = rng.uniform(-1.5, 1.5, (ROWS, 2, 3))
    phases = np.einsum("rcsa,pma->prcsm", places, along) + rng.uniform(0, 6, (ROWS, 1, 1, 1, 2))
    volumes: Array = np.round(127.5 + 127.5 * np.sin(phases)).astype(np.uint8)
    return volumes


def given_to(model: keras.Model, shape: tuple[int, ...]) -> list[Array]:
    """What a network is asked: volumes, and covariates where it takes some."""
    volumes = waves(shape, 0)
    known = np.stack([50.0 + np.arange(ROWS), np.arange(ROWS) % 2], axis=1).astype(np.float32)
    known[0] = np.nan
    return [volumes, known][: len(model.inputs)]


_CONVOLUTIONS = (Conv2D, Conv3D, DepthwiseConv2D, DepthwiseConv3D)


def steady(model: keras.Model) -> None:
    """Weights with which a deep network does not magnify rounding, and none is 0 or 1.

    A residual network as it is drawn does: each block adds a branch as large as what it is added
    to. Here branches are a tenth (P. Goyal et al., 2017, begin with 0).
    """
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        if len(weight.shape) == 1:
            weight.assign(weight + 0.1 * rng.normal(size=weight.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Add):
            branch = next((one for one in map(_normed, _inputs(layer)) if one), None)
            if branch is not None:
                branch.gamma.assign(0.1 * branch.gamma)


def _inputs(layer: keras.layers.Layer) -> list[Any]:
    """The layers whose outputs a layer is given."""
    given = layer._inbound_nodes[0].input_tensors
    return [tensor._keras_history.operation for tensor in given]


def _normed(layer: keras.layers.Layer) -> keras.layers.BatchNormalization | None:
    """The normalisation that a branch ends in, behind which channels may be weighed."""
    while isinstance(layer, (keras.layers.Dropout, keras.layers.Multiply)):
        layer = _inputs(layer)[0]
    return layer if isinstance(layer, keras.layers.BatchNormalization) else None


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
    model, shape = built(case)
    given = given_to(model, shape)
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
    model, shape = built(case)
    with np.load(file) as theirs:
        kept = {name: theirs[name] for name in theirs.files}
    model.set_weights([kept[f"weight {number}"] for number in range(len(model.weights))])
    found, gradients = answers(model, given_to(model, shape))
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
