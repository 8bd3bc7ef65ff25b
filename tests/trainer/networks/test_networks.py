"""Every network of the registry: its size, and the battery that all of them pass."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format

from beam_jobs.common.cli import UsageError
from tests.trainer.networks import network_battery as battery
from trainer.config.network import MODELS, NetworkConfig
from trainer.networks import blocks
from trainer.networks.layers import (
    AttentionPooling,
    Conv2D,
    Conv3D,
    DepthwiseConv2D,
    DepthwiseConv3D,
    under_policy,
)
from trainer.networks.registry import _NETWORKS, activation_bytes, build_model
from trainer.testing import logits

ODD = (21, 19, 11)

# Published or counted elsewhere, 1 channel and 1 logit: trainable, and with BatchNorm's statistics.
COUNTS = {
    "resnet10": (14_356_929, 14_362_689),
    "resnet18": (33_161_409, 33_171_009),
    "resnet34": (63_471_041, 63_488_065),
    "resnet50": (46_160_961, 46_214_081),
    "se_resnet50": (48_688_113, 48_741_233),
    "densenet121": (11_243_649, 11_327_297),
    "efficientnet_b0": (4_689_661, 4_731_677),
    "efficientnet_b1": (7_447_777, 7_509_825),
    "efficientnet_b2": (8_716_355, 8_783_923),
}
slow = pytest.mark.slow
CASES = [
    case if case in battery.SMALL else pytest.param(case, marks=(slow, pytest.mark.timeout(3000)))
    for case in battery.CASES
]
# Grouped by network ("module"): each has one process, or is trained once in this one and let go.
every_network = pytest.mark.parametrize("case", CASES, scope="module")


@pytest.fixture(autouse=True)
def _released(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a large network took comes back with its test."""
    yield
    if request.node.get_closest_marker("slow"):
        keras.utils.clear_session(free_memory=True)


@pytest.fixture
def _zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that cost nothing to draw, for tests that only count them."""
    monkeypatch.setattr(blocks, "fan_out_normal", keras.initializers.Zeros)


def _counts(model: keras.Model) -> tuple[int, int]:
    return sum(math.prod(w.shape) for w in model.trainable_weights), model.count_params()


@pytest.mark.usefixtures("_zeros")
@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_reference_on_an_odd_grid_too(name: str) -> None:
    assert _counts(build_model(name, ODD, 1)) == COUNTS[name]


@pytest.mark.usefixtures("_zeros")
def test_resnet10_with_four_channels_has_the_reference_parameters() -> None:
    assert _counts(build_model("resnet10", (16, 16, 16), 4))[0] == 14_422_785


def _efficientnet_parameters(width: float, depth: float) -> int:
    """Trainable parameters of EfficientNet in 3D, by arithmetic from the paper's table 1."""

    def filters(count: int) -> int:
        rounded = max(8, int(count * width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * count * width else rounded

    last = filters(32)
    total = 27 * last + 2 * last
    for repeats, kernel, expansion, out in (
        (1, 3, 1, 16),
        (2, 3, 6, 24),
        (2, 5, 6, 40),
        (3, 3, 6, 80),
        (3, 5, 6, 112),
        (4, 5, 6, 192),
        (1, 3, 6, 320),
    ):
        for _ in range(math.ceil(depth * repeats)):
            wide, squeezed = last * expansion, max(1, int(last * 0.25))
            if expansion > 1:
                total += last * wide + 2 * wide
            total += kernel**3 * wide + 2 * wide
            total += 2 * wide * squeezed + squeezed + wide
            total += wide * filters(out) + 2 * filters(out)
            last = filters(out)
    top = filters(1280)
    return total + last * top + 2 * top + top + 1


@pytest.mark.usefixtures("_zeros")
@pytest.mark.parametrize(
    ("name", "width", "depth"),
    [
        ("efficientnet_b0", 1.0, 1.0),
        *(
            pytest.param(f"efficientnet_b{size}", width, depth, marks=slow)
            for size, width, depth in (
                (3, 1.2, 1.4),
                (4, 1.4, 1.8),
                (5, 1.6, 2.2),
                (6, 1.8, 2.6),
                (7, 2.0, 3.1),
            )
        ),
    ],
)
def test_efficientnet_has_the_parameters_of_the_papers_table(
    name: str, width: float, depth: float
) -> None:
    assert _counts(build_model(name, ODD, 1))[0] == _efficientnet_parameters(width, depth)


@pytest.mark.usefixtures("_zeros")
def test_slice_efficientnets_encoder_has_the_parameters_of_keras_applications() -> None:
    reference = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    scaling = 7  # mean, variance and count of its input
    logit = 1281
    model = build_model("slice_efficientnet_b0", ODD, 3)
    assert model.count_params() == reference.count_params() - scaling + logit


@every_network
def test_smallest_grid_is_answered_and_one_voxel_less_is_refused(case: str) -> None:
    battery.check(case, "smallest grid")


@every_network
@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_a_step_trains_in_every_precision(case: str, precision: str) -> None:
    battery.check(case, f"step in {precision}")


@pytest.mark.parametrize(
    "case",
    battery.CASES,
    scope="module",
)
@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_eight_phantoms_are_learnt_and_separated_in_inference_mode(case: str) -> None:
    battery.check(case, "learns")


@pytest.mark.parametrize(
    "case",
    [
        case if case == "seed_cnn" else pytest.param(case, marks=(slow, pytest.mark.timeout(3000)))
        for case in battery.CASES
    ],
    scope="module",
)
def test_a_saved_model_answers_as_before(case: str) -> None:
    battery.check(case, "saves and reloads")


@every_network
def test_a_mixed_member_is_exported_with_its_float32_answers(case: str) -> None:
    battery.check(case, "exports")


@every_network
def test_a_blank_volume_gets_a_finite_answer(case: str) -> None:
    battery.check(case, "blank volume")


@every_network
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_answers_as_float32(case: str, precision: str) -> None:
    battery.check(case, f"answers in {precision}")


@every_network
def test_an_answer_hangs_on_no_other_patient_of_the_batch(case: str) -> None:
    battery.check(case, "other patients")


@every_network
def test_what_follows_standardise_is_a_model_of_the_same_weights(case: str) -> None:
    battery.check(case, "behind standardise")


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolution_is_the_sum_it_says(size: int, stride: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 4, 7, 3)).astype(np.float32)
    layer = DepthwiseConv3D(size, stride)
    found = np.asarray(layer(x))
    kernel = np.asarray(layer.kernel, np.float64)[..., 0]
    out = [-(-length // stride) for length in x.shape[1:4]]
    padding = [max((o - 1) * stride + size - n, 0) for o, n in zip(out, x.shape[1:4], strict=True)]
    padded = np.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in padding), (0, 0)))
    assert found.shape == (2, *out, 3)
    for i, j, k in itertools.product(*map(range, out)):
        row, column, level = i * stride, j * stride, k * stride
        window = padded[:, row : row + size, column : column + size, level : level + size]
        expected = np.einsum("brcsn,rcsn->bn", window, kernel)
        np.testing.assert_allclose(found[:, i, j, k], expected, atol=1e-5)


# Maps on which TensorFlow's own bfloat16 weight gradients are not what they should be on a CPU.
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("layer", "lengths"),
    [
        (lambda: Conv3D(64, 3, padding="same"), (2, 2, 2)),
        (lambda: Conv3D(64, 5, padding="same"), (1, 1, 1)),
        (lambda: Conv3D(64, 3, 2, padding="same"), (4, 4, 1)),
        (lambda: Conv2D(64, 3, 2, padding="same"), (4, 1)),
        (lambda: DepthwiseConv2D(5, 2, padding="same", use_bias=False), (1, 1)),
        (lambda: DepthwiseConv3D(5, 2), (2, 1, 1)),
    ],
    ids=["3d", "3d-one-voxel", "3d-stride", "2d", "depthwise-2d", "depthwise-3d"],
)
def test_gradients_in_sixteen_bits_are_those_of_float32(
    layer: Callable[[], keras.Layer], lengths: tuple[int, ...], precision: str
) -> None:
    rng = np.random.default_rng(0)
    kind = precision.removeprefix("mixed_")
    volumes = tf.cast(rng.normal(size=(64, *lengths, 32)).astype(np.float32), kind)
    kernel: npt.NDArray[Any] | None = None

    def gradients(policy: str) -> list[npt.NDArray[Any]]:
        nonlocal kernel
        with under_policy(policy):
            made = layer()
            made.build(volumes.shape)
        if kernel is None:  # one that 16 bits hold without rounding
            kernel = np.asarray(tf.cast(tf.cast(made.kernel.value, kind), "float32"))
        made.kernel.assign(kernel)
        given = tf.cast(volumes, made.compute_dtype)
        # What lies about in memory must not find its way into a gradient.
        rubbish = tf.fill([made.kernel.shape.num_elements()], float("nan")) + 1.0
        del rubbish
        with tf.GradientTape() as tape:
            tape.watch(given)
            loss = tf.reduce_sum(tf.square(tf.cast(made(given), "float32")))
        return [
            np.asarray(tf.cast(found, "float32"))
            for found in tape.gradient(loss, [made.kernel.value, given])
        ]

    for _ in range(5):
        for found, expected in zip(gradients(precision), gradients("float32"), strict=True):
            np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_attention_pooling_is_a_mean_with_weights_that_sum_to_one() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    layer = AttentionPooling(8)
    constant = np.ones_like(x) * x[:, :1, :1, :1]
    np.testing.assert_allclose(np.asarray(layer(constant)), constant[:, 0, 0, 0], rtol=1e-5)
    flat = x.reshape(2, 60, 6).astype(np.float64)
    hidden, bias, score = (np.asarray(weight, np.float64) for weight in layer.weights)
    scores = np.tanh(flat @ hidden + bias) @ score
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(layer(x)), (weights * flat).sum(axis=1), atol=1e-5)


def test_late_fusion_shares_one_network_between_the_modalities() -> None:
    early = build_model("slice_cnn", (16, 16, 4), 1).count_params()
    late = build_model(NetworkConfig(name="slice_cnn", fusion="late"), (16, 16, 4), 3)
    assert late.count_params() == early + 2 * 256  # only the logit is larger


def test_late_fusion_distinguishes_the_modalities() -> None:
    model = build_model(NetworkConfig(name="slice_cnn", fusion="late"), (16, 16, 4), 2)
    volume = np.zeros((1, 16, 16, 4, 2), np.uint8)
    volume[..., 0] = np.random.default_rng(0).integers(0, 255, (16, 16, 4))
    assert logits(model, volume) != pytest.approx(logits(model, volume[..., ::-1]), rel=1e-3)


@pytest.mark.usefixtures("_zeros")
@pytest.mark.parametrize(
    ("name", "factor"), [("seed_cnn", 4), ("resnet10", 4), ("slice_cnn", 4)], ids=str
)
def test_half_the_width_is_about_a_quarter_of_the_parameters(name: str, factor: int) -> None:
    full = build_model(name, (16, 16, 12), 1).count_params()
    half = build_model(NetworkConfig(name=name, width=0.5), (16, 16, 12), 1).count_params()
    assert full / half == pytest.approx(factor, rel=0.1)


@pytest.mark.usefixtures("_zeros")
def test_depth_multiplies_the_blocks() -> None:
    deep = build_model(NetworkConfig(name="resnet10", depth=2.0), (16, 16, 12), 1)
    assert deep.count_params() == COUNTS["resnet18"][1]


@pytest.mark.usefixtures("_zeros")
@pytest.mark.parametrize(
    "name", ["seed_cnn", "resnet10", pytest.param("efficientnet_b0", marks=slow)]
)
def test_a_dropout_rate_replaces_the_networks_own_and_none_removes_it(name: str) -> None:
    def rates(dropout: float | None) -> set[float]:
        model = build_model(NetworkConfig(name=name, dropout=dropout), (16, 16, 12), 1)
        return {layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)}

    assert rates(0.0) == set()
    assert max(rates(0.4)) == 0.4
    if name == "seed_cnn":
        assert rates(None) == {0.333, 0.666}


def test_synchronized_statistics_reach_every_batch_normalisation() -> None:
    model = build_model("slice_cnn", (16, 16, 4), 1, synchronized=True)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 4
    assert all(layer.synchronized for layer in norms)


def _same_encoder(model: keras.Model, reference: list[npt.NDArray[Any]]) -> None:
    from trainer.networks.weights.encoder_weights import encoder_of

    for found, expected in zip(encoder_of(model).get_weights()[1:], reference[1:], strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["whole.keras", "encoder.keras", "encoder.weights.h5"])
def test_an_encoder_is_taken_from_another_network_of_its_kind(name: str, tmp_path: Path) -> None:
    from trainer.networks.weights.encoder_weights import encoder_of

    file = tmp_path / name
    donor = build_model(NetworkConfig(name="slice_cnn", head="lstm"), (16, 16, 4), 1)
    encoder = encoder_of(donor)
    if name == "whole.keras":
        donor.save(file)
    elif name == "encoder.keras":
        encoder.save(file)
    else:
        encoder.save_weights(file)
    config = NetworkConfig(name="slice_cnn", encoder_weights=str(file))
    taker = build_model(config, (20, 12, 6), 1)
    _same_encoder(taker, encoder.get_weights())
    np.testing.assert_array_equal(encoder_of(taker).get_weights()[0], encoder.get_weights()[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.keras", "net.weights.h5", "net.h5"])
@pytest.mark.parametrize("top", [True, False])
def test_an_encoder_is_taken_from_keras_applications(name: str, top: bool, tmp_path: Path) -> None:
    shape = (224, 224, 3) if top else (64, 64, 3)
    donor = keras.applications.EfficientNetB0(weights=None, include_top=top, input_shape=shape)
    file = tmp_path / name
    if name.endswith(".keras"):
        donor.save(file)
    elif name == "net.h5":  # the older layout, in which keras.applications' own files are
        with h5py.File(file, "w") as group:
            legacy_h5_format.save_weights_to_hdf5_group(group, donor)
    else:
        donor.save_weights(file)
    config = NetworkConfig(name="slice_efficientnet_b0", encoder_weights=str(file), dropout=0.0)
    model = build_model(config, (32, 32, 1), 1)
    # The same image through both, past the donor's scaling of its input: equal features.
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
    from trainer.networks.weights.encoder_weights import encoder_of

    bare = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg"
    )
    bare.set_weights(donor.get_weights()[: len(bare.weights)])
    past_scaling = keras.Model(bare.get_layer("stem_conv_pad").input, bare.output)
    expected = np.asarray(past_scaling(np.repeat(image, 3, axis=-1)))
    found = np.asarray(encoder_of(model)(image))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert expected.std() > 0


def test_weights_that_do_not_fit_are_refused_with_both_sides_named(tmp_path: Path) -> None:
    file = tmp_path / "wide.keras"
    build_model(NetworkConfig(name="slice_cnn", width=2.0), (16, 16, 4), 1).save(file)
    config = NetworkConfig(name="slice_cnn", encoder_weights=str(file))
    with pytest.raises(UsageError, match=r"wide.keras holds an array \(.*64\) where slice_cnn"):
        build_model(config, (16, 16, 4), 1)
    deep = dataclasses.replace(config, depth=2.0)
    with pytest.raises(UsageError, match=r"holds 20 arrays, slice_cnn's encoder takes 40"):
        build_model(deep, (16, 16, 4), 1)
    (tmp_path / "no.h5").write_bytes(b"not HDF5")
    broken = NetworkConfig(name="slice_cnn", encoder_weights=str(tmp_path / "no.h5"))
    with pytest.raises(UsageError, match=r"no.h5 does not hold the 20 arrays of slice_cnn"):
        build_model(broken, (16, 16, 4), 1)
    absent = NetworkConfig(name="slice_cnn", encoder_weights=str(tmp_path / "absent.h5"))
    with pytest.raises(UsageError, match=r"--encoder_weights: .*absent.h5 is not a file"):
        build_model(absent, (16, 16, 4), 1)


_STEP = """
import resource, sys
import keras, numpy as np
from trainer.networks.registry import activation_bytes, build_model
keras.config.set_dtype_policy(sys.argv[4])
shape, batch = tuple(map(int, sys.argv[2].split("x"))), int(sys.argv[3])
model = build_model(sys.argv[1], shape, 1)
model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
def peak(patients):
    volumes = np.random.default_rng(0).integers(0, 255, (patients, *shape, 1)).astype("uint8")
    model.train_on_batch(volumes, np.arange(patients) % 2)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = peak(1)
first = peak(2)
grown = peak(batch) - first
estimate = lambda patients: activation_bytes(model, patients, sys.argv[4], gpu=False)
print(grown, estimate(batch) - estimate(2))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "batch", "precision"),
    [
        ("seed_cnn", "64x64x32", 16, "float32"),
        ("seed_cnn", "64x64x32", 24, "mixed_bfloat16"),
        ("resnet10", "48x48x32", 16, "float32"),
        ("densenet121", "64x64x64", 8, "float32"),
        ("efficientnet_b0", "64x64x64", 8, "float32"),
        ("slice_cnn", "96x96x32", 8, "float32"),
    ],
)
def test_estimated_memory_grows_with_the_batch_as_measured(
    name: str, shape: str, batch: int, precision: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _STEP, name, shape, str(batch), precision],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grown, estimated = map(int, done.stdout.split())
    assert grown > 300e6, "too little grown to stand out from noise"
    assert 1 / 1.5 < estimated / grown < 1.5, f"{estimated:,} estimated, {grown:,} measured"


def test_estimated_memory_counts_parameters_four_times_and_halves_a_gpus_mixed_activations() -> (
    None
):
    model = build_model("resnet10", (16, 16, 12), 1)
    full, twice = (activation_bytes(model, n, "float32", gpu=True) for n in (1, 2))
    assert 2 * full - twice == 16 * model.count_params()
    mixed = activation_bytes(model, 1, "mixed_float16", gpu=True) - 16 * model.count_params()
    assert mixed / (twice - full) == pytest.approx(0.5, abs=0.01)
    assert activation_bytes(model, 1, "mixed_float16", gpu=False) == full


def test_estimated_memory_of_a_slice_network_counts_every_slice() -> None:
    one, four = (
        activation_bytes(build_model("slice_cnn", (32, 32, slices), 1), 1, "float32", gpu=False)
        for slices in (8, 32)
    )
    parameters = 16 * build_model("slice_cnn", (32, 32, 8), 1).count_params()
    assert (four - parameters) / (one - parameters) == pytest.approx(4, rel=0.01)


def test_registry_holds_the_names_that_users_read() -> None:
    assert tuple(_NETWORKS) == MODELS
