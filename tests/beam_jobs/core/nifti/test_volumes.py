"""NIfTI volumes as nibabel reads them: every type, byte order and scaling, every affine."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.core.dicom.duplicates import Fingerprints
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.dicom.pixels import BlankTally, stored_slices
from beam_jobs.core.geometry import Array
from beam_jobs.core.nifti.header import parse_header
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from tests.beam_jobs.core.nifti.made import AXIAL, bytes_of, image, opened, series_of, voxels, write

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ROW_COLUMN = np.eye(4)[[1, 0, 2, 3]]  # indices (row, column, slice) from (i, j, k)
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def assert_same(path: str) -> None:
    """Values and places of a file are nibabel's."""
    found, theirs = load_volume(series_of(path)), opened(path)
    values = np.asanyarray(theirs.dataobj)
    index = np.moveaxis(np.indices(found.array.shape), 0, -1)
    to_theirs = np.linalg.inv(LPS @ theirs.affine) @ found.affine
    there = index @ to_theirs[:3, :3].T + to_theirs[:3, 3]
    np.testing.assert_allclose(there, np.rint(there), atol=1e-9)
    i, j, k = np.moveaxis(np.rint(there).astype(int), -1, 0)
    assert len(set(zip(i.flat, j.flat, k.flat, strict=True))) == values.size
    np.testing.assert_allclose(found.array, values[i, j, k], rtol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_in_either_byte_order_is_read_to_the_bit(
    tmp_path: Path, kind: str, order: str, version: int
) -> None:
    values = voxels(dtype=kind)
    if values.dtype.kind == "f":
        values = values / 7 - 1e-3
    else:
        values[0, 0, 0], values[1, 0, 0] = np.iinfo(kind).max, np.iinfo(kind).min
    for name in ("x.nii", "x.nii.gz"):
        path = write(tmp_path / name, bytes_of(image(values, version=version, order=order)))
        found = load_volume(series_of(path)).array
        assert found.dtype == values.dtype.newbyteorder("=")
        assert np.array_equal(found.transpose(1, 0, 2), values)
        assert np.array_equal(np.asanyarray(opened(path).dataobj), values)


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize(
    ("slope", "intercept"), [(2.5, -7.0), (1.0, 100.0), (-0.25, 0.0), (0.0, 9.0), (np.nan, 9.0)]
)
def test_scaling_is_nibabels(tmp_path: Path, kind: str, slope: float, intercept: float) -> None:
    data = bytes_of(image(voxels(dtype=kind)), scl_slope=slope, scl_inter=intercept)
    assert_same(write(tmp_path / "x.nii.gz", data))


def test_floats_with_scaling_are_float64(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", bytes_of(image(voxels(dtype="f4")), scl_slope=0.1))
    assert load_volume(series_of(path)).array.dtype == np.float64


def rotation(axis: Array, angle: float) -> Array:
    """(3, 3) by Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: Array = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned


def oblique(angle: float = 0.3) -> Array:
    affine = np.eye(4)
    affine[:3, :3] = rotation(np.array([1.0, 2.0, -1.0]), angle) * [-0.9, 1.1, 4.0]
    affine[:3, 3] = 12.5, -70.25, 33.0
    return affine


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 1), (1, 2), (3, 4), (2, 0), (0, 4)])
def test_the_sform_counts_where_it_has_a_code_else_the_qform(
    tmp_path: Path, qform: int, sform: int, version: int
) -> None:
    made = image(version=version)
    made.header.set_qform(oblique(), code=1)
    made.header.set_sform(oblique(0.8), code=1)
    path = write(tmp_path / "x.nii", bytes_of(made, qform_code=qform, sform_code=sform))
    assert_same(path)


TURNS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("sheared", [False, True])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_every_turn_and_flip_of_the_axes_lies_where_nibabel_has_it(
    tmp_path: Path, form: str, sheared: bool
) -> None:
    if sheared and form == "qform":
        return  # which cannot be
    for order, signs in TURNS[sheared::3]:
        affine = np.eye(4)
        affine[:3, :3] = oblique()[:3, :3][:, order] * signs
        affine[:3, 3] = 1.0, 2.0, 3.0
        if sheared:
            affine[:3, 2] += 0.4 * affine[:3, 0]
            affine[:3, 1] += 0.2 * affine[:3, 0]
        made = image(affine=affine)
        if form == "qform":
            made.header.set_qform(affine, code=1)
            made.header.set_sform(None, code=0)
        assert_same(write(tmp_path / "x.nii", bytes_of(made)))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3).filter(lambda v: np.linalg.norm(v) > 0.1),
    st.floats(-3.15, 3.15),
    st.lists(st.floats(0.6, 5), min_size=3, max_size=3),
    st.sampled_from([1.0, -1.0]),
)
def test_any_quaternion_is_nibabels(
    axis: list[float], angle: float, steps: list[float], handed: float
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(np.array(axis), angle) * steps * [1, 1, handed]
    made = image()
    made.header.set_qform(affine, code=1)
    made.header.set_sform(None, code=0)
    found = parse_header(bytes_of(made)[:540], "x.nii")
    np.testing.assert_allclose(LPS @ found.affine, made.header.get_qform(), atol=1e-9)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_metres_and_micrometres_are_millimetres(tmp_path: Path, unit: str, factor: float) -> None:
    affine = AXIAL.copy()
    affine[:3] *= factor
    made = image(affine=affine)
    made.header.set_xyzt_units(unit)
    found = series_of(write(tmp_path / "x.nii", bytes_of(made))).geometry
    np.testing.assert_allclose(LPS @ found.affine @ ROW_COLUMN, AXIAL, rtol=1e-6)


def test_extensions_and_a_late_first_voxel_are_passed_over(tmp_path: Path) -> None:
    made = image()
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"a comment" * 100))
    for name in ("x.nii", "x.nii.gz"):
        assert_same(write(tmp_path / name, made.to_bytes()))
        data = bytes_of()
        late = bytes_of(vox_offset=401)[:352] + bytes(49) + data[352:]
        assert_same(write(tmp_path / name, late))


def test_a_first_voxel_of_0_follows_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", bytes_of(vox_offset=0))
    assert np.array_equal(load_volume(series_of(path)).array.transpose(1, 0, 2), voxels())


def test_one_volume_of_four_dimensions_is_one(tmp_path: Path) -> None:
    found = series_of(write(tmp_path / "x.nii", bytes_of(image(voxels((6, 5, 4, 1))))))
    assert found.geometry.shape == (5, 6, 4)


def test_content_says_what_is_packed_not_the_name(tmp_path: Path) -> None:
    packed = Path(write(tmp_path / "x.nii.gz", bytes_of())).read_bytes()
    assert load_volume(series_of(write(tmp_path / "packed.nii", packed))).array.shape == (5, 6, 4)
    plain = tmp_path / "plain.nii.gz"
    plain.write_bytes(bytes_of())
    assert load_volume(series_of(str(plain))).array.shape == (5, 6, 4)


def test_two_files_of_equal_headers_are_two_series(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, bytes_of()) for name in ("b.nii", "a.nii")]
    headers, _ = index_files(paths)
    series, rejected = assemble(headers)
    assert [each.paths for each in series] == [(paths[1],), (paths[0],)]
    assert not rejected


def test_blank_slices_of_floats_are_counted_whatever_the_sign_of_their_zeros(
    tmp_path: Path,
) -> None:
    values = voxels(dtype="f4")
    values[..., 1] = 0.0
    values[0, :, 1] = -0.0
    values[..., 2] = 2.5
    series = series_of(write(tmp_path / "x.nii.gz", bytes_of(image(values))))
    tally = BlankTally()
    assert [each.blank for each in tally.watch(stored_slices(series.headers))] == [
        *(False, True, True, False),
    ]
    assert (tally.slices, tally.blank, tally.one_value) == (4, 2, None)


def test_fingerprints_tell_floats_of_the_same_whole_numbers_apart(tmp_path: Path) -> None:
    values = voxels(dtype="f4")
    paths = [
        write(tmp_path / f"{number}.nii", bytes_of(image(values + 0.25 * (number > 1))))
        for number in range(3)
    ]
    prints = Fingerprints()
    headers = [series_of(path).first for path in paths]
    prints.read(headers)
    first, copy, other = map(prints.of, headers)
    assert first == copy
    assert first != other


def test_slices_may_be_read_in_any_order(tmp_path: Path) -> None:
    headers = series_of(write(tmp_path / "x.nii.gz", bytes_of())).headers
    for frame in (3, 1, 1, 0, 2):
        (found,) = (each.samples.copy() for each in stored_slices([headers[frame]]))
        assert np.array_equal(found, voxels()[..., frame].T)
    several = [each.samples.copy() for each in stored_slices(headers[k] for k in (2, 0, 3))]
    for frame, samples in zip((2, 0, 3), several, strict=True):
        assert np.array_equal(samples, voxels()[..., frame].T)


def test_what_is_read_is_written_again_with_nibabel(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii.gz", bytes_of(image(voxels(dtype="i8"), oblique())))
    load_volume(series_of(path)).save_nifti(tmp_path / "again.nii.gz")
    again = load_volume(series_of(str(tmp_path / "again.nii.gz")))
    first = load_volume(series_of(path))
    corner = [[0, 0, 0], [4, 5, 3]]
    # Its first axis is the row.
    np.testing.assert_allclose(
        again.geometry.to_patient([[y, x, z] for x, y, z in corner]),
        first.geometry.to_patient(corner),
        atol=1e-4,
    )
