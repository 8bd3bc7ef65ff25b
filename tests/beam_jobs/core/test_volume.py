"""Volumes: values as stored and rescaled, places as dcm2niix has them."""

import nibabel
import numpy as np
import pytest

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.series import assemble
from beam_jobs.core.volume import load_volume
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.dicom_files import assert_same_as_dcm2niix
from tests.real_series import unpack_real_series


def load(folder):
    headers, unread = index_files(sorted(map(str, folder.iterdir())))
    (series,), rejected = assemble(headers)
    assert not unread
    assert not rejected
    return load_volume(series)


@pytest.mark.slow  # a whole series; phantoms in every plane are quick
def test_real_series_is_what_dcm2niix_makes_of_it(tmp_path):
    folder = unpack_real_series(tmp_path)
    volume = load(folder)
    assert sorted(volume.array.shape) == [274, 384, 384]
    assert sorted(volume.geometry.spacing) == pytest.approx([0.6667, 0.6667, 0.7], abs=1e-3)
    assert_same_as_dcm2niix(folder, volume, tmp_path)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("oblique", [0.0, 12.0])
def test_phantom_series_is_what_dcm2niix_makes_of_it(tmp_path, plane, oblique):
    spec = SeriesSpec(
        plane=plane, obliquity_degrees=oblique, obliquity_axis_degrees=30.0, rows=20, columns=24,
        slices=9, file_numbers=(4, 9, 2, 7, 1, 8, 3, 6, 5), instance_numbers=tuple(range(1, 10)),
    )  # fmt: skip
    write_series(spec, tmp_path / "s", lambda xyz: 1000 + xyz @ [3.0, 5.0, 7.0])
    volume = load(tmp_path / "s")
    np.testing.assert_allclose(volume.affine, spec.affine, atol=1e-6)
    assert_same_as_dcm2niix(tmp_path / "s", volume, tmp_path)


def test_rescale_gives_float_and_none_keeps_integers(tmp_path):
    for name, slope in (("plain", 1.0), ("scaled", 0.5)):
        spec = SeriesSpec(rows=8, columns=8, slices=3, slope=slope)
        write_series(spec, tmp_path / name, lambda xyz: 100 + np.rint(xyz[..., 0]))
    plain, scaled = load(tmp_path / "plain"), load(tmp_path / "scaled")
    assert plain.array.dtype == np.uint16
    assert scaled.array.dtype == np.float32
    assert np.array_equal(plain.array, scaled.array)


def test_a_gap_between_rescaled_slices_is_filled_in_their_float32_on_any_numpy(tmp_path):
    """numpy 2 would interpolate in float64, and round otherwise."""
    spec = SeriesSpec(rows=16, columns=16, slices=9, slope=0.1, intercept=0.7)
    noise = np.random.default_rng(0)
    written = write_series(spec, tmp_path / "s", lambda xyz: noise.uniform(1, 300, xyz.shape[:-1]))
    whole = load(tmp_path / "s").array
    for gone in (3, 4):
        written.paths[gone].unlink()
    found = load(tmp_path / "s").array
    assert whole.dtype == found.dtype == np.float32
    low, high = whole[:, :, 2], whole[:, :, 5]
    third, two = np.float32(1 / 3), np.float32(2 / 3)
    assert np.array_equal(found[:, :, 3], low * two + high * third)
    assert np.array_equal(found[:, :, 4], low * third + high * two)


def test_missing_slice_is_interpolated_at_true_positions(tmp_path):
    spec = SeriesSpec(rows=8, columns=8, slices=9)
    written = write_series(spec, tmp_path / "s", lambda xyz: 1000 + 10 * xyz[..., 2])
    whole = load(tmp_path / "s")
    written.paths[4].unlink()
    holed = load(tmp_path / "s")
    np.testing.assert_allclose(holed.array, whole.array, atol=1e-2)
    np.testing.assert_allclose(holed.affine, whole.affine, atol=1e-9)


def test_nifti_file_reads_back_in_nibabel(tmp_path):
    spec = SeriesSpec(plane="coronal", obliquity_degrees=8.0, rows=8, columns=10, slices=5)
    write_series(spec, tmp_path / "s", lambda xyz: 1000 + xyz[..., 1])
    volume = load(tmp_path / "s")
    for name in ("v.nii", "v.nii.gz"):
        volume.save_nifti(tmp_path / name)
        image = nibabel.load(tmp_path / name)
        assert isinstance(image, nibabel.Nifti1Image)
        voxels = np.asarray(image.dataobj)
        assert voxels.dtype == volume.array.dtype
        assert np.array_equal(voxels, volume.array)
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ volume.affine, atol=1e-4)
    with pytest.raises(ValueError, match=r"must end in \.nii"):
        volume.save_nifti(str(tmp_path / "v.img"))


def test_file_cut_short_after_indexing_is_refused_with_its_name(tmp_path):
    written = write_series(SeriesSpec(slices=3), tmp_path, lambda xyz: xyz[..., 0] ** 2)
    headers, _ = index_files(map(str, written.paths))
    (series,), _ = assemble(headers)
    victim = written.paths[1]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(RejectedError) as caught:
        load_volume(series)
    assert caught.value.reason is Reason.TRUNCATED_PIXELS
    assert caught.value.path == str(victim)
