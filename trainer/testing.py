"""For authors of networks: what a network must pass to be trained, served and believed.

    from trainer.testing import check_network

    def test_my_network():
        check_network("mynetwork:small", shape=(32, 32, 24), channels=2)

The built-in networks pass the same checks, which take seconds to minutes each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.network import NetworkConfig
from trainer.networks.layers import under_policy
from trainer.networks.registry import build_model, rebuilt_model
from trainer.networks.stored import read_weights
from trainer.training.checkpoint import save_network

__all__ = ["NETWORK_CHECKS", "NetworkUnderTest", "check_network"]

STEPS = 40
# Of what guessing costs, the mean loss over the 8 phantoms in inference mode: a binary's is 0.1.
LEARNT = 0.1 / math.log(2)
_LOSSES = {
    **dict.fromkeys(("binary", "multilabel"), keras.losses.BinaryCrossentropy(from_logits=True)),
    "multiclass": keras.losses.CategoricalCrossentropy(from_logits=True),
    "regression": keras.losses.Huber(),
}
REACHED = 0.95  # of the weight tensors, moved by one step

# Of a logit, relative where it is above 1.
SAME = 1e-6  # the same operations on the same numbers
ANOTHER_BATCH = 1e-5  # kernels split a batch by its size and round differently
PRECISION = {"mixed_float16": 0.02, "mixed_bfloat16": 0.15}
# Eight phantoms learnt by heart leave a deep network magnifying any rounding. There a precision may
# be off by so many times what rounding every layer's output and weights to it in float32 does: both
# are draws of one size (0.3 to 1.6 times each other were found).
DRAWS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkUnderTest:
    """A network, and the volumes on which it is tried.

    Attributes:
      config: of the network.
      shape: (rows, columns, slices).
      channels: modalities a volume has, 2 or more.
      step_shape: of the volumes of which one step is tried; None is `shape`.
      settles: trained with a rate that falls to zero, so that BatchNormalization's averages catch
        up with the weights.
      target: what it answers.
    """

    config: NetworkConfig
    shape: tuple[int, int, int]
    channels: int = 2
    step_shape: tuple[int, int, int] | None = None
    settles: bool = False
    target: Target = PLAIN

    def build(self, policy: str = "float32") -> keras.Model:
        """The network without dropout, with fresh weights."""
        config = self.config
        if not config.has_own_code:
            config = dataclasses.replace(config, dropout=0.0)
        with under_policy(policy):
            model = build_model(config, self.shape, self.channels, target=self.target)
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        return model

    @functools.cached_property
    def trained(self) -> tuple[keras.Model, float]:
        """The network after `STEPS` steps on the phantoms, and its loss in inference mode.

        Without dropout: the question is whether a network can learn at all.
        """
        keras.utils.set_random_seed(1)
        model = self.build()
        loss = _LOSSES[self.target.task]
        rate = keras.optimizers.schedules.CosineDecay(1e-3, STEPS) if self.settles else 1e-3
        model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
        volumes, labels = self.phantoms()
        for _ in range(STEPS):
            model.train_on_batch(volumes, labels)
        return model, float(loss(labels, logits(model, volumes)))

    def phantoms(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Eight volumes as stored, and their labels (8, outputs)."""
        return phantoms(self.shape, self.channels, self.target)

    @property
    def guessing(self) -> float:
        """What the loss is without a look at the volumes."""
        values = self.target.task == "regression"
        return 0.5 if values else math.log(max(2, len(self.target.classes)))


def check_network(
    network: NetworkConfig | str,
    *,
    shape: tuple[int, int, int],
    channels: int = 2,
    checks: Sequence[str] | None = None,
    target: Target = PLAIN,
) -> None:
    """Tries a network as training and serving use it, and says what it does not pass.

    It must learn eight phantoms by heart in 40 steps of Adam at 1e-3, without dropout; step in
    every precision, moving nearly all of its weights; come back from its file; answer the same as a
    SavedModel, in mixed precision (within 0.02 and 0.15 of a logit) and whoever else is in the
    batch; and answer a blank volume.

    Args:
      network: `module:function`, a built-in network's name, or either with its settings.
      shape: (rows, columns, slices) of volumes, not much smaller than those it is meant for: on a
        last feature map of one voxel BatchNormalization knows eight numbers.
      channels: modalities a volume has, 2 or more.
      checks: some of `NETWORK_CHECKS`; None takes all.
      target: what it is to answer, a `beam_jobs.core.cohort.target.Target`; 0 or 1 by default.

    Raises:
      UsageError: it cannot be built; the message says what was found.
      AssertionError: it does not pass; the message has a line a check.
      KeyError: no such check.
    """
    quiet_tensorflow()
    config = NetworkConfig(name=network) if isinstance(network, str) else network
    tried = NetworkUnderTest(config=config, shape=shape, channels=channels, target=target)
    failures = []
    for name in NETWORK_CHECKS if checks is None else checks:
        try:
            NETWORK_CHECKS[name](tried)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
    if failures:
        raise AssertionError("\n".join([f"{config.name} does not pass", *failures]))


def phantoms(
    shape: tuple[int, int, int], channels: int, target: Target = PLAIN
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Eight heads of noise, uint8, and their labels, float32 (8, outputs).

    The positive half has a bright block somewhere in channel 1; the later the class, or the higher
    the (standardised) value, the brighter it is; each label of a multilabel has one.
    """
    rng = np.random.default_rng(0)
    volumes = np.zeros((8, *shape, channels), np.uint8)
    inner = (8, *(length - 2 for length in shape), channels)
    volumes[:, 1:-1, 1:-1, 1:-1] = rng.integers(60, 120, inner)
    place: npt.NDArray[Any] = np.arange(8)[:, None]
    found = place % {"multiclass": target.outputs, "regression": 8}.get(target.task, 2)
    if target.task == "multilabel":
        found = place >> np.arange(target.outputs) % 3 & 1
    for index, label in np.argwhere(found):
        row, column, level = rng.integers(1, 6, 3)
        head = volumes[index, ..., (1 + label) % channels]
        bright = 120 + 80 * found[index, label] // found.max()
        head[row : row + 5, column : column + 5, level : level + 3] = bright
    if target.task == "multiclass":
        found = np.eye(target.outputs)[found[:, 0]]
    elif target.task == "regression":
        found = (found - found.mean()) / found.std()
    return volumes, found.astype(np.float32)


def logits(model: keras.Model, volumes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """What a model answers, (n, outputs), in inference mode, without a progress bar."""
    return np.asarray(model(volumes, training=False), np.float64)


def require_close(found: Any, expected: Any, tolerance: float) -> None:
    """Logits agree within `tolerance`, relative where they are above 1; a NaN agrees with none."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    excess = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
    assert (excess <= tolerance).all(), f"{excess.max():.2g} apart, {tolerance:.2g} allowed"


def builds_the_same_twice(tried: NetworkUnderTest) -> None:
    """In new layers: `build_model` itself refuses those of before."""
    first, second = ([tuple(w.shape) for w in tried.build().weights] for _ in range(2))
    assert first == second, f"{len(first)} and {len(second)} weights, or of other shapes"


def trains_a_step(tried: NetworkUnderTest, precision: str) -> None:
    """One step, with the network's own dropout, moves nearly every weight.

    In float16 it is the first whose gradients are finite, as dynamic loss scaling has it.
    """
    keras.utils.set_random_seed(1)
    shape = tried.step_shape or tried.shape
    with under_policy(precision):
        model = build_model(tried.config, shape, tried.channels, target=tried.target)
    optimizer: Any = keras.optimizers.Adam(1e-3)
    if precision == "mixed_float16":
        # As in training, but from a lower scale, to have fewer steps that overflow and are skipped:
        # statistics of eight patients over one voxel are steep.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
    model.compile(optimizer, _LOSSES[tried.target.task], run_eagerly=True, auto_scale_loss=False)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]
    volumes, labels = phantoms(shape, tried.channels, tried.target)
    for _ in range(8 if precision == "mixed_float16" else 1):
        found = model.train_on_batch(volumes, labels)
        assert np.isfinite(np.asarray(found)).all(), f"its loss is {found}"
        if int(optimizer.iterations):  # else the scale was halved, and nothing else was done
            break
    finite = all(np.isfinite(keras.ops.convert_to_numpy(one)).all() for one in model.weights)
    assert finite, "a step leaves weights that are no numbers"
    moved = [
        not np.array_equal(old, keras.ops.convert_to_numpy(new))
        for old, new in zip(before, model.trainable_weights, strict=True)
    ]
    assert np.mean(moved) > REACHED, f"a gradient reaches {np.mean(moved):.0%} of the weights"


def learns_eight_phantoms(tried: NetworkUnderTest) -> None:
    """By heart."""
    _, loss = tried.trained
    most = LEARNT * tried.guessing
    assert loss < most, (
        f"its loss is {loss:.3g} after {STEPS} steps, less than {most:.2g} is needed"
    )


def saves_and_reloads(tried: NetworkUnderTest) -> None:
    """As a run keeps it: whole, or weights alone where a user's own code makes the layers."""
    model, _ = tried.trained
    with tempfile.TemporaryDirectory() as directory:
        if tried.config.has_own_code:
            file = Path(directory, "network.weights.h5")
            save_network(model, file)
            made_of = tried.config, tried.shape, tried.channels, "uint8"
            again = rebuilt_model(*made_of, target=tried.target)
            read_weights(again, file)
        else:
            file = Path(directory, "network.keras")
            model.save(file)
            again = keras.saving.load_model(file, compile=False)
            same = [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
            assert same, "its layers come back by other names"
    volumes, _ = tried.phantoms()
    require_close(logits(again, volumes), logits(model, volumes), SAME)


def _in_float32(tried: NetworkUnderTest, model: keras.Model) -> keras.Model:
    twin = tried.build()
    twin.set_weights(model.get_weights())
    return twin


def exports(
    tried: NetworkUnderTest,
    widened: Callable[[NetworkUnderTest, keras.Model], keras.Model] = _in_float32,
) -> None:
    """As serving does it: a run's mixed member becomes float32, TensorFlow alone runs it.

    Args:
      tried: the network.
      widened: gives a mixed member in float32.
    """
    model, _ = tried.trained
    member = tried.build("mixed_bfloat16")
    member.set_weights(model.get_weights())
    twin = widened(tried, member)
    assert {layer.compute_dtype for layer in twin.layers} == {"float32"}, "not all in float32"

    def answer(volumes: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda volume: twin(volume[None], training=False)[0],
            volumes,
            fn_output_signature=tf.float32,
        )

    signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)]
    signed = tf.function(answer, input_signature=signature)
    module = tf.Module()
    module.weights = [variable.value for variable in twin.variables]
    volumes, _ = tried.phantoms()
    with tempfile.TemporaryDirectory() as directory:
        tf.saved_model.save(module, directory, signatures=signed)
        loaded = tf.saved_model.load(directory).signatures["serving_default"]
        (written,) = loaded(tf.constant(volumes)).values()
    # A graph, one volume at a time, as in the export: other graphs round otherwise, see
    # `logits_hang_on_no_other_patient`.
    compiled = tf.function(functools.partial(model, training=False))
    expected = [np.asarray(compiled(volume[None]))[0] for volume in volumes]
    require_close(written, expected, SAME)


def blank_volume_is_answered(tried: NetworkUnderTest) -> None:
    """With a number."""
    model, _ = tried.trained
    found = logits(model, np.zeros((2, *model.input_shape[1:]), np.uint8))
    assert np.isfinite(found).all(), f"answered with {found[0][0]}"


def rounded_throughout(tried: NetworkUnderTest, precision: str) -> keras.Model:
    """The trained network in float32 arithmetic; weights and each layer's output are rounded.

    That is what a mixed precision ought to be, made without it.
    """
    model, _ = tried.trained
    kind = precision.removeprefix("mixed_")
    mixed = tried.build(precision)
    pairs = zip(model.layers, mixed.layers, strict=True)  # names are numbered on
    narrow = {layer.name for layer, other in pairs if other.compute_dtype == kind}
    assert narrow, f"no layer computes in {kind}"

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


def mixed_precision_agrees(tried: NetworkUnderTest, precision: str) -> None:
    """With float32; a user's own network computes in float32 where there is no GPU."""
    model, _ = tried.trained
    mixed = tried.build(precision)
    mixed.set_weights(model.get_weights())
    volumes, _ = tried.phantoms()
    expected = logits(model, volumes)
    tolerance = PRECISION[precision]
    if not tried.config.has_own_code:  # whose layers cannot be copied
        off = logits(rounded_throughout(tried, precision), volumes) - expected
        drawn = float((np.abs(off) / np.maximum(1.0, np.abs(expected))).max())
        tolerance = max(tolerance, DRAWS * drawn)
    require_close(logits(mixed, volumes), expected, tolerance)


def logits_hang_on_no_other_patient(tried: NetworkUnderTest) -> None:
    """In the batch."""
    model, _ = tried.trained
    volumes, _ = tried.phantoms()
    alone = [logits(model, volume[None])[0] for volume in volumes]
    require_close(logits(model, volumes), alone, ANOTHER_BATCH)
    require_close(logits(model, volumes[::-1])[::-1], alone, ANOTHER_BATCH)


def what_follows_standardise_is_a_model(tried: NetworkUnderTest) -> None:
    """Of the same weights: training and saliency begin there."""
    model, _ = tried.trained
    standardised = model.get_layer("standardise")
    rest = keras.Model(standardised.output, model.output)
    volumes, _ = tried.phantoms()
    expected = logits(model, volumes)
    require_close(logits(rest, standardised(volumes)), expected, SAME)
    last = model.get_layer("logit")
    if isinstance(last, keras.layers.Dense) and last.use_bias:
        one = np.ones(last.units)
        last.bias.assign_add(one)
        moved = logits(rest, standardised(volumes))
        last.bias.assign_sub(one)
        require_close(moved, expected + 1.0, 1e-5)


# Steps come first: what they leave behind is little beside the trained network.
NETWORK_CHECKS: dict[str, Callable[[NetworkUnderTest], None]] = {
    "builds the same twice": builds_the_same_twice,
    **{
        f"step in {precision}": functools.partial(trains_a_step, precision=precision)
        for precision in ("float32", *PRECISION)
    },
    "learns": learns_eight_phantoms,
    "saves and reloads": saves_and_reloads,
    "exports": exports,
    "blank volume": blank_volume_is_answered,
    **{
        f"answers in {precision}": functools.partial(mixed_precision_agrees, precision=precision)
        for precision in PRECISION
    },
    "other patients": logits_hang_on_no_other_patient,
    "behind standardise": what_follows_standardise_is_a_model,
}
