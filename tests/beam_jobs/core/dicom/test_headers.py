"""The index: the fast walk agrees with pydicom, and every refusal has its reason."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from beam_jobs.common.files.interface import open_bytes
from beam_jobs.core.dicom import headers
from beam_jobs.core.dicom.fields import FIELDS
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason
from beam_jobs.phantoms.series import SeriesSpec, write_series


def bundled_files():
    """pydicom's own: not by its function, which looks for others on the network."""
    return sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))


@pytest.fixture
def series_folder(tmp_path):
    write_series(SeriesSpec(modality="T1w", slices=6), tmp_path / "s", lambda xyz: xyz[..., 0] ** 2)
    return tmp_path / "s"


def assert_walk_agrees(path):
    """Whether the walk took the file; where it did, pydicom must have read the same."""
    with open_bytes(str(path)) as source:
        walked = headers._read_plain(str(path), source)
        if not walked:
            return False
        (header,) = walked
        dataset = pydicom.dcmread(str(path), force=True)
        for tag, (name, kind) in FIELDS.items():
            found = getattr(header, name)
            if tag not in dataset or dataset[tag].value in (None, ""):
                assert found in (None, "", ())
                continue
            value = dataset[tag].value
            if kind in ("text", "texts"):
                many = list(value) if dataset[tag].VM > 1 else [value]
                parts = found if kind == "texts" else found.split("\\")
                assert [str(part).strip() for part in many] == [part.strip() for part in parts]
            else:
                many = list(value) if dataset[tag].VM > 1 else [value]
                numbers = list(found) if kind == "decimals" else [found]
                assert [float(part) for part in many][: len(numbers)] == numbers
        if header.is_native:
            start, length = header.pixel_offset, header.pixel_length
            assert start is not None
            assert length is not None
            stored = Path(path).read_bytes()[start : start + length]
            assert stored == dataset.PixelData[: len(stored)]
    return True


def test_walk_agrees_with_pydicom_on_its_own_test_files():
    taken = [path for path in bundled_files() if assert_walk_agrees(path)]
    assert len(taken) >= 30


@pytest.mark.parametrize("transfer_syntax", ["explicit", "implicit"])
def test_walk_takes_every_phantom_file_and_agrees(tmp_path, transfer_syntax):
    spec = SeriesSpec(slices=5, transfer_syntax=transfer_syntax, slope=0.5, signed=True)
    written = write_series(spec, tmp_path, lambda xyz: xyz[..., 2])
    assert all(assert_walk_agrees(tmp_path / Path(path).name) for path in written.paths)


def test_pydicom_fallback_gives_the_same_headers(series_folder, monkeypatch):
    paths = sorted(map(str, series_folder.iterdir()))
    walked, _ = index_files(paths)
    monkeypatch.setattr(headers, "_read_plain", lambda *_: [])
    parsed, rejected = index_files(paths)
    assert not rejected
    assert walked == parsed


def test_every_path_is_a_header_or_a_rejection(series_folder, tmp_path):
    image = next(series_folder.iterdir())
    cases = {
        Reason.UNREADABLE_FILE: tmp_path / "gone.dcm",
        Reason.NOT_DICOM: tmp_path / "text.dcm",
        Reason.TRUNCATED_PIXELS: tmp_path / "cut.dcm",
        Reason.NO_PIXELS: tmp_path / "bare.dcm",
        Reason.NOT_GREYSCALE: tmp_path / "colour.dcm",
        Reason.BURNED_IN_ANNOTATION: tmp_path / "burned.dcm",
    }
    cases[Reason.NOT_DICOM].write_text("patient name, age, diagnosis\n" * 20)
    cases[Reason.TRUNCATED_PIXELS].write_bytes(image.read_bytes()[:-100])
    for reason, change in (
        (Reason.NO_PIXELS, lambda dataset: dataset.__delattr__("PixelData")),
        (Reason.NOT_GREYSCALE, lambda dataset: setattr(dataset, "SamplesPerPixel", 3)),
        (
            Reason.BURNED_IN_ANNOTATION,
            lambda dataset: setattr(dataset, "BurnedInAnnotation", "YES"),
        ),
    ):
        dataset = pydicom.dcmread(image)
        change(dataset)
        dataset.save_as(cases[reason])
    headers, rejections = index_files([str(image), *map(str, cases.values())])
    assert [header.path for header in headers] == [str(image)]
    assert {r.reason: r.paths[0] for r in rejections} == {k: str(v) for k, v in cases.items()}


def test_empty_file_and_directory_are_refused_not_raised(tmp_path):
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "folder.dcm").mkdir()
    _, rejections = index_files([str(tmp_path / "empty.dcm"), str(tmp_path / "folder.dcm")])
    assert [r.reason for r in rejections] == [Reason.NOT_DICOM, Reason.UNREADABLE_FILE]


def test_enhanced_multi_frame_gives_one_header_a_frame(tmp_path):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 4, 5, 3
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 0
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [2.0, 3.0]
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in range(3):
        group, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 7.0 * index]
        values.RescaleSlope, values.RescaleIntercept = 1 + index, 10 * index
        group.PlanePositionSequence = [position]
        group.PixelValueTransformationSequence = [values]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = np.arange(60, dtype="<u2").tobytes()
    path = tmp_path / "enhanced.dcm"
    dataset.save_as(path, enforce_file_format=True)
    headers, rejections = index_files([str(path)])
    assert not rejections
    assert [h.frame for h in headers] == [0, 1, 2]
    assert [h.position[2] for h in headers] == [0.0, 7.0, 14.0]
    assert [h.slope for h in headers] == [1.0, 2.0, 3.0]
    assert headers[2].pixel_spacing == (2.0, 3.0)

    from beam_jobs.core.series import assemble
    from beam_jobs.core.volume import load_volume

    (series,), _ = assemble(headers)
    volume = load_volume(series)
    stored = np.arange(60).reshape(3, 4, 5)
    expected = stored * np.array([1, 2, 3])[:, None, None] + np.array([0, 10, 20])[:, None, None]
    assert np.array_equal(volume.array, np.moveaxis(expected, 0, 2))


def test_file_without_preamble_is_read(series_folder, tmp_path):
    image = next(series_folder.iterdir())
    dataset = pydicom.dcmread(image)
    stripped = tmp_path / "stripped.dcm"
    stripped.write_bytes(image.read_bytes()[132:])
    headers, rejections = index_files([str(stripped)])
    assert not rejections
    assert headers[0].sop_uid == dataset.SOPInstanceUID


def test_input_is_not_touched(series_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(series_folder, copy)
    index_files(map(str, copy.iterdir()))
    for path in copy.iterdir():
        assert path.read_bytes() == (series_folder / path.name).read_bytes()


def test_mr_storage_constant_is_what_phantoms_write(series_folder):
    (header, *_), _ = index_files(sorted(map(str, series_folder.iterdir())))
    assert header.sop_class == MRImageStorage


def test_paths_may_be_path_objects(tmp_path):
    written = write_series(SeriesSpec(slices=3), tmp_path, lambda xyz: xyz[..., 0] ** 2)
    absent = tmp_path / "absent.dcm"
    found, rejections = index_files([*written.paths, absent])
    assert [header.path for header in found] == [str(path) for path in written.paths]
    assert [rejection.paths for rejection in rejections] == [(str(absent),)]


def test_an_image_of_tiles_that_cannot_be_split_is_refused_as_one(series_folder):
    image = next(series_folder.iterdir())
    dataset = pydicom.dcmread(image)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]
    dataset.save_as(image)
    found, (rejection,) = index_files([image])
    assert not found
    assert rejection.reason is Reason.MOSAIC
