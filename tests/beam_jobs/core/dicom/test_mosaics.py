"""Mosaics and grids: every tile a slice where dcm2niix puts it, one volume an image."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import uid

from beam_jobs.common.files.interface import open_bytes
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.reasons import Reason
from beam_jobs.core.volume import load_volume
from tests.dicom_files import (
    assert_same_as_dcm2niix,
    assert_same_as_nifti,
    read_stacks,
    read_volume,
    recipe_image,
    run_dcm2niix,
    write_slices,
)
from tests.mosaics import csa_header, write_grid, write_mosaic

SLICES = [recipe_image(12, turn=37 * k).astype(np.uint16) for k in range(7)]
TILTED = np.cos(np.deg2rad(17)), np.sin(np.deg2rad(17))
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "feet first": (-1, 0, 0, 0, 1, 0),
    "oblique axial": (1, 0, 0, 0, *TILTED),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
}
NICOM = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"


@pytest.mark.parametrize("up", [1, -1], ids=["along the normal", "against it"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_siemens_mosaic_is_the_volume_of_dcm2niix(tmp_path, orientation, up):
    path = write_mosaic(
        tmp_path / "s" / "1.dcm", SLICES, orientation=ORIENTATIONS[orientation], up=up
    )
    volume = read_volume([path])
    assert volume.array.shape == (*SLICES[0].shape, len(SLICES))
    assert_same_as_dcm2niix(tmp_path / "s", volume, tmp_path)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_uih_grid_is_the_volume_of_dcm2niix(tmp_path, orientation):
    path = write_grid(tmp_path / "s" / "1.dcm", SLICES, orientation=ORIENTATIONS[orientation])
    assert_same_as_dcm2niix(tmp_path / "s", read_volume([path]), tmp_path)


@pytest.mark.parametrize("write", [write_mosaic, write_grid])
@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.JPEGLosslessSV1]
)
def test_tiles_are_cut_from_every_encoding(tmp_path, write, syntax):
    plain = read_volume([write(tmp_path / "plain.dcm", SLICES)])
    other = read_volume([write(tmp_path / "other.dcm", SLICES, syntax)])
    assert np.array_equal(plain.array, np.stack(SLICES, axis=-1))
    assert np.array_equal(other.array, plain.array)
    assert np.array_equal(other.affine, plain.affine)


def test_order_is_told_by_the_older_csa_header_too(tmp_path):
    # dcm2niix does not read this version, and takes the default for granted.
    newer = read_volume([write_mosaic(tmp_path / "2.dcm", SLICES, up=-1)])
    older = read_volume([write_mosaic(tmp_path / "1.dcm", SLICES, up=-1, csa=1, counted=False)])
    assert np.array_equal(older.array, newer.array)
    assert np.array_equal(older.affine, newer.affine)


def test_without_a_csa_header_nothing_tells_which_way_the_tiles_follow(tmp_path):
    """dcm2niix takes feet to head for granted: wrong where the scanner was set to the other way."""
    _, (rejection,) = index_files([str(write_mosaic(tmp_path / "1.dcm", SLICES, csa=0))])
    assert rejection.reason is Reason.MOSAIC
    assert "SliceNormalVector" in rejection.detail


def test_uih_images_that_are_no_grids_are_slices(tmp_path):
    paths = write_slices(
        tmp_path, SLICES, bits_stored=12, Manufacturer="UIH",
        ImageType=["ORIGINAL", "PRIMARY", "M", "VFRAME"],
    )  # fmt: skip
    assert np.array_equal(read_volume(paths).array, np.stack(SLICES, axis=-1))


@pytest.mark.parametrize("write", [write_mosaic, write_grid])
def test_mosaics_of_a_time_series_are_its_repetitions(tmp_path, write):
    folder = tmp_path / "s"
    series = [SLICES[t:] + SLICES[:t] for t in range(3)]
    paths = [write(folder / f"{t}.dcm", series[t], number=t + 1) for t in range(3)]
    stacks = read_stacks(paths)
    assert [stack.paths for stack in stacks] == [(str(path),) for path in paths]
    (image,) = run_dcm2niix(folder, tmp_path)
    for t, stack in enumerate(stacks):
        assert_same_as_nifti(image, load_volume(stack), t)


def test_a_mosaic_is_read_once_for_all_its_tiles(tmp_path, monkeypatch):
    headers, _ = index_files([str(write_mosaic(tmp_path / "1.dcm", SLICES))])
    opened = []

    def counting(path):
        opened.append(path)
        return open_bytes(path)

    monkeypatch.setattr("beam_jobs.core.dicom.pixels.open_bytes", counting)
    assert len(list(stored_slices(headers))) == len(SLICES)
    assert len(opened) == 1


def across_the_normal(dataset):
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER")
    block[0x10].value = csa_header(
        {
            "First": [],
            "NumberOfImagesInMosaic": ["7"],
            "SliceNormalVector": ["1", "0", "0"],
        }
    )


def countless(dataset):
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER")
    block[0x10].value = csa_header({"First": [], "NumberOfImagesInMosaic": ["2000000000"]})


def a_tile_for_each_pixel(dataset):
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER")
    block[0x10].value = csa_header(
        {"NumberOfImagesInMosaic": [str(dataset.Rows**2)], "SliceNormalVector": ["0", "0", "1"]}
    )


def damaged(dataset):
    dataset.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value = b"SV10" + bytes(20)


def one_position_less(dataset):
    dataset.private_block(0x0065, "Image Private Header")[0x51].value.pop()


def no_frames(dataset):
    del dataset.private_block(0x0065, "Image Private Header")[0x51]


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_mosaic, {"csa": 0, "counted": False}),
        (write_mosaic, {"change": across_the_normal}),
        (write_mosaic, {"change": countless}),
        (write_mosaic, {"change": a_tile_for_each_pixel}),
        (write_mosaic, {"change": damaged}),
        (write_mosaic, {"change": lambda dataset: delattr(dataset, "ImagePositionPatient")}),
        (write_mosaic, {"change": lambda dataset: delattr(dataset, "ImageOrientationPatient")}),
        (write_grid, {"change": one_position_less}),
        (write_grid, {"change": no_frames}),
    ],
)
def test_what_cannot_be_split_is_refused_as_a_mosaic(tmp_path, write, options):
    found, (rejection,) = index_files([str(write(tmp_path / "1.dcm", SLICES, **options))])
    assert not found
    assert rejection.reason is Reason.MOSAIC


def test_pixels_that_are_no_square_of_tiles_are_refused(tmp_path):
    path = write_mosaic(tmp_path / "1.dcm", SLICES[:4], counted=False)  # two tiles a side
    data = path.read_bytes()
    path.write_bytes(data.replace(b"4\0\0\0", b"5\0\0\0", 1))  # five need three a side
    _, (rejection,) = index_files([str(path)])
    assert rejection.reason is Reason.MOSAIC


@pytest.mark.parametrize("name", ["siemens_dwi_0", "siemens_dwi_1000"])
def test_mosaics_of_a_real_scanner_are_the_volumes_of_dcm2niix(tmp_path, name):
    folder = tmp_path / "s"
    folder.mkdir()
    path = folder / "1.dcm"
    path.write_bytes(gzip.decompress((NICOM / f"{name}.dcm.gz").read_bytes()))
    volume = read_volume([path])
    assert volume.array.shape == (128, 128, 48)
    assert_same_as_dcm2niix(folder, volume, tmp_path)


def test_mosaics_that_follow_the_head_are_a_volume_each(tmp_path):
    """Prospective motion correction moves and turns the slices from volume to volume."""
    paths = []
    for t in range(3):
        angle = np.deg2rad(0.3 * t)
        paths.append(
            write_mosaic(
                tmp_path / f"{t}.dcm", SLICES, number=t + 1, corner=(-20.0, -30.0, 10.0 + 0.7 * t),
                orientation=(1, 0, 0, 0, np.cos(angle), np.sin(angle)),
            )
        )  # fmt: skip
    stacks = read_stacks(paths)
    assert [stack.paths for stack in stacks] == [(str(path),) for path in paths]
    heights = [stack.geometry.affine[2, 3] for stack in stacks]
    assert heights == pytest.approx([10.0, 10.7, 11.4])
