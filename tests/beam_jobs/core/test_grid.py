"""The grid: whatever a series' plane, spacing, order, gaps or tilt, a voxel says what is there."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_jobs.core import foreground
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.dicom.pixels import StoredSlice
from beam_jobs.core.geometry import VolumeGeometry
from beam_jobs.core.preprocess import PreprocessSpec, grid_around, prepare_case, resample_series
from beam_jobs.core.resample import resample_stack
from beam_jobs.core.series import Series, assemble
from beam_jobs.phantoms.anatomy import Head, Lesion
from beam_jobs.phantoms.series import Plane, SeriesSpec, write_series

SPEC = PreprocessSpec(modalities=("T1w",), shape=(32, 32, 16), fov_mm=(120.0, 120.0, 80.0))
MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
HEAD = Head(centre=(6.0, -9.0, 11.0), rotation_degrees=(4.0, -3.0, 6.0))


def read_series(folder: Path) -> Series:
    headers, unread = index_files(sorted(map(str, folder.glob("*"))))
    series, rejected = assemble(headers)
    assert not unread
    assert not rejected
    (only,) = series
    return only


def grid_points(grid: VolumeGeometry) -> npt.NDArray[Any]:
    """LPS mm of every voxel, (row, column, slice, 3)."""
    return grid.to_patient(np.moveaxis(np.indices(grid.shape), 0, -1))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


def numbers(low: float, high: float):
    return st.floats(low, high, allow_nan=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plane=st.sampled_from(PLANES),
    oblique=st.one_of(st.just(0.0), numbers(1, 40)),
    turn=numbers(0, 180),
    spacing=st.tuples(numbers(0.7, 3), numbers(0.7, 3), numbers(1, 6)),
    slope=st.sampled_from([1.0, 0.5, 2.5, -1.0]),
    direction=st.tuples(numbers(-1, 1), numbers(-1, 1), numbers(-1, 1)).filter(
        lambda d: max(map(abs, d)) > 0.2
    ),
    gaps=st.sets(st.integers(2, 11), max_size=3),
    shuffle=st.randoms(use_true_random=False),
)
def test_linear_ramp_in_patient_space_comes_back_as_that_ramp(
    scratch, plane, oblique, turn, spacing, slope, direction, gaps, shuffle
):
    steps = np.asarray(direction)

    def ramp(xyz):
        return 20_000.0 + xyz @ (steps * 40.0)

    size = 96 if max(spacing[:2]) < 1.5 else 48
    slices = 14
    file_numbers = list(range(1, slices + 1))
    shuffle.shuffle(file_numbers)
    folder = scratch / f"{len(list(scratch.iterdir()))}"
    signed = slope < 0
    spec = SeriesSpec(
        modality="T1w",
        plane=plane,
        obliquity_degrees=oblique,
        obliquity_axis_degrees=turn,
        rows=size,
        columns=size + 6,
        slices=slices,
        row_spacing=round(spacing[0], 4),
        column_spacing=round(spacing[1], 4),
        slice_step=round(spacing[2], 3),
        centre=(3.0, -4.0, 5.0),
        slope=slope,
        intercept=30_000.0 if signed else 0.0,
        signed=signed,
        file_numbers=tuple(file_numbers),
        spacing_between_slices=9.9,
    )
    written = write_series(spec, folder, ramp)
    if max(abs(steps)) * slope == 0:
        return
    for gap in gaps:  # slices that never arrived
        (folder / Path(written.paths[gap]).name).unlink()
    series = read_series(folder)
    grid = grid_around(np.array([3.0, -4.0, 5.0]), SPEC)
    resampled = resample_series(series, SPEC, grid)
    expected = ramp(grid_points(resampled.geometry))
    # A voxel at the very edge takes the outermost slice's value.
    index = series.geometry.to_index(grid_points(resampled.geometry))
    within = ((index >= 0) & (index <= np.array(series.geometry.shape) - 1)).all(axis=-1)
    assert within.sum() > 50
    assert not (within & ~resampled.inside).any()
    scale = 40.0 * np.abs(steps) @ np.array(SPEC.fov_mm)
    error = np.abs(resampled.array - expected)[within].max()
    # Stored values are rounded to whole steps of the slope.
    assert error <= 1e-3 * scale + abs(slope)


def test_same_head_in_three_planes_and_oblique_agrees(tmp_path):
    spec = PreprocessSpec(modalities=("T1w",), shape=(48, 48, 32), fov_mm=(216, 216, 160))
    grid = grid_around(np.asarray(HEAD.centre), spec)
    volumes = {}
    views: list[tuple[str, Plane, float]] = [(plane, plane, 0.0) for plane in PLANES]
    for name, plane, oblique in [*views, ("oblique", "axial", 17.0)]:
        series = SeriesSpec(
            modality="T1w", plane=plane, obliquity_degrees=oblique, obliquity_axis_degrees=40.0,
            rows=120, columns=124, slices=110, row_spacing=1.9, column_spacing=1.8, slice_step=2.0,
            centre=HEAD.centre,
        )  # fmt: skip
        write_series(series, tmp_path / name, lambda xyz: HEAD.intensity(xyz, "T1w"))
        volumes[name] = resample_series(read_series(tmp_path / name), spec, grid).array
    reference = volumes["axial"]
    for name, volume in volumes.items():
        correlation = np.corrcoef(volume.ravel(), reference.ravel())[0, 1]
        assert correlation > 0.995, name
        assert np.abs(volume - reference).mean() < 0.02 * reference.max(), name


@pytest.mark.parametrize("oblique", [0.0, 12.0])
@pytest.mark.parametrize(("rows", "columns"), [(1, 30), (30, 1)])
def test_images_of_one_row_or_column_make_a_volume(tmp_path, rows, columns, oblique):
    spec = SeriesSpec(
        rows=rows, columns=columns, slices=9, obliquity_degrees=oblique, obliquity_axis_degrees=30.0
    )
    write_series(spec, tmp_path, lambda xyz: 1000 + xyz @ [3.0, 5.0, 7.0])
    found = resample_series(read_series(tmp_path), SPEC)
    assert found.inside.any()
    within = found.array[found.inside]
    assert 600 < within.min() < within.max() < 1400


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    ("plane", "oblique"), [*((plane, 0.0) for plane in PLANES), ("axial", 21.0), ("sagittal", 9.0)]
)
def test_lesion_lands_within_a_voxel_of_its_place(tmp_path, modality, plane, oblique):
    """The lesion is what differs between the head with it and the same head without it."""
    lesion = Lesion(kind="ring", centre=(-24.0, 14.0, 31.0), radius=15.0)
    spec = PreprocessSpec(modalities=(modality,), shape=(64, 64, 32))
    grid = grid_around(np.asarray(HEAD.centre), spec)
    series = SeriesSpec(
        modality=modality, plane=plane, obliquity_degrees=oblique, obliquity_axis_degrees=70.0,
        rows=110, columns=116, slices=44, row_spacing=1.9, column_spacing=1.8, slice_step=4.6,
        centre=(2.0, -5.0, 8.0), file_numbers=tuple(np.random.default_rng(0).permutation(44) + 1),
    )  # fmt: skip
    arrays = []
    for name, head in (("with", dataclasses.replace(HEAD, lesion=lesion)), ("without", HEAD)):
        write_series(series, tmp_path / name, functools.partial(head.intensity, modality=modality))
        arrays.append(resample_series(read_series(tmp_path / name), spec, grid).array)
    difference = np.abs(arrays[0] - arrays[1])
    found = (np.indices(grid.shape) * difference).sum(axis=(1, 2, 3)) / difference.sum()
    true = grid.to_index(np.asarray(lesion.centre))
    assert np.abs(found - true).max() < 1.0


def test_missing_modality_is_a_channel_of_zeros_and_said_so(tmp_path):
    write_series(SeriesSpec(modality="T1w"), tmp_path / "s", lambda xyz: HEAD.intensity(xyz, "T1w"))
    spec = PreprocessSpec(modalities=("FLAIR", "T1w"), shape=(16, 16, 8))
    prepared = prepare_case("7", {"T1w": read_series(tmp_path / "s")}, spec)
    case, rejections = prepared.case, prepared.rejections
    assert case.present == (False, True)
    assert not case.volume[..., 0].any()
    assert case.volume[..., 1].max() == 255
    assert not rejections


def test_prepared_head_is_upright_and_not_mirrored(tmp_path):
    """Rows run to posterior, columns to left, slices to superior: a spot at each end shows it."""
    spec = PreprocessSpec(modalities=("T1w",), shape=(32, 32, 32), fov_mm=(160, 160, 160))
    for axis, spot in enumerate(((0, 50, 0), (50, 0, 0), (0, 0, 50))):
        place = np.asarray(spot, dtype=float)

        def ball_and_spot(xyz, place=place):
            head = np.linalg.norm(xyz, axis=-1) < 60
            return head * 500.0 + (np.linalg.norm(xyz - place, axis=-1) < 8) * 2000.0

        folder = tmp_path / str(axis)
        write_series(SeriesSpec(modality="T1w", plane="coronal"), folder, ball_and_spot)
        case = prepare_case("1", {"T1w": read_series(folder)}, spec).case
        brightest = np.argwhere(case.volume[..., 0] == 255).mean(axis=0)
        # spot: posterior -> row axis, left -> column axis, superior -> slice axis.
        assert np.argmax(np.abs(brightest - 15.5)) == axis
        assert brightest[axis] > 20


def test_grid_centre_is_not_moved_by_noise_nor_by_a_black_slice(tmp_path):
    rng = np.random.default_rng(1)
    calls = []

    def noisy_ball(xyz):
        calls.append(1)
        if len(calls) == 6:
            return np.zeros(xyz.shape[:2])
        signal = (np.linalg.norm(xyz - np.array([10.0, 5.0, -8.0]), axis=-1) < 45) * 800.0
        return (
            signal
            + np.abs(rng.normal(0, 15, xyz.shape[:2]))
            + (rng.random(xyz.shape[:2]) < 0.001) * 900
        )

    write_series(SeriesSpec(rows=80, columns=80, slices=30), tmp_path / "s", noisy_ball)
    spec = PreprocessSpec(modalities=("T1w",), shape=(64, 64, 64), fov_mm=(160, 160, 160))
    resampled = resample_series(read_series(tmp_path / "s"), spec)
    assert resampled.geometry.centre == pytest.approx([10.0, 5.0, -8.0], abs=3.0)


@pytest.mark.parametrize("background", [0.0, -1024.0, 640.5])
def test_rounding_in_an_exact_background_is_no_foreground(background):
    rng = np.random.default_rng(3)
    exact = np.full((20, 20, 20), background, dtype=np.float32)
    exact[6:14, 5:15, 4:16] += rng.uniform(200, 900, (8, 10, 12)).astype(np.float32)
    rounded = exact.copy()
    rounded[exact == background] += np.float32(1e-5 * 900) * rng.random(
        (exact == background).sum(), dtype=np.float32
    )
    assert (rounded > rounded.min()).mean() > 0.9
    threshold = foreground.foreground_threshold(rounded)
    assert threshold == pytest.approx(foreground.foreground_threshold(exact), rel=1e-6)
    ends = foreground.foreground_extent(rounded, np.eye(4))
    np.testing.assert_array_equal(ends, foreground.foreground_extent(exact, np.eye(4)))
    # As recipe 2 has it, whose models still predict.
    above = rounded[rounded > rounded.min()]
    low, high = np.percentile(above, (2, 98))
    old = foreground.foreground_threshold(rounded, 0.0)
    assert old == pytest.approx(low + 0.1 * (high - low), rel=1e-6)
    assert abs(old - threshold) > 10


def test_each_recipe_has_its_own_foreground(tmp_path, monkeypatch):
    spec = SeriesSpec(modality="T1w", obliquity_degrees=20.0)
    write_series(spec, tmp_path / "s", lambda xyz: (np.linalg.norm(xyz, axis=-1) < 45) * 800.0)
    series = read_series(tmp_path / "s")
    asked = []
    found = foreground.foreground_threshold

    def watched(values, rounding=foreground.ROUNDING):
        asked.append(rounding)
        return found(values, rounding)

    for module in ("foreground", "preprocess"):
        monkeypatch.setattr(f"beam_jobs.core.{module}.foreground_threshold", watched)
    for recipe, rounding in ((2, 0.0), (3, foreground.ROUNDING)):
        asked.clear()
        prepare_case("1", {"T1w": series}, dataclasses.replace(SPEC, recipe=recipe))
        assert asked == [rounding, rounding]
    assert PreprocessSpec().recipe == 3


@settings(max_examples=80, deadline=None)
@given(
    plane=st.sampled_from(PLANES),
    oblique=st.one_of(st.just(0.0), numbers(0.5, 30)),
    shear=st.tuples(numbers(-0.5, 0.5), numbers(-0.5, 0.5)),
    spacing=st.tuples(numbers(0.5, 4), numbers(0.5, 4), numbers(0.8, 7)),
    jitter=st.lists(numbers(-0.3, 0.3), min_size=16, max_size=16),
    rescale=st.lists(st.tuples(numbers(0.5, 2), numbers(-900, 900)), min_size=16, max_size=16),
    direction=st.tuples(numbers(-1, 1), numbers(-1, 1), numbers(-1, 1)),
)
def test_ramp_survives_tilt_uneven_steps_and_a_rescale_of_each_slice(
    plane, oblique, shear, spacing, jitter, rescale, direction
):
    steps = np.asarray(direction) * 10
    along_column, along_row, normal = SeriesSpec(
        plane=plane, obliquity_degrees=oblique, obliquity_axis_degrees=25.0
    ).directions
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[0]
    affine[:3, 1] = along_column * spacing[1]
    tilt = normal + shear[0] * along_row + shear[1] * along_column
    affine[:3, 2] = tilt * spacing[2]
    shape = (40, 44, 16)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    geometry = VolumeGeometry(shape=shape, affine=affine)
    # The first and last slice lie on the lattice's ends, those between them anywhere.
    offsets = (np.arange(16) + np.array(jitter) * (np.arange(16) % 15 > 0)).tolist()

    def slices():
        rows, columns = np.mgrid[:40, :44]
        for offset, (slope, intercept) in zip(offsets, rescale, strict=True):
            index = np.stack([rows, columns, np.full_like(rows, offset, dtype=float)], axis=-1)
            values = 3000 + geometry.to_patient(index) @ steps
            yield StoredSlice((values - intercept) / slope, slope, intercept, blank=False)

    grid = grid_around(np.zeros(3), SPEC)
    resampled = resample_stack(slices(), geometry, offsets, SPEC.spacing, lambda *_: grid)
    index = geometry.to_index(grid_points(grid))
    within = ((index >= 0) & (index <= np.array(shape) - 1)).all(axis=-1)
    expected = 3000 + grid_points(grid) @ steps
    scale = max(float(np.abs(steps) @ np.array(SPEC.fov_mm)), 100.0)
    assert np.abs(resampled.array - expected)[within].max(initial=0) <= 1e-3 * scale
    assert not (within & ~resampled.inside).any()


def test_downsampling_does_not_alias():
    """Stripes finer than the grid average out instead of beating against it."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[[1, 0, 2, 3]]
    affine[:3, 3] = -60
    geometry = VolumeGeometry(shape=(120, 120, 120), affine=affine)
    stripes = 500.0 + 500.0 * (np.indices((120, 120)).sum(axis=0) % 2)

    def slices():
        for k in range(120):
            yield StoredSlice(stripes if k % 2 else 1500.0 - stripes, 1.0, 0.0, blank=False)

    grid = VolumeGeometry.canonical((16, 16, 8), (5.0, 5.0, 8.0), (-40.0, -40.0, -32.0))
    resampled = resample_stack(slices(), geometry, range(120), (5.0, 5.0, 8.0), lambda *_: grid)
    assert resampled.inside.all()
    assert np.abs(resampled.array - 750.0).max() < 5.0


@pytest.mark.parametrize("seed", range(40))
def test_percentiles_are_numpys_to_the_bit(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1000, int(rng.integers(1, 300))).astype(np.float32)
    if seed % 2:
        values = np.rint(values / 500)
    for wanted in ((2, 98), (0, 100), (0.5, 99.5), tuple(sorted(rng.uniform(0, 100, 2)))):
        assert foreground.percentiles(values, wanted) == tuple(np.percentile(values, wanted))
