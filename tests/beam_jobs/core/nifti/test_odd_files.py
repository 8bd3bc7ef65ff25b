"""Every odd NIfTI file is refused with its reason in one line, or read as what it plainly is."""

import gzip
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.beam_jobs.core.nifti.made import (
    AXIAL,
    bytes_of,
    image,
    refusal_of,
    series_of,
    voxels,
    write,
)

NAN, INF = float("nan"), float("inf")
ZEROS = [0.0] * 4


def side(count: int, *sides: int) -> list[int]:
    """The eight numbers of dim."""
    return [count, *sides, *(1,) * (7 - len(sides))]


# What the header says otherwise: reason, and what the detail has to name.
HEADERS: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "neither": (
        {"sform_code": 0, "qform_code": 0},
        Reason.INVALID_GEOMETRY,
        "qform_code and sform_code are 0",
    ),
    "qform without steps": (
        {"sform_code": 0, "qform_code": 1, "pixdim": [1, 0, 0, 0, 0, 0, 0, 0]},
        Reason.INVALID_GEOMETRY,
        "positive pixdim",
    ),
    "qform with a negative step": (
        {"sform_code": 0, "qform_code": 1, "pixdim": [1, 1, -1, 1, 0, 0, 0, 0]},
        Reason.INVALID_GEOMETRY,
        "1, -1, 1",
    ),
    "long quaternion": (
        {"sform_code": 0, "qform_code": 1, "quatern_b": 1, "quatern_c": 1},
        Reason.INVALID_GEOMETRY,
        "quaternion",
    ),
    "huge quaternion": (
        {"sform_code": 0, "qform_code": 1, "quatern_b": 3e38},
        Reason.INVALID_GEOMETRY,
        "quaternion",
    ),
    "NaN quaternion": (
        {"sform_code": 0, "qform_code": 1, "quatern_b": NAN},
        Reason.INVALID_GEOMETRY,
        "quaternion",
    ),
    "NaN offset": (
        {"sform_code": 0, "qform_code": 1, "qoffset_x": NAN},
        Reason.INVALID_GEOMETRY,
        "not finite",
    ),
    "empty sform": (
        {"srow_x": ZEROS, "srow_y": ZEROS, "srow_z": ZEROS},
        Reason.INVALID_GEOMETRY,
        "sform is singular",
    ),
    "flat sform": ({"srow_z": [0, 3, 0, 0]}, Reason.INVALID_GEOMETRY, "singular"),
    "an axis of next to nothing": (
        {"srow_x": [1e-40, 0, 0, 0]},
        Reason.INVALID_GEOMETRY,
        "singular",
    ),
    "NaN sform": ({"srow_x": [NAN, 0, 0, 0]}, Reason.INVALID_GEOMETRY, "sform is not finite"),
    "infinite sform": ({"srow_x": [1, 0, 0, INF]}, Reason.INVALID_GEOMETRY, "sform is not finite"),
    "far away": ({"srow_x": [1, 0, 0, 3e38]}, Reason.INVALID_GEOMETRY, "km away"),
    "metres that are mm": ({"xyzt_units": 1}, Reason.INVALID_GEOMETRY, "says metres"),
    "micrometres that are mm": ({"xyzt_units": 3}, Reason.INVALID_GEOMETRY, "says µm"),
    "no such unit": ({"xyzt_units": 5}, Reason.CORRUPT_HEADER, "xyzt_units"),
    "no dimensions": ({"dim": side(0, 6, 5, 4)}, Reason.CORRUPT_HEADER, "dim[0] is 0"),
    "too many dimensions": ({"dim": side(8, 6, 5, 4)}, Reason.CORRUPT_HEADER, "dim[0] is 8"),
    "negative dimensions": ({"dim": side(-3, 6, 5, 4)}, Reason.CORRUPT_HEADER, "dim[0] is -3"),
    "a side of 0": ({"dim": side(3, 6, 0, 4)}, Reason.CORRUPT_HEADER, "side of 0"),
    "a negative side": ({"dim": side(3, 6, 5, -4)}, Reason.CORRUPT_HEADER, "side of -4"),
    "one slice": ({"dim": side(2, 6, 20, 1)}, Reason.TOO_FEW_SLICES, "one voxel thick"),
    "one row": ({"dim": side(3, 30, 1, 4)}, Reason.TOO_FEW_SLICES, "one voxel thick"),
    "volumes": ({"dim": side(4, 3, 5, 4, 2)}, Reason.SEVERAL_VOLUMES, "2 volumes"),
    "vectors": ({"dim": side(5, 2, 5, 4, 1, 3)}, Reason.SEVERAL_VOLUMES, "fslroi"),
    "more voxels than bytes": ({"dim": side(3, 6, 5, 400)}, Reason.TRUNCATED_PIXELS, "24000"),
    "far fewer voxels": ({"dim": side(3, 6, 5, 4)}, Reason.CORRUPT_HEADER, "240 voxel bytes"),
    "colours": ({"datatype": 128}, Reason.NOT_GREYSCALE, "RGB"),
    "colours and alpha": ({"datatype": 2304}, Reason.NOT_GREYSCALE, "RGBA"),
    "complex": ({"datatype": 32}, Reason.UNSUPPORTED_PIXELS, "complex64"),
    "float128": ({"datatype": 1536}, Reason.UNSUPPORTED_PIXELS, "float128"),
    "bits": ({"datatype": 1}, Reason.UNSUPPORTED_PIXELS, "1-bit"),
    "no such type": ({"datatype": 999}, Reason.UNSUPPORTED_PIXELS, "999"),
    "voxels in the header": ({"vox_offset": 100}, Reason.CORRUPT_HEADER, "vox_offset is 100"),
    "half a byte": ({"vox_offset": 352.5}, Reason.CORRUPT_HEADER, "vox_offset is 352.5"),
    "NaN bytes": ({"vox_offset": NAN}, Reason.CORRUPT_HEADER, "vox_offset is nan"),
    "voxels before the file": ({"vox_offset": -352}, Reason.CORRUPT_HEADER, "vox_offset is -352"),
    "voxels behind the file": ({"vox_offset": 70000}, Reason.TRUNCATED_PIXELS, "0 found"),
    "voxels nowhere": ({"vox_offset": 3e38}, Reason.CORRUPT_HEADER, "vox_offset is 3e+38"),
    "NaN intercept": ({"scl_slope": 2, "scl_inter": NAN}, Reason.CORRUPT_HEADER, "scl_inter nan"),
    "a pair": ({"magic": b"ni1"}, Reason.NO_PIXELS, ".img"),
    "Analyze": ({"magic": b""}, Reason.CORRUPT_HEADER, "Analyze 7.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_an_odd_header_has_its_reason(tmp_path: Path, name: str) -> None:
    fields, reason, says = HEADERS[name]
    shape = (6, 5, 400) if name == "far fewer voxels" else (6, 5, 4)
    found, detail = refusal_of(write(tmp_path / "x.nii", bytes_of(image(voxels(shape)), **fields)))
    assert (found, says in detail, "\n" in detail) == (reason, True, False), detail


@pytest.mark.parametrize("fields", [{"qform_code": -1}, {"sform_code": -1}])
def test_a_negative_code_is_none(tmp_path: Path, fields: dict[str, int]) -> None:
    made = image()
    made.header.set_qform(AXIAL, code=1)
    found = series_of(write(tmp_path / "x.nii", bytes_of(made, **fields)))
    assert found.geometry.spacing == pytest.approx((2.5, 2.0, 3.0))


@pytest.mark.parametrize("qfac", [0.0, 5.0])
def test_a_qfac_that_is_not_negative_is_one(tmp_path: Path, qfac: float) -> None:
    steps = [qfac, 2, 2.5, 3, 0, 0, 0, 0]
    made = image(affine=np.diag([2.0, 2.5, 3.0, 1.0]))
    path = write(tmp_path / "x.nii", bytes_of(made, sform_code=0, qform_code=1, pixdim=steps))
    assert series_of(path).geometry.affine[2, 2] == 3


def test_bitpix_and_pixdim_do_not_count_beside_datatype_and_sform(tmp_path: Path) -> None:
    data = bytes_of(bitpix=7, pixdim=[NAN] * 8)
    assert series_of(write(tmp_path / "x.nii", data)).geometry.spacing == (2.5, 2.0, 3.0)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_what_is_no_nifti_is_not_dicom_either(tmp_path: Path, name: str) -> None:
    for number, data in enumerate((b"", b"a note, not an image", bytes(10000), b"\x5c\x01")):
        path = write(tmp_path / str(number) / name, data)
        assert refusal_of(path)[0] is Reason.NOT_DICOM
    for pointer in (
        b"/annex/objects/MD5E-s9--a.nii.gz",
        b"version https://git-lfs.github.com/spec/v1",
    ):
        (tmp_path / name).write_bytes(pointer)
        assert refusal_of(str(tmp_path / name))[1].startswith("a pointer of git-annex or Git LFS")
    (tmp_path / name).write_bytes(b"")
    assert refusal_of(str(tmp_path / name)) == (Reason.NOT_DICOM, "is empty")
    short = write(tmp_path / "short" / name, bytes_of()[:200])
    assert refusal_of(short) == (Reason.CORRUPT_HEADER, "348 header bytes required, 200 found")


def test_dicom_is_read_whatever_its_name(tmp_path: Path) -> None:
    written = write_series(
        SeriesSpec(rows=8, columns=8, slices=3), tmp_path, lambda xyz: 99 + xyz[..., 0]
    )
    for number, path in enumerate(written.paths):
        path.rename(tmp_path / f"{number}.nii")
    headers, refused = index_files(sorted(map(str, tmp_path.iterdir())))
    (series,), left = assemble(headers)
    assert not refused
    assert not left
    assert not series.first.is_nifti
    assert load_volume(series).array.shape == (8, 8, 3)


def test_a_nifti_file_of_another_name_is_not_guessed(tmp_path: Path) -> None:
    assert refusal_of(write(tmp_path / "x.img", bytes_of()))[0] is Reason.NOT_DICOM


def test_a_directory_named_like_nifti_is_one_rejection(tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").mkdir()
    assert refusal_of(str(tmp_path / "x.nii.gz"))[0] is Reason.UNREADABLE_FILE


def refused_pixels(path: str) -> tuple[Reason, str]:
    """Why a file whose header is sound has no voxels."""
    with pytest.raises(RejectedError) as caught:
        load_volume(series_of(path))
    assert caught.value.path == path
    return caught.value.reason, str(caught.value)


NOISE = np.random.default_rng(0).integers(0, 30000, (40, 30, 20)).astype(np.int16)


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_a_truncated_gzip_is_unreadable(tmp_path: Path, share: float) -> None:
    data = packed(bytes_of(image(NOISE)))
    path = tmp_path / "x.nii.gz"
    path.write_bytes(data[: int(len(data) * share)])
    assert refused_pixels(str(path)) == (
        Reason.UNREADABLE_FILE,
        "damaged compressed data: it ends too early",
    )


def test_a_gzip_cut_within_the_header_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    path.write_bytes(packed(bytes_of())[:30])
    assert refusal_of(str(path))[0] is Reason.UNREADABLE_FILE


@pytest.mark.parametrize("place", [-8, -4])
def test_a_wrong_checksum_or_length_of_gzip_is_unreadable(tmp_path: Path, place: int) -> None:
    data = bytearray(packed(bytes_of(image(NOISE))))
    data[place] ^= 1
    path = tmp_path / "x.nii.gz"
    path.write_bytes(data)
    assert refused_pixels(str(path))[0] is Reason.UNREADABLE_FILE


def test_a_sound_gzip_of_too_few_voxels_is_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii.gz", bytes_of(image(NOISE))[:-100])
    assert refused_pixels(path) == (
        Reason.TRUNCATED_PIXELS,
        "2400 voxel bytes of slice 19 required, 2300 found",
    )


def test_far_more_than_the_voxels_is_refused_and_padding_is_not(tmp_path: Path) -> None:
    data = bytes_of(image(NOISE))
    path = write(tmp_path / "more.nii.gz", data + bytes(len(data)))
    assert refused_pixels(path)[0] is Reason.CORRUPT_HEADER
    path = write(tmp_path / "padded.nii.gz", data + bytes(4000))
    assert np.array_equal(load_volume(series_of(path)).array.transpose(1, 0, 2), NOISE)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 512, b"\x1f", b"what follows", b"\x8b\x1f"])
@pytest.mark.parametrize("cuts", [(), (100,), (348,), (1000, 1001, 20000)])
def test_several_gzip_members_are_one_content_and_what_follows_is_none(
    tmp_path: Path, cuts: tuple[int, ...], garbage: bytes
) -> None:
    data = bytes_of(image(NOISE))
    parts = [data[a:b] for a, b in zip((0, *cuts), (*cuts, len(data)), strict=True)]
    path = tmp_path / "x.nii.gz"
    path.write_bytes(b"".join(map(packed, parts)) + garbage)
    assert np.array_equal(load_volume(series_of(str(path))).array.transpose(1, 0, 2), NOISE)


def test_a_second_member_that_is_damaged_is_unreadable(tmp_path: Path) -> None:
    data = bytes_of(image(NOISE))
    path = tmp_path / "x.nii.gz"
    path.write_bytes(packed(data[:5000]) + b"\x1f\x8b" + bytes(100))
    assert refused_pixels(str(path))[0] is Reason.UNREADABLE_FILE


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e300, -1e35])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_voxels_that_are_no_numbers_are_refused_with_their_share(
    tmp_path: Path, name: str, value: float
) -> None:
    values = voxels((10, 10, 10), np.float64)
    values[3:5, 4, 2] = values[7, 7, 9] = value
    path = write(tmp_path / name, bytes_of(image(values)))
    reason, detail = refused_pixels(path)
    assert reason is Reason.NOT_FINITE
    assert detail.startswith("NaN, infinite or beyond float32: 3 of 1000 voxels (0.30%); ")
    assert "nan_to_num" in detail


def test_scaling_beyond_float32_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", bytes_of(image(voxels(dtype="f8") * 1e28), scl_slope=1e5))
    assert refused_pixels(path)[0] is Reason.NOT_FINITE
    path = write(tmp_path / "y.nii", bytes_of(scl_slope=1e25))
    assert refused_pixels(path)[0] is Reason.CORRUPT_HEADER


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_file_that_changed_since_its_header_was_read_is_refused(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, bytes_of())
    series = series_of(path)
    write(tmp_path / name, bytes_of(image(voxels() + 1)))
    os.utime(path, ns=(series.first.modified + 10, series.first.modified + 10))
    with pytest.raises(RejectedError, match="changed since") as caught:
        load_volume(series)
    assert caught.value.reason is Reason.UNREADABLE_FILE
    # A store's objects have no stamp: then another matrix or type tells.
    write(tmp_path / name, bytes_of(image(voxels((5, 6, 4)))))
    with pytest.raises(RejectedError, match="changed since"):
        next(stored_slices([series.first._replace(modified=0)]))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii.gz", bytes_of())
    headers = series_of(path).headers
    found = stored_slices(headers)
    next(found)
    os.utime(path, ns=(1, 1))
    with pytest.raises(RejectedError, match="changed since"):
        list(found)


def test_a_file_is_closed_where_its_slices_are_left(tmp_path: Path) -> None:
    headers = series_of(write(tmp_path / "x.nii.gz", bytes_of())).headers
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        next(stored_slices(headers))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_small_file_claims_no_more_memory_than_a_slice(tmp_path: Path) -> None:
    """Whole it would be 4 GB, 400 MB, 60 GB: that of 400 MB passes the bound that all may have."""
    tracemalloc.start()
    try:
        for number, (i, j, k) in enumerate(
            [(32000, 32000, 2), (10000, 10000, 2), (30000, 1000, 1000), (2, 2, 32000)]
        ):
            affine = np.diag([0.01, 0.01, 0.01, 1.0])
            data = bytes_of(image(affine=affine), dim=side(3, i, j, k))
            path = write(tmp_path / f"{number}.nii.gz", data)
            headers, refused = index_files([path])
            series, left = assemble(headers)
            for each in series:
                with pytest.raises(RejectedError) as caught:
                    next(stored_slices(each.headers))
                assert caught.value.reason is Reason.TRUNCATED_PIXELS
            assert len(series) + len(refused) + len(left) == 1
        assert tracemalloc.get_traced_memory()[1] < 220 << 20  # and that not filled
    finally:
        tracemalloc.stop()


def test_zeros_by_the_gigabyte_are_refused_at_once(tmp_path: Path) -> None:
    """A bomb: voxels of 2 GB in 2 MB; it is told by what the header says, nothing is inflated."""
    affine = np.diag([0.1, 0.1, 0.1, 1.0])
    head = bytes_of(image(affine=affine), dim=side(3, 1024, 1024, 1024))[:352]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = squeeze.compress(head + bytes(1 << 20)) + squeeze.flush()
    path = tmp_path / "x.nii.gz"
    path.write_bytes(data)
    assert refusal_of(str(path))[0] is Reason.TOO_LARGE


def test_a_small_file_of_very_many_slices_is_refused(tmp_path: Path) -> None:
    """Each would be a header in memory, seven times as large as the file."""
    data = bytes_of(image(np.zeros((4, 4, 5000), np.uint8), np.diag([1, 1, 0.1, 1])))
    reason, detail = refusal_of(write(tmp_path / "x.nii.gz", data))
    assert reason is Reason.TOO_LARGE
    assert detail.endswith("bytes of file claim 5000 slices")
    zeros = bytes_of(image(np.zeros((64, 64, 100), np.int16), np.diag([1, 1, 1, 1])))
    assert len(series_of(write(tmp_path / "y.nii.gz", zeros)).headers) == 100


PLAIN = bytes_of()


def outcome(path: str) -> list[str]:
    """What becomes of a file: its refusals' words, none where it is read."""
    headers, refused = index_files([path])
    series, left = assemble(headers)
    assert len(series) + len(refused) + len(left) == 1
    said = [each.detail for each in (*refused, *left)]
    for each in series:
        try:
            assert np.isfinite(load_volume(each).array).all()
        except RejectedError as error:
            said.append(str(error))
    return said


fuzzed = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@fuzzed
@given(
    st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from(["x.nii", "x.nii.gz"]),
    st.one_of(st.just(len(PLAIN)), st.integers(0, len(PLAIN))),
)
def test_no_bytes_of_a_header_make_more_than_a_refusal(
    tmp_path: Path, changes: list[tuple[int, int]], name: str, length: int
) -> None:
    data = bytearray(PLAIN)
    for place, value in changes:
        data[place] = value
    said = outcome(write(tmp_path / name, bytes(data[:length])))
    assert all(map(str.isprintable, said))


FIELDS = {
    "dim": 8, "datatype": 1, "pixdim": 8, "vox_offset": 1, "scl_slope": 1, "scl_inter": 1,
    "xyzt_units": 1, "qform_code": 1, "sform_code": 1, "quatern_b": 1, "quatern_c": 1,
    "quatern_d": 1, "qoffset_z": 1, "srow_x": 4, "srow_y": 4, "srow_z": 4,
}  # fmt: skip
NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 64, 255, 32767, -32768, NAN, INF, 1e-38, 3e38, 0.5])


@fuzzed
@given(
    st.lists(st.tuples(st.sampled_from(list(FIELDS)), st.integers(0, 7), NUMBERS), max_size=4),
    st.sampled_from([1, 2]),
)
def test_no_values_of_fields_make_more_than_a_refusal(
    tmp_path: Path, changes: list[tuple[str, int, float]], version: int
) -> None:
    made = image(version=version)
    fields: dict[str, Any] = {}
    for name, place, number in changes:
        values = np.atleast_1d(made.header[name].copy())
        with np.errstate(all="ignore"):
            if values.dtype.kind == "f" or np.isfinite(number):
                values[place % FIELDS[name]] = np.array(number).astype(values.dtype)
        fields[name] = values if FIELDS[name] > 1 else values[0]
    said = outcome(write(tmp_path / "x.nii", bytes_of(made, **fields)))
    assert all(map(str.isprintable, said))


def test_pydicom_is_not_asked_about_nifti(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pydicom.filereader, "read_partial", never)
    assert refusal_of(write(tmp_path / "x.nii", b"x" * 500))[0] is Reason.NOT_DICOM
