"""One head lands on one grid, whichever way a NIfTI file stores its axes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.core.geometry import Array, VolumeGeometry
from beam_jobs.core.preprocess import (
    PatientRejectedError,
    PreprocessSpec,
    prepare_case,
    resample_series,
)
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.resample import Resampled
from beam_jobs.core.volume import load_volume
from beam_jobs.phantoms.series import Plane, SeriesSpec
from tests.beam_jobs.core.nifti.made import bytes_of, image, series_of, write

SPEC = PreprocessSpec(shape=(32, 32, 12), fov_mm=(160.0, 160.0, 120.0))
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (72, 80, 50)
TURNS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def straight() -> Array:
    """RAS affine of voxels (i, j, k) to right, anterior, superior."""
    affine = np.diag([1.72, 1.6, 2.4, 1.0])
    affine[:3, 3] = -61.0, -57.0, -49.0
    return affine


def turned_by(angle: float) -> Array:
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.eye(4)
    turn[:3, :3] = [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    found: Array = turn @ tilt @ straight()
    return found


def sheared() -> Array:
    affine = straight()
    affine[1, 2] = 1.5  # a gantry's tilt
    return affine


def head(affine: Array, shape: tuple[int, ...] = SHAPE) -> Array:
    """An ellipsoid in the patient with a ramp and a spot in it, its edge soft."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    depth = 1 - (x / 50) ** 2 - (y / 56) ** 2 - (z / 52) ** 2
    spot = np.exp(-((x - 20) ** 2 + (y + 10) ** 2 + (z - 15) ** 2) / 200)
    found: Array = np.clip(4 * depth, 0, 1) * (400 + 2 * x + 1.5 * y + z + 300 * spot)
    return found


def stored(
    values: Any, affine: Array, order: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[Any, Array]:
    """The same volume with its axes in another order and direction."""
    values, affine = values.transpose(order), affine[:, [*order, 3]].copy()
    steps = []
    for index, sign in enumerate(signs):
        steps.append(slice(None, None, sign))
        if sign < 0:
            affine[:3, 3] += (values.shape[index] - 1) * affine[:3, index]
            affine[:3, index] *= -1
    return values[tuple(steps)], affine


def resampled(folder: Path, values: Array, affine: Array) -> Resampled:
    path = write(folder / "x.nii", bytes_of(image(values.astype(np.float32), affine)))
    return resample_series(series_of(path), SPEC)


def assert_same(found: Resampled, expected: Resampled) -> None:
    assert np.array_equal(found.geometry.affine, expected.geometry.affine)
    assert np.array_equal(found.inside, expected.inside)
    np.testing.assert_allclose(found.array, expected.array, atol=2e-3)  # of 1000
    assert np.ptp(expected.array) > 500


def test_a_straight_volume_is_one_whichever_way_it_is_stored(tmp_path: Path) -> None:
    values = head(straight())
    expected = resampled(tmp_path, values, straight())
    for order, signs in TURNS[1::3]:
        assert_same(resampled(tmp_path, *stored(values, straight(), order, signs)), expected)


@pytest.mark.parametrize("affine", [turned_by(0.2), turned_by(0.03), sheared()], ids=lambda _: "")
def test_an_oblique_or_sheared_volume_is_one_whichever_way_its_axes_run(
    tmp_path: Path, affine: Array
) -> None:
    values = head(affine)
    expected = resampled(tmp_path, values, affine)
    for order, signs in TURNS[5::11]:
        assert_same(resampled(tmp_path, *stored(values, affine, order, signs)), expected)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("oblique", [0.0, 12.0])
def test_a_file_is_turned_as_scanners_images_are(
    tmp_path: Path, plane: Plane, oblique: float
) -> None:
    """Whichever way its axes run, the geometry is to the last digits that of the images."""
    spec = SeriesSpec(
        plane=plane, obliquity_degrees=oblique, obliquity_axis_degrees=30.0, rows=9, columns=8,
        slices=7,
    )  # fmt: skip
    expected = VolumeGeometry(shape=(9, 8, 7), affine=spec.affine)
    values = np.arange(9.0 * 8 * 7).reshape(9, 8, 7)
    ras = LPS @ spec.affine
    for _, signs in TURNS[:8]:
        turned, affine = stored(values, ras, (1, 0, 2), signs)
        path = write(tmp_path / "x.nii.gz", bytes_of(image(turned, affine, version=2)))
        found = load_volume(series_of(path))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
        assert np.array_equal(found.array, values)


def test_a_nifti_patient_is_prepared_like_any(tmp_path: Path) -> None:
    """Whole recipe: the record's voxels differ by a level at most, floats or scaled integers."""
    values = head(straight())
    cases = []
    for number, (order, signs) in enumerate(TURNS[::7]):
        turned, affine = stored(values, straight(), order, signs)
        if number % 2:
            whole = np.rint(turned * 16).astype(np.int16)
            data = bytes_of(image(whole, affine), scl_slope=1 / 16, scl_inter=0.0)
        else:
            data = bytes_of(image(turned, affine))
        series = series_of(write(tmp_path / f"{number}.nii.gz", data))
        cases.append(prepare_case("1", {"T1w": series}, SPEC).case)
    for case in cases[1:]:
        assert np.array_equal(case.affine, cases[0].affine)
        differ = np.abs(case.volume.astype(int) - cases[0].volume)
        assert differ.max() <= 1
        assert (differ > 0).mean() < 0.01
    assert cases[0].volume.max() == 255


def test_values_that_float32_cannot_tell_apart_are_blank(tmp_path: Path) -> None:
    faint = head(straight(), (20, 20, 10)) * 1e-36
    series = series_of(write(tmp_path / "x.nii", bytes_of(image(faint, straight()))))
    with pytest.raises(PatientRejectedError) as caught:
        prepare_case("1", {"T1w": series}, SPEC)
    (refusal,) = caught.value.rejections
    assert refusal.reason is Reason.BLANK_SERIES


def test_a_blank_file_is_a_blank_series(tmp_path: Path) -> None:
    blank = np.full((20, 20, 10), 0.5)
    series = series_of(write(tmp_path / "x.nii.gz", bytes_of(image(blank, straight()))))
    with pytest.raises(RejectedError, match=r"every pixel is 0\.5") as caught:
        resample_series(series, SPEC)
    assert caught.value.reason is Reason.BLANK_SERIES


def test_a_file_keeps_its_exact_affine(tmp_path: Path) -> None:
    affine = turned_by(0.2)
    series = series_of(write(tmp_path / "x.nii", bytes_of(image(head(affine, (9, 8, 7)), affine))))
    kept: Array = affine.astype(np.float32).astype(np.float64)
    exact = VolumeGeometry(shape=(9, 8, 7), affine=LPS @ kept)
    # Its i and j run to the right and to anterior.
    corners = [[8, 7, 0], [0, 0, 0], [0, 0, 6], [0, 7, 6]]
    found = series.geometry.to_patient([[7 - j, 8 - i, k] for i, j, k in corners])
    np.testing.assert_allclose(found, exact.to_patient(corners), rtol=1e-12)
    assert series.even
    assert series.geometry_known
    assert series.geometry.plane == "axial"
    assert series.geometry.obliquity == pytest.approx(
        np.degrees(np.arccos(np.cos(0.2) ** 2)), abs=0.01
    )
