"""What every network must pass, as functions of a configuration.

`check` runs them: those of a small network in this process, those of any other in one of its own,
`python -m tests.trainer.networks.network_battery CASE`. TensorFlow and its kernels keep memory for
every graph they have seen; one after the other in one process the networks need 13 GB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from serving.model.graph import in_float32
from trainer.config.network import HEADS, MODELS, NetworkConfig
from trainer.networks.registry import _NETWORKS, build_model

GRID = (12, 12, 10)
# Where a network halves five times: on less, its last maps are one voxel of eight patients, whose
# statistics magnify every rounding (EfficientNet B0's logits in bfloat16: 0.8 off, here 0.05).
DEEP_GRID = (32, 32, 24)
DEEP = ("resnet34", "resnet50", "se_resnet", "densenet", "efficientnet", "slice_efficientnet")
# More layers, and so more to magnify: B1's logits in bfloat16 were 0.5 off on DEEP_GRID, here 0.08.
DEEPER_GRID = (48, 48, 32)
DEEPER = tuple(f"efficientnet_b{size}" for size in range(1, 8))
# Trained with a rate that falls to zero, so that BatchNormalization's averages catch up with the
# weights: at a constant rate B4's logits in bfloat16 were 0.22 off, here 0.14.
SETTLED = DEEPER[3:]
CHANNELS = 2
STEPS = 40
LEARNT = 0.1  # mean BCE over the 8 phantoms, in inference mode; guessing is 0.693

# Of a logit, relative where it is above 1.
SAME = 1e-6  # the same operations on the same numbers
ANOTHER_BATCH = 1e-5  # kernels split a batch by its size and round differently
PRECISION = {"mixed_float16": 0.02, "mixed_bfloat16": 0.15}
# Eight phantoms learnt by heart leave a deep network magnifying any rounding. There a precision may
# be off by so many times what rounding every layer's output and weights to it in float32 does: both
# are draws of one size (0.3 to 1.6 times each other were found).
DRAWS = 3

SMALL = ("seed_cnn", "resnet10-narrow", "slice_cnn-transformer")
CASES = {
    **{name: NetworkConfig(name=name) for name in MODELS},
    **{f"slice_cnn-{head}": NetworkConfig(name="slice_cnn", head=head) for head in HEADS[1:]},
    "resnet10-narrow": NetworkConfig(name="resnet10", width=0.25),
    "resnet10-symmetric": NetworkConfig(name="resnet10", padding="symmetric", width=0.25),
    "resnet10-max": NetworkConfig(name="resnet10", pooling="max"),
    "resnet10-attention": NetworkConfig(name="resnet10", pooling="attention"),
    "resnet10-late": NetworkConfig(name="resnet10", fusion="late", width=0.5, depth=1.5),
    "efficientnet_b0-late": NetworkConfig(name="efficientnet_b0", fusion="late", width=0.5),
    "slice_cnn-late": NetworkConfig(name="slice_cnn", fusion="late", head="lstm", width=0.5),
    "slice_efficientnet_b0-late": NetworkConfig(
        name="slice_efficientnet_b0", fusion="late", head="transformer"
    ),
}


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """A precision policy for a while."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def grid_of(case: str) -> tuple[int, int, int]:
    """Voxels along (row, column, slice) of the volumes that a case is trained on.

    Attention over one voxel has nothing to choose, and no gradient.
    """
    if CASES[case].name in DEEPER:
        return DEEPER_GRID
    deep = CASES[case].name.startswith(DEEP) or CASES[case].pooling == "attention"
    return DEEP_GRID if deep else GRID


def phantoms(
    grid: tuple[int, int, int] = GRID,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Eight heads of noise, uint8; the positive half has a bright block somewhere in channel 1."""
    rng = np.random.default_rng(0)
    volumes = np.zeros((8, *grid, CHANNELS), np.uint8)
    inner = (8, *(length - 2 for length in grid), CHANNELS)
    volumes[:, 1:-1, 1:-1, 1:-1] = rng.integers(60, 120, inner)
    labels = np.arange(8) % 2
    for index in np.flatnonzero(labels):
        row, column, level = rng.integers(1, 6, 3)
        volumes[index, row : row + 5, column : column + 5, level : level + 3, 1] = 200
    return volumes, labels.astype(np.float32)


def logits(model: keras.Model, volumes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """What a model answers, in inference mode, without a progress bar."""
    return np.asarray(model(volumes, training=False), np.float64)[:, 0]


def require_close(found: Any, expected: Any, tolerance: float) -> None:
    """Logits agree within `tolerance`, relative where they are above 1; a NaN agrees with none."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    excess = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    assert (excess <= tolerance).all(), f"{excess.max():.2g} apart, {tolerance:.2g} allowed"


def rounded_throughout(case: str, precision: str) -> keras.Model:
    """The trained network in float32 arithmetic; weights and each layer's output are rounded.

    That is what a mixed precision ought to be, made without it.
    """
    model, _ = trained(case)
    kind = precision.removeprefix("mixed_")
    with policy(precision):
        mixed = build_model(dataclasses.replace(CASES[case], dropout=0.0), grid_of(case), CHANNELS)
    pairs = zip(model.layers, mixed.layers, strict=True)  # names are numbered on
    narrow = {layer.name for layer, other in pairs if other.compute_dtype == kind}
    assert narrow

    def rounding(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        found = layer(*args, **kwargs)
        if layer.name not in narrow:
            return found
        return keras.ops.cast(keras.ops.cast(found, kind), "float32")

    copy = keras.models.clone_model(model, call_function=rounding)
    copy.set_weights(model.get_weights())
    for layer in copy.layers:
        if layer.name in narrow and not isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(tf.cast(tf.cast(weight.value, kind), weight.dtype))
    return copy


@functools.lru_cache(maxsize=1)
def trained(case: str) -> tuple[keras.Model, float]:
    """The network of a case after `STEPS` steps on the phantoms, and its loss in inference mode.

    Without dropout: the question is whether a network can learn at all.
    """
    keras.utils.set_random_seed(1)
    model = build_model(dataclasses.replace(CASES[case], dropout=0.0), grid_of(case), CHANNELS)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, STEPS) if case in SETTLED else 1e-3
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    volumes, labels = phantoms(grid_of(case))
    for _ in range(STEPS):
        model.train_on_batch(volumes, labels)
    return model, float(loss(labels[:, None], logits(model, volumes)[:, None]))


def learns_eight_phantoms(case: str) -> None:
    _, loss = trained(case)
    assert loss < LEARNT


def trains_a_step(case: str, precision: str) -> None:
    """One step, with the dropout of the case, moves nearly every weight.

    In float16 it is the first whose gradients are finite, as dynamic loss scaling has it.
    """
    keras.utils.set_random_seed(1)
    grid = grid_of(case) if CASES[case].pooling == "attention" else GRID
    with policy(precision):
        model = build_model(CASES[case], grid, CHANNELS)
    optimizer: Any = keras.optimizers.Adam(1e-3)
    if precision == "mixed_float16":
        # As in training, but from a lower scale, to have fewer steps that overflow and are skipped:
        # statistics of eight patients over one voxel are steep.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=True, auto_scale_loss=False)
    before = [np.array(weight) for weight in model.trainable_weights]
    volumes, labels = phantoms(grid)
    for _ in range(8 if precision == "mixed_float16" else 1):
        found = model.train_on_batch(volumes, labels)
        assert np.isfinite(np.asarray(found)).all()
        if int(optimizer.iterations):  # else the scale was halved, and nothing else was done
            break
    assert all(np.isfinite(np.array(weight)).all() for weight in model.weights)
    moved = [
        not np.array_equal(old, np.array(new))
        for old, new in zip(before, model.trainable_weights, strict=True)
    ]
    assert np.mean(moved) > 0.95, f"a gradient reaches {np.mean(moved):.0%} of the weights"


def saves_and_reloads(case: str, directory: Path) -> None:
    model, _ = trained(case)
    file = directory / "model.keras"
    model.save(file)
    again = keras.saving.load_model(file, compile=False)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    volumes, _ = phantoms(grid_of(case))
    require_close(logits(again, volumes), logits(model, volumes), SAME)


def exports(case: str, directory: Path) -> None:
    """As serving does it: a run's mixed member becomes float32, TensorFlow alone runs it."""
    model, _ = trained(case)
    with policy("mixed_bfloat16"):
        member = build_model(dataclasses.replace(CASES[case], dropout=0.0), grid_of(case), CHANNELS)
    member.set_weights(model.get_weights())
    assert "bfloat16" in {layer.compute_dtype for layer in member.layers}
    twin = in_float32(member, "mixed_bfloat16")
    assert {layer.compute_dtype for layer in twin.layers} == {"float32"}

    @tf.function(input_signature=[tf.TensorSpec([None, *grid_of(case), CHANNELS], tf.uint8)])
    def answer(volumes: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda volume: tf.reshape(twin(volume[None], training=False), []),
            volumes,
            fn_output_signature=tf.float32,
        )

    module = tf.Module()
    module.weights = [variable.value for variable in twin.variables]
    tf.saved_model.save(module, str(directory), signatures=answer)
    volumes, _ = phantoms(grid_of(case))
    loaded = tf.saved_model.load(str(directory)).signatures["serving_default"]
    (written,) = loaded(tf.constant(volumes)).values()
    # A graph, one volume at a time, as in the export: other graphs round otherwise, see
    # `logits_hang_on_no_other_patient`.
    compiled = tf.function(functools.partial(model, training=False))
    expected = [np.asarray(compiled(volume[None])).item() for volume in volumes]
    require_close(written, expected, SAME)


def blank_volume_is_answered(case: str) -> None:
    model, _ = trained(case)
    assert np.isfinite(logits(model, np.zeros((2, *grid_of(case), CHANNELS), np.uint8))).all()


def mixed_precision_agrees(case: str, precision: str) -> None:
    model, _ = trained(case)
    with policy(precision):
        mixed = build_model(dataclasses.replace(CASES[case], dropout=0.0), grid_of(case), CHANNELS)
    assert precision.removeprefix("mixed_") in {layer.compute_dtype for layer in mixed.layers}
    mixed.set_weights(model.get_weights())
    volumes, _ = phantoms(grid_of(case))
    expected = logits(model, volumes)
    off = logits(rounded_throughout(case, precision), volumes) - expected
    drawn = float((np.abs(off) / np.maximum(1.0, np.abs(expected))).max())
    tolerance = max(PRECISION[precision], DRAWS * drawn)
    require_close(logits(mixed, volumes), expected, tolerance)


def logits_hang_on_no_other_patient(case: str) -> None:
    model, _ = trained(case)
    volumes, _ = phantoms(grid_of(case))
    alone = [logits(model, volume[None])[0] for volume in volumes]
    require_close(logits(model, volumes), alone, ANOTHER_BATCH)
    require_close(logits(model, volumes[::-1])[::-1], alone, ANOTHER_BATCH)


def what_follows_standardise_is_a_model(case: str) -> None:
    model, _ = trained(case)
    standardised = model.get_layer("standardise")
    rest = keras.Model(standardised.output, model.output)
    volumes, _ = phantoms(grid_of(case))
    expected = logits(model, volumes)
    require_close(logits(rest, standardised(volumes)), expected, SAME)
    bias = model.get_layer("logit").bias
    bias.assign_add([1.0])
    moved = logits(rest, standardised(volumes))
    bias.assign_sub([1.0])
    require_close(moved, expected + 1.0, 1e-5)


def smallest_grid_is_answered(case: str) -> None:
    """And one voxel less is refused."""
    config = CASES[case]
    smallest = _NETWORKS[config.name].smallest
    model = build_model(config, smallest, 2)
    volumes = np.random.default_rng(0).integers(0, 255, (2, *smallest, 2)).astype(np.uint8)
    assert np.isfinite(logits(model, volumes)).all()
    for axis in range(3):
        rows, columns, slices = (n - (axis == place) for place, n in enumerate(smallest))
        less = rf"{config.name} needs .*grid is {rows}x{columns}x"
        with pytest.raises(UsageError, match=less):
            build_model(config, (rows, columns, slices), 2)


def _in_directory(check: Callable[[str, Path], None]) -> Callable[[str], None]:
    def run(case: str) -> None:
        with tempfile.TemporaryDirectory() as directory:
            check(case, Path(directory))

    return run


# Steps come first: what they leave behind is little beside the trained network.
CHECKS: dict[str, Callable[[str], None]] = {
    "smallest grid": smallest_grid_is_answered,
    **{
        f"step in {precision}": functools.partial(trains_a_step, precision=precision)
        for precision in ("float32", *PRECISION)
    },
    "learns": learns_eight_phantoms,
    "saves and reloads": _in_directory(saves_and_reloads),
    "exports": _in_directory(exports),
    "blank volume": blank_volume_is_answered,
    **{
        f"answers in {precision}": functools.partial(mixed_precision_agrees, precision=precision)
        for precision in PRECISION
    },
    "other patients": logits_hang_on_no_other_patient,
    "behind standardise": what_follows_standardise_is_a_model,
}


def check(case: str, name: str) -> None:
    """Runs one of `CHECKS`, or finds out how it went in the case's own process."""
    if case in SMALL:
        CHECKS[name](case)
    elif failure := _failures(case).get(name):
        pytest.fail(failure, pytrace=False)


@functools.lru_cache(maxsize=1)
def _failures(case: str) -> dict[str, str]:
    """Check → how it failed, of those that did."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.networks.network_battery", case],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return dict.fromkeys(CHECKS, f"exit code {done.returncode}: {done.stderr[-3000:]}")
    failures: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return failures


def main(case: str) -> None:
    """All checks of a case; prints the failures as JSON."""
    failures = {}
    for name, one in CHECKS.items():
        try:
            one(case)
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


if __name__ == "__main__":
    main(sys.argv[1])
