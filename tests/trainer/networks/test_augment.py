"""Augmentation: geometry held to SciPy, intensities to their limits, draws to their seed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from scipy import ndimage, stats
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from trainer.config.augment import PRESETS, AugmentConfig
from trainer.networks.augment import (
    augment,
    bspline_basis,
    draw_movement,
    mixup,
    resample,
    sampling_affine,
    symmetric_beta,
)

OFF = AugmentConfig.named("none")
SHAPE, VOXEL_MM = (20, 24, 12), (2.0, 1.5, 4.0)
ALL_MODIFIERS = dataclasses.replace(PRESETS["strong"], elastic_mm=3.0, elastic_spacing_mm=20.0)


def _seed(value: int = 1) -> keras.random.SeedGenerator:
    return keras.random.SeedGenerator(value)


def _augmented(
    volume: npt.NDArray[Any], config: AugmentConfig, seed: keras.random.SeedGenerator | None = None
) -> npt.NDArray[np.float32]:
    found = augment(volume, config=config, voxel_mm=VOXEL_MM, top=255.0, seed=seed or _seed())
    return np.asarray(found)


def _centred_mm() -> npt.NDArray[np.float64]:
    """Position of each voxel from the grid's centre, (3, row, column, slice)."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, VOXEL_MM, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _heads(batch: int = 4, channels: int = 2) -> npt.NDArray[np.uint8]:
    """Ellipsoids of noise in 1 .. 255; the last channel of the last head is absent."""
    inside = np.linalg.norm(_centred_mm() / 17.0, axis=0) < 1
    noise = np.random.default_rng(0).integers(1, 256, (batch, *SHAPE, channels))
    heads: npt.NDArray[np.uint8] = (noise * inside[..., None]).astype(np.uint8)
    heads[-1, ..., -1] = 0
    return heads


def _moved(
    volume: npt.NDArray[Any],
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0),
    size: float = 1.0,
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> npt.NDArray[np.float32]:
    """One volume without channels, moved by known amounts."""
    given = [np.array([value], np.float32) for value in (angles, size, shift_mm)]
    angle, factor, shift = map(keras.ops.convert_to_tensor, given)
    affine = sampling_affine(angle, factor, shift, VOXEL_MM)[0]
    return np.asarray(resample(volume[..., None], affine))[..., 0]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_with_everything_off_values_stay_as_they_are(dtype: str) -> None:
    volume = _heads().astype(dtype)
    found = _augmented(volume, OFF)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, volume.astype(np.float32))


@pytest.mark.parametrize(("axis", "dtype"), [(0, "uint8"), (1, "uint16"), (2, "float16")])
def test_a_flip_is_the_exact_mirror_image_of_its_axis(axis: int, dtype: str) -> None:
    chances = (float(axis == 0), float(axis == 1), float(axis == 2))
    found = _augmented(_heads().astype(dtype), dataclasses.replace(OFF, flip=chances))
    np.testing.assert_array_equal(found, np.flip(_heads(), axis + 1))


def test_the_default_mirrors_left_and_right_in_about_half_of_the_volumes() -> None:
    volume = np.zeros((400, 2, 2, 2, 1), np.uint8)
    volume[:, 0, 0, 0] = 1
    found = _augmented(volume, AugmentConfig())
    mirrored = found[:, 0, 1, 0, 0]
    np.testing.assert_array_equal(found[:, 0, 0, 0, 0] + mirrored, 1)
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize(
    ("angles", "size", "shift_mm"),
    [
        ((0.0, 0.0, 0.5), 1.0, (0.0, 0.0, 0.0)),
        ((0.4, 0.0, 0.0), 1.0, (0.0, 0.0, 0.0)),
        ((0.0, -0.4, 0.0), 1.0, (0.0, 0.0, 0.0)),
        ((0.3, -0.2, 0.4), 1.2, (5.0, -4.0, 6.0)),
    ],
)
def test_movements_in_mm_agree_with_scipy(
    angles: tuple[float, float, float], size: float, shift_mm: tuple[float, float, float]
) -> None:
    """Noise up to the grid's edges, on voxels of 2 x 1.5 x 4 mm."""
    volume = np.random.default_rng(1).integers(0, 3, SHAPE) * 100.0
    forward = size * Rotation.from_euler("xyz", angles).as_matrix()
    mm, centre = np.diag(VOXEL_MM), (np.array(SHAPE) - 1) / 2
    matrix = np.linalg.inv(mm) @ np.linalg.inv(forward) @ mm
    offset = centre - matrix @ (centre + np.linalg.inv(mm) @ np.array(shift_mm))

    def linear(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        found: npt.NDArray[np.float64] = ndimage.affine_transform(
            values, matrix, offset, order=1, mode="grid-constant"
        )
        return found

    share = linear((volume > 0).astype(float))
    expected = np.where(share >= 0.5, linear(volume.astype(float)) / np.maximum(share, 0.5), 0.0)
    clear = np.abs(share - 0.5) > 1e-3  # elsewhere rounding decides
    assert clear.mean() > 0.95
    assert (expected > 0).mean() > 0.3
    found = _moved(volume, angles, size, shift_mm)
    np.testing.assert_allclose(found[clear], expected[clear], atol=0.02)


def test_a_shift_moves_the_centre_of_mass_by_so_many_mm() -> None:
    bump = np.exp(-np.sum((_centred_mm() / 5.0) ** 2, axis=0))
    shift = (3.1, -2.3, 5.7)
    found = _moved(bump, shift_mm=shift)
    middle = np.sum(_centred_mm() * found, axis=(1, 2, 3)) / found.sum()
    np.testing.assert_allclose(middle, shift, atol=0.05)


def test_a_factor_of_size_changes_the_volume_by_its_cube() -> None:
    axis = np.exp(-(((np.arange(40) - 19.5) / 6.0) ** 2))
    bump = axis[:, None, None] * axis[:, None] * axis
    for size in (0.8, 1.25):
        assert _moved(bump, size=size).sum() / bump.sum() == pytest.approx(size**3, rel=0.01)


def test_volumes_that_are_not_moved_keep_their_voxels_exactly() -> None:
    config = dataclasses.replace(OFF, rotation_deg=20.0, spatial_probability=0.5)
    heads = _heads(batch=24, channels=1)
    same = [np.array_equal(*pair) for pair in zip(_augmented(heads, config), heads, strict=True)]
    assert 4 < sum(same) < 20
    np.testing.assert_array_equal(_moved(heads[0, ..., 0]), heads[0, ..., 0])


def test_a_deformation_stays_below_its_limit_and_is_not_nothing() -> None:
    """Seen on a ramp in mm, whose value tells where a voxel came from."""
    config = dataclasses.replace(OFF, elastic_mm=3.0, elastic_spacing_mm=15.0)
    ramp = 100.0 + np.moveaxis(_centred_mm(), 0, -1)[None].astype(np.float32)
    moved = (_augmented(ramp, config) - ramp)[:, 3:-3, 3:-3, 2:-2]
    assert 0.5 < np.abs(moved).max() <= 3.0 + 1e-3
    assert np.ptp(moved, axis=(1, 2, 3)).min() > 0.5


@pytest.mark.parametrize(("count", "spacing"), [(24, 5.3), (7, 3.0), (1, 2.0)])
def test_the_spline_basis_is_the_cubic_b_spline(count: int, spacing: float) -> None:
    basis = bspline_basis(count, spacing)
    knots = np.arange(-3, basis.shape[1] + 1)
    places = np.arange(count) / spacing
    weights = np.arange(basis.shape[1]) ** 2.0
    expected = BSpline(knots, weights, 3)(places)
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(basis @ weights, expected, atol=1e-4)


@pytest.mark.parametrize("part", ["gamma", "bias", "noise"])
def test_intensities_change_on_the_foreground_alone_and_within_the_range(part: str) -> None:
    heads = _heads()
    change: dict[str, Any] = {part: 0.4}
    found = _augmented(heads, dataclasses.replace(OFF, **change))
    np.testing.assert_array_equal(found > 0, heads > 0)
    assert found.max() <= 255
    assert np.abs(found - heads).max() > 10
    assert not found[-1, ..., -1].any()


def test_gamma_keeps_order_and_ends_and_its_exponent_its_range() -> None:
    ramp = np.broadcast_to(
        np.arange(256, dtype=np.uint8)[None, :, None, None, None], (64, 256, 1, 1, 2)
    )
    found = _augmented(ramp, dataclasses.replace(OFF, gamma=0.5))[:, :, 0, 0]
    assert (np.diff(found, axis=1) > 0).all()
    np.testing.assert_allclose(found[:, -1], 255, rtol=1e-5)
    exponents = np.log(found[:, 100] / 255) / np.log(100 / 255)
    assert exponents.min() >= 1 / 1.5 - 1e-4
    assert exponents.max() <= 1.5 + 1e-4
    assert np.ptp(exponents) > 0.5
    assert len(np.unique(exponents.round(4))) > 100  # each channel of each volume its own


def test_shading_is_smooth_and_within_its_factor() -> None:
    flat = np.full((8, *SHAPE, 1), 100.0, np.float32)
    factor = _augmented(flat, dataclasses.replace(OFF, bias=0.5)) / 100
    assert factor.min() >= 1 / 1.5 - 1e-4
    assert factor.max() <= 1.5 + 1e-4
    assert factor.std() > 0.03
    assert np.abs(np.diff(factor, axis=1)).max() < 0.1


def test_noise_has_no_mean_and_at_most_its_deviation() -> None:
    flat = np.full((64, *SHAPE, 1), 100.0, np.float32)
    found = _augmented(flat, dataclasses.replace(OFF, noise=0.05)) - 100
    deviation = found.std(axis=(1, 2, 3))
    assert 0.9 * 0.05 * 255 < deviation.max() < 1.05 * 0.05 * 255
    assert deviation.min() < 0.2 * 0.05 * 255
    assert abs(found.mean()) < 0.05


def test_a_cut_box_has_its_share_of_each_axis_at_most() -> None:
    heads = np.full((64, 20, 20, 10, 2), 9, np.uint8)
    config = dataclasses.replace(OFF, cutout=0.5, cutout_probability=0.5)
    empty = _augmented(heads, config) == 0
    np.testing.assert_array_equal(empty[..., 0], empty[..., 1])
    sizes = empty[..., 0].sum(axis=(1, 2, 3))
    assert 16 < (sizes == 0).sum() < 48
    assert 300 < sizes.max() <= 10 * 10 * 5


def test_probabilities_leave_channels_as_they_are() -> None:
    heads = _heads(batch=40)
    config = dataclasses.replace(OFF, noise=0.1, intensity_probability=0.25)
    changed = np.abs(_augmented(heads, config) - heads).max(axis=(1, 2, 3)) > 0.01
    assert 8 < changed.sum() < 35


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    heads = _heads()
    first, again, other = (_augmented(heads, ALL_MODIFIERS, _seed(n)) for n in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 10


def test_a_saved_state_goes_on_where_it_stopped() -> None:
    heads, seed, resumed = _heads(batch=2), _seed(3), _seed(99)
    _augmented(heads, ALL_MODIFIERS, seed)
    resumed.state.assign(keras.ops.convert_to_numpy(seed.state))
    np.testing.assert_array_equal(
        _augmented(heads, ALL_MODIFIERS, seed), _augmented(heads, ALL_MODIFIERS, resumed)
    )


def test_the_data_do_not_change_what_is_asked_of_the_seed() -> None:
    states = []
    for heads in (_heads(batch=1), np.zeros((5, *SHAPE, 2), np.uint8)):
        seed = _seed(3)
        _augmented(heads, ALL_MODIFIERS, seed)
        states.append(keras.ops.convert_to_numpy(seed.state).tolist())
    assert states[0] == states[1] != [3, 0]


def test_equal_volumes_of_a_batch_become_different_ones() -> None:
    heads = np.repeat(_heads(batch=2, channels=1)[:1], 6, axis=0)
    always = dataclasses.replace(ALL_MODIFIERS, spatial_probability=1.0)
    found = _augmented(heads, always).reshape(6, -1)
    assert min(np.abs(a - b).max() for i, a in enumerate(found) for b in found[:i]) > 10


def test_everything_at_once_keeps_background_range_and_absent_channels() -> None:
    found = _augmented(_heads(batch=6), ALL_MODIFIERS)
    assert np.isfinite(found).all()
    assert found.min() == 0
    assert found.max() <= 255 * (1 + 1e-6)
    assert found[:-1].max(axis=(1, 2, 3)).min() > 50
    assert not found[-1, ..., -1].any()
    assert not found[:, 0, 0, 0].any()


def test_movements_fill_their_ranges_and_do_not_leave_them() -> None:
    config = AugmentConfig(
        rotation_deg=30.0, scaling=0.25, translation_mm=8.0, spatial_probability=0.7
    )
    angles, size, shift, moved = map(
        keras.ops.convert_to_numpy, draw_movement(config, 4000, _seed())
    )
    for found, limit in ((np.degrees(angles), 30), (shift, 8), (np.log(size), np.log(1.25))):
        assert 0.99 * limit < np.abs(found).max() <= limit * (1 + 1e-5)
        assert np.abs(found.mean(axis=0)).max() < 0.05 * limit
        assert stats.kstest(found.ravel() / limit, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert 0.66 < moved.mean() < 0.74


def _graph(compiled: bool) -> Any:
    """Everything as one graph of unknown batch size, its seed always the same."""
    seed = _seed(8)

    @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE, 2), tf.uint8)], jit_compile=compiled)
    def everything(volume: Any) -> Any:
        found = augment(volume, config=ALL_MODIFIERS, voxel_mm=VOXEL_MM, top=255.0, seed=seed)
        label = keras.ops.ones((keras.ops.shape(found)[0], 1))
        return found, mixup(found, label, alpha=0.2, seed=seed)[0]

    def run(volume: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        seed.state.assign([8, 0])
        return np.asarray(everything(volume)[0])

    return run


def test_in_a_graph_of_unknown_batch_size_the_same_comes_out() -> None:
    graph, heads = _graph(compiled=False), _heads(batch=3)
    close = np.abs(graph(heads) - _augmented(heads, ALL_MODIFIERS, _seed(8))) < 0.05
    assert close.mean() > 0.999  # but where rounding decides what is foreground
    assert graph(heads[:1]).shape == (1, *SHAPE, 2)


def test_compiled_by_xla_draws_repeat_and_limits_hold() -> None:
    """XLA has a random generator of its own: the draws are others than those of a plain graph."""
    graph, heads = _graph(compiled=True), _heads(batch=3)
    found = graph(heads)
    np.testing.assert_array_equal(found, graph(heads))
    assert np.isfinite(found).all()
    assert (found.min(), found.max() <= 255 * (1 + 1e-6)) == (0, True)
    assert not found[-1, ..., -1].any()
    assert found[:-1].max(axis=(1, 2, 3)).min() > 50
    assert np.abs(found - heads).max() > 10


def test_compiled_by_xla_the_same_movement_gives_the_same_volume() -> None:
    movement = [[[0.3, -0.2, 0.4]], [1.1], [[3.0, -2.0, 4.0]]]

    def moved(volume: Any) -> Any:
        angles, size, shift_mm = map(keras.ops.convert_to_tensor, movement)
        return resample(volume, sampling_affine(angles, size, shift_mm, VOXEL_MM)[0])

    head = _heads(batch=2, channels=1)[0]
    plain, compiled = moved(head).numpy(), tf.function(moved, jit_compile=True)(head).numpy()
    close = np.abs(plain - compiled) < 0.05
    assert (plain > 0).mean() > 0.2
    assert close.mean() > 0.999


def test_mixup_is_convex_and_mixes_volume_and_label_alike() -> None:
    volume = np.random.default_rng(0).random((6, 4, 4, 4, 1)).astype(np.float32)
    label = np.array([[0], [1], [0], [0], [1], [1]], np.float32)
    mixed, target = map(keras.ops.convert_to_numpy, mixup(volume, label, alpha=0.4, seed=_seed()))
    other, other_label = np.roll(volume, 1, axis=0), np.roll(label, 1, axis=0)
    weight = ((mixed - other) / (volume - other)).reshape(6, -1)
    weight = np.median(weight, axis=1)
    assert (weight >= 0).all()
    assert (weight <= 1).all()
    assert np.ptp(weight) > 0.1
    np.testing.assert_allclose(
        target[:, 0], weight * label[:, 0] + (1 - weight) * other_label[:, 0], atol=1e-4
    )
    spread = weight[:, None, None, None, None]
    np.testing.assert_allclose(mixed, spread * volume + (1 - spread) * other, atol=1e-4)


def test_mixup_of_0_mixes_nothing() -> None:
    heads, label = _heads(batch=2), np.array([[0.0], [1.0]], np.float32)
    mixed, target = mixup(heads, label, alpha=0.0, seed=_seed())
    np.testing.assert_array_equal(mixed, heads.astype(np.float32))
    np.testing.assert_array_equal(target, label)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 2.0])
def test_weights_have_the_beta_distribution(alpha: float) -> None:
    found = keras.ops.convert_to_numpy(symmetric_beta(alpha, 4000, _seed(4)))
    assert stats.kstest(found, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_survive_json(name: str) -> None:
    config = AugmentConfig.named(name)
    assert AugmentConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"flip": (0.0, 1.5, 0.0)}, "three probabilities"),
        ({"flip": (0.5,)}, "three probabilities"),
        ({"noise": -0.1}, "noise must be 0 or more"),
        ({"gamma": float("nan")}, "gamma must be 0 or more"),
        ({"spatial_probability": 1.1}, "spatial_probability must lie in"),
        ({"rotation_deg": 200.0}, "at most 180"),
        ({"cutout": 0.6}, "at most 0.5"),
        ({"elastic_spacing_mm": 0.0}, "must be positive"),
        ({"elastic_mm": 20.0}, "would fold space: at most 16.1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AugmentConfig(**fields)


def test_unknown_names_and_fields_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"huge.*none, flip, light, medium, strong"):
        AugmentConfig.named("huge")
    data = AugmentConfig().to_json()
    data["nose"] = data.pop("noise")
    with pytest.raises(ContractError, match=r"missing: \['noise'\], unknown: \['nose'\]"):
        AugmentConfig.from_json(data)
    for wrong in ({"noise": "much"}, {"flip": 0.5}, {"flip": ["a", 0, 0]}):
        with pytest.raises(ContractError, match=r"augmentation (noise|flip): .* required"):
            AugmentConfig.from_json({**AugmentConfig().to_json(), **wrong})
