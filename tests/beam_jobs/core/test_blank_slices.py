"""Blank slices are counted while the pixels stream by, whatever stores them."""

from unittest import mock

import numpy as np
import pytest
from pydicom import uid

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom import pixels
from beam_jobs.core.dicom.pixels import BlankTally, is_blank, stored_slices
from beam_jobs.core.preprocess import PatientRejectedError, PreprocessSpec, prepare_case
from beam_jobs.core.reasons import Reason
from beam_jobs.phantoms.series import SeriesSpec, write_series
from tests.beam_jobs.core.test_grid import read_series
from tests.dicom_files import enhanced_dataset, group, read_stacks, recipe_image, save, write_slices
from tests.pixel_files import modality_lut, short

SPEC = PreprocessSpec(modalities=("T1w", "FLAIR"), shape=(16, 16, 8))
SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
)


def frames(*values):
    """Twelve-bit slices: of one value, or an image where there is None."""
    image = recipe_image(12).astype(np.uint16)
    return [
        (image + turn) % 4096 if value is None else np.full_like(image, value)
        for turn, value in enumerate(values)
    ]


def tally_of(paths) -> BlankTally:
    (series,) = read_stacks(paths)
    tally = BlankTally()
    handed_on = [stored.blank for stored in tally.watch(stored_slices(series.headers))]
    assert tally.slices == len(handed_on) == len(series.headers)
    return tally


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=short)
def test_slices_of_one_value_are_counted_in_every_encoding(tmp_path, syntax, signed):
    images = frames(0, None, 7, None, None, 2047)
    if signed:
        images = [image.astype(np.int16) - 2048 for image in images]
    tally = tally_of(write_slices(tmp_path, images, syntax, bits_stored=12, signed=signed))
    assert (tally.blank, tally.one_value) == (3, None)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.float32])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (5, 6), (8, 2), (10, 12)])
def test_one_other_pixel_anywhere_makes_a_slice_of_it(dtype, place):
    samples = np.full((11, 13), 3, dtype)
    assert is_blank(samples)
    samples[place] = 4
    assert not is_blank(samples)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_rescale_of_each_slice_and_inversion_make_no_slice_blank_or_not(tmp_path, photometric):
    def rescale(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1.5 + index, -10 * index

    paths = write_slices(
        tmp_path, frames(0, None, 9, None), bits_stored=12, photometric=photometric, change=rescale
    )
    assert tally_of(paths).blank == 2


@pytest.mark.parametrize(
    ("photometric", "value"), [("MONOCHROME1", 2 * (4095 - 30) + 5), ("MONOCHROME2", 2 * 30 + 5)]
)
def test_blank_series_tells_its_value_after_rescale_and_inversion(tmp_path, photometric, value):
    paths = write_slices(
        tmp_path, frames(30, 30, 30), bits_stored=12, photometric=photometric,
        RescaleSlope=2, RescaleIntercept=5,
    )  # fmt: skip
    assert tally_of(paths).one_value == value


def test_series_of_blank_slices_of_several_values_is_not_blank(tmp_path):
    def rescale(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, index

    tally = tally_of(write_slices(tmp_path, frames(4, 4, 4), bits_stored=12, change=rescale))
    assert (tally.blank, tally.one_value) == (3, None)


def test_slice_that_its_modality_lut_maps_to_one_value_is_blank(tmp_path):
    def mapped(dataset, index):
        entries = np.full(256, 40) if index == 1 else np.arange(256)
        dataset.ModalityLUTSequence = modality_lut(0, entries.astype(np.uint16), 12)

    paths = write_slices(tmp_path, frames(None, None), bits_stored=12, change=mapped)
    assert tally_of(paths).blank == 1


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless], ids=short)
def test_blank_frames_of_a_multi_frame_file_are_counted(tmp_path, syntax):
    groups = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [1.0, 2.0, 2.0 * k]},
            PixelValueTransformationSequence={
                "RescaleSlope": 1.0 + k, "RescaleIntercept": -3.0 * k, "RescaleType": "US",
            },
        )
        for k in range(5)
    ]  # fmt: skip
    dataset = enhanced_dataset(groups, bits_stored=12)
    path = save(dataset, tmp_path / "m.dcm", syntax, frames(0, None, 11, None, 0))
    assert tally_of([path]).blank == 3


def write(folder, *, blank=(), value=0.0, **geometry):
    """A series of twelve slices, those in `blank` of one value."""
    counter = iter(range(12))

    def intensity(xyz):
        index = next(counter)
        plain = np.full(xyz.shape[:2], value)
        return plain if index in blank else plain + 100 + np.abs(xyz[..., 0])

    spec = SeriesSpec(rows=40, columns=44, slices=12, **geometry)
    write_series(spec, folder, intensity)
    return read_series(folder)


@pytest.mark.parametrize("value", [0.0, 7.0, 100.0])
@pytest.mark.parametrize(
    ("plane", "oblique"), [("axial", 0.0), ("sagittal", 0.0), ("coronal", 0.0), ("axial", 20.0)]
)
def test_series_of_one_value_is_refused_in_every_plane(tmp_path, plane, oblique, value):
    blank = write(tmp_path, blank=range(12), value=value, plane=plane, obliquity_degrees=oblique)
    with pytest.raises(PatientRejectedError) as caught:
        prepare_case("1", {"T1w": blank}, SPEC)
    (rejection,) = caught.value.rejections
    assert rejection.reason is Reason.BLANK_SERIES
    assert rejection.detail == f"every pixel is {value:g}"
    assert caught.value.blank_slices == {"T1w": 12}


def test_counts_of_each_series_come_with_the_case(tmp_path):
    series = {
        "T1w": write(tmp_path / "a", blank=(0, 1, 5, 11)),
        "FLAIR": write(tmp_path / "b", plane="coronal", obliquity_degrees=14.0, blank=(3,)),
    }
    assert prepare_case("1", series, SPEC).blank_slices == {"T1w": 4, "FLAIR": 1}


def test_series_that_does_not_decode_to_its_end_has_no_count(tmp_path):
    sound = write(tmp_path / "a", blank=(2,))
    images = [*frames(0, None, None), b"\xff\xd8 no codestream"]
    (broken,) = read_stacks(write_slices(tmp_path / "b", images, uid.JPEGLSLossless))
    found = prepare_case("1", {"T1w": sound, "FLAIR": broken}, SPEC)
    assert found.case.present == (True, False)
    assert found.blank_slices == {"T1w": 1}


def test_counting_opens_each_file_once(tmp_path, monkeypatch):
    series = write(tmp_path, blank=(0, 11))
    opened = mock.Mock(wraps=files.open_bytes)
    monkeypatch.setattr(pixels, "open_bytes", opened)
    assert prepare_case("1", {"T1w": series}, SPEC).blank_slices == {"T1w": 2}
    assert sorted(call.args[0] for call in opened.call_args_list) == sorted(series.paths)
