"""A map on a series' lattice: where its numbers lie, and what the object says of itself."""

from __future__ import annotations

import dataclasses
import io
import itertools
import shutil
import subprocess
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from highdicom import get_volume_from_series
from highdicom.pm import ParametricMap
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage
from scipy import ndimage

from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.dicom_out.outgoing import NAME
from beam_jobs.core.dicom_out.parametric_map import MapFacts, is_own, on_series, parametric_map
from beam_jobs.core.geometry import VolumeGeometry
from beam_jobs.core.reasons import RejectedError
from beam_jobs.core.series import Series, assemble
from tests.dicom_files import enhanced_dataset, group, read_stacks, save
from tests.mosaics import write_mosaic

ROWS, COLUMNS, SLICES = 9, 11, 7
SPACING = (2.0, 1.5)
FACTS = MapFacts(
    description="Saliency T1w: class 1, not for clinical use",
    content="T1w: class 1; not for clinical use",
    explanation="share of the logit; + towards class 1, - away from it",
    gradcam=False,
    run="0123abcd",
    key="integrated_gradients T1w 0",
)
PLANES = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "oblique": (0.96, 0.28, 0, -0.168, 0.576, -0.8),
}
EVEN = tuple(2.5 * k for k in range(SLICES))
# The third slice is missing, and the fifth lies where no scanner meant it to.
UNEVEN = (0.0, 2.5, 7.5, 10.0, 13.2, 15.0)


def origin() -> Dataset:
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.PatientID, made.PatientName = "00005", "Müller^Änne"
    made.PatientBirthDate = made.AccessionNumber = made.ReferringPhysicianName = ""
    made.PatientSex, made.StudyID = "F", "7"
    made.StudyDate, made.StudyTime, made.StudyInstanceUID = "20240229", "101112", "1.2.3"
    return made


def series_of(
    plane: str = "axial",
    heights: tuple[float, ...] = EVEN,
    *,
    tilt: float = 0.0,
    **changes: Any,
) -> Series:
    """Slices at heights (mm along their normal), pushed along their rows by `tilt` mm a mm."""
    orientation = np.array(PLANES[plane], dtype=float)
    along, down = orientation[:3], orientation[3:]
    normal = np.cross(along, down)
    headers = [
        SliceHeader(
            path=f"{number}.dcm",
            file_size=10_000,
            transfer_syntax="1.2.840.10008.1.2.1",
            pixel_offset=1000,
            pixel_length=2 * ROWS * COLUMNS,
            sop_class=MRImageStorage,
            sop_uid=f"1.2.3.4.{number}",
            study_uid="1.2.3",
            series_uid="1.2.3.4",
            frame_of_reference="1.2.3.9",
            series_number=4,
            instance_number=number,
            slice_thickness=2.5,
            position=tuple((-7.25, 3.125, 11.0) + height * (normal + tilt * down)),
            orientation=tuple(orientation),
            pixel_spacing=SPACING,
            rows=ROWS,
            columns=COLUMNS,
            bits_allocated=16,
        )._replace(**changes)
        for number, height in enumerate(heights)
    ]
    (found,), rejections = assemble(headers)
    assert not rejections
    return found


def grid_over(series: Series, seed: int = 0) -> tuple[npt.NDArray[np.float32], Any]:
    """Random numbers on a canonical grid that ends within the series on some sides."""
    shape = (6, 7, 5)
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 2.75, 0], [3.0, 0, 0], [0, 0, 3.5]]
    affine[:3, 3] = series.geometry.centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2 - 0.7)
    return values, affine


def made_of(series: Series, frames: Any, facts: MapFacts = FACTS) -> ParametricMap:
    return ParametricMap.from_file(io.BytesIO(parametric_map(frames, series, origin(), facts)))


def places_in(made: Dataset) -> npt.NDArray[np.float64]:
    """LPS mm of every voxel, (frame, row, column, 3), from what the object itself says."""
    shared = made.SharedFunctionalGroupsSequence[0]
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    turned = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    rows, columns = np.mgrid[: made.Rows, : made.Columns][..., None]
    first = [
        item.PlanePositionSequence[0].ImagePositionPatient
        for item in made.PerFrameFunctionalGroupsSequence
    ]
    start = np.array(first, dtype=float)[:, None, None]
    places: npt.NDArray[np.float64] = (
        start + rows * down * turned[3:] + columns * right * turned[:3]
    )
    return places


def numbers_in(made: Dataset) -> npt.NDArray[np.float32]:
    return np.frombuffer(made.FloatPixelData, "<f4").reshape(-1, made.Rows, made.Columns)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("heights", "tilt"), [(EVEN, 0.0), (UNEVEN, 0.0), (EVEN, 0.3)], ids=["even", "uneven", "tilted"]
)
def test_numbers_lie_in_the_patient_where_the_map_has_them(plane, heights, tilt):
    series = series_of(plane, heights, tilt=tilt)
    values, affine = grid_over(series)
    made = made_of(series, on_series(values, affine, series))
    places = places_in(made)
    index = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    expected = ndimage.map_coordinates(
        values.astype(np.float64), np.moveaxis(index, -1, 0), order=1, cval=0.0
    )
    inside = ((index >= 0) & (index <= np.array(values.shape) - 1)).all(axis=-1)
    assert inside.any()
    assert not inside.all()
    numbers = numbers_in(made)
    np.testing.assert_allclose(numbers, expected, atol=1e-5)
    assert not numbers[~inside].any()


def test_a_series_on_the_grids_outermost_voxels_keeps_them():
    """Whatever its affine lost where a record keeps it in float32."""
    series = series_of("oblique")
    values = np.random.default_rng(0).uniform(1, 2, (ROWS, COLUMNS, SLICES)).astype(np.float32)
    affine = series.geometry.affine.astype(np.float32).astype(float)
    np.testing.assert_allclose(
        on_series(values, affine, series), values.transpose(2, 0, 1), atol=1e-4
    )


def test_numbers_are_interpolated_as_by_simpleitk():
    import SimpleITK

    series = series_of("oblique", UNEVEN)
    values, affine = grid_over(series)
    image = SimpleITK.GetImageFromArray(values.transpose(2, 0, 1).astype(np.float64))
    steps = affine[:3, [1, 0, 2]]  # ITK counts columns first
    image.SetSpacing(np.linalg.norm(steps, axis=0).tolist())
    image.SetDirection((steps / np.linalg.norm(steps, axis=0)).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    made = made_of(series, on_series(values, affine, series))
    points, numbers = places_in(made).reshape(-1, 3), numbers_in(made).ravel()
    inside = [
        (float(number), image.EvaluateAtPhysicalPoint(point.tolist(), SimpleITK.sitkLinear))
        for number, point in zip(numbers, points, strict=True)
        if number != 0
    ]
    found, expected = np.array(inside).T
    assert len(found) > 50
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("plane", PLANES)
def test_a_point_in_the_map_is_brightest_at_the_nearest_voxel_of_the_series(plane):
    series = series_of(plane)
    point = series.geometry.to_patient((3, 7, 4))
    values = np.zeros((9, 9, 9), dtype=np.float32)
    values[4, 4, 4] = 1
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = point - 8.0
    made = made_of(series, on_series(values, affine, series))
    brightest = np.unravel_index(numbers_in(made).argmax(), numbers_in(made).shape)
    np.testing.assert_allclose(places_in(made)[brightest], point, atol=1e-9)


@pytest.mark.parametrize("plane", PLANES)
def test_geometry_reads_back_as_that_of_the_series_itself(plane):
    series = series_of(plane)
    made = made_of(series, np.ones((SLICES, ROWS, COLUMNS), np.float32))
    volume = made.get_volume()
    sources = []
    for header in series.headers:
        image = origin()
        image.SOPClassUID, image.SOPInstanceUID = header.sop_class, header.sop_uid
        image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3.4", header.frame_of_reference
        image.Rows, image.Columns, image.PixelSpacing = ROWS, COLUMNS, list(SPACING)
        image.ImagePositionPatient = [f"{mm:.10g}" for mm in header.position]
        image.ImageOrientationPatient = list(header.orientation)
        image.BitsAllocated, image.PixelRepresentation, image.SamplesPerPixel = 16, 0, 1
        image.BitsStored, image.HighBit = 16, 15
        image.PhotometricInterpretation = "MONOCHROME2"
        image.PixelData = bytes(2 * ROWS * COLUMNS)
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        sources.append(image)
    source = get_volume_from_series(sources)
    np.testing.assert_allclose(volume.affine, source.affine, atol=1e-9)
    assert volume.spatial_shape == source.spatial_shape
    assert volume.frame_of_reference_uid == "1.2.3.9"
    assert volume.array.dtype == np.float64  # the real-world mapping has been applied
    assert (volume.array == 1).all()


def test_slices_keep_their_own_places_to_the_last_digit():
    series = series_of("oblique", UNEVEN)
    made = made_of(series, np.zeros((len(UNEVEN), ROWS, COLUMNS), np.float32))
    first = {
        tuple(map(float, item.PlanePositionSequence[0].ImagePositionPatient))
        for item in made.PerFrameFunctionalGroupsSequence
    }
    expected = {tuple(float(f"{mm:.13g}") for mm in header.position) for header in series.headers}
    assert {tuple(float(f"{mm:.13g}") for mm in place) for place in first} == expected
    assert "DimensionOrganizationType" not in made  # it is no even stack


def test_each_frame_refers_to_the_image_of_its_place():
    series = series_of("coronal")
    made = made_of(series, np.zeros((SLICES, ROWS, COLUMNS), np.float32))
    by_uid = {header.sop_uid: header for header in series.headers}
    seen = []
    for item in made.PerFrameFunctionalGroupsSequence:
        (source,) = item.DerivationImageSequence[0].SourceImageSequence
        header = by_uid[source.ReferencedSOPInstanceUID]
        place = item.PlanePositionSequence[0].ImagePositionPatient
        assert list(map(float, place)) == pytest.approx(header.position, abs=1e-9)
        assert source.SpatialLocationsPreserved == "YES"
        assert source.ReferencedSOPClassUID == MRImageStorage
        assert "ReferencedFrameNumber" not in source
        seen.append(header.sop_uid)
    assert sorted(seen) == sorted(by_uid)
    (referred,) = made.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == "1.2.3.4"
    named = {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence}
    assert named == set(by_uid)


def test_frames_of_an_enhanced_object_are_referred_to_by_number(tmp_path):
    order = [3, 6, 0, 5, 1, 4, 2]
    places = [
        group(PlanePositionSequence={"ImagePositionPatient": [1.0, 2.0, 3.0 * k]}) for k in order
    ]
    image = enhanced_dataset(places, rows=ROWS, columns=COLUMNS, bits_stored=12)
    images = [np.zeros((ROWS, COLUMNS), np.uint16)] * SLICES
    (series,) = read_stacks([save(image, tmp_path / "m.dcm", ExplicitVRLittleEndian, images)])
    made = made_of(series, np.zeros((SLICES, ROWS, COLUMNS), np.float32))
    for item in made.PerFrameFunctionalGroupsSequence:
        (source,) = item.DerivationImageSequence[0].SourceImageSequence
        height = float(item.PlanePositionSequence[0].ImagePositionPatient[2])
        assert order[source.ReferencedFrameNumber - 1] == round(height / 3)
        assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert source.ReferencedSOPClassUID == EnhancedMRImageStorage
    (named,) = made.SourceImageSequence
    assert named.ReferencedSOPInstanceUID == image.SOPInstanceUID


def test_tiles_of_a_mosaic_refer_to_their_image_whose_places_are_others(tmp_path):
    images = [np.full((ROWS, COLUMNS), k, np.uint16) for k in range(SLICES)]
    corner = (-20.0, -30.0, 10.0)
    path = write_mosaic(tmp_path / "m.dcm", images, corner=corner, step=3.0)
    (series,) = read_stacks([path])
    made = made_of(series, np.zeros((SLICES, ROWS, COLUMNS), np.float32))
    assert (made.Rows, made.Columns, made.NumberOfFrames) == (ROWS, COLUMNS, SLICES)
    heights = set()
    for item in made.PerFrameFunctionalGroupsSequence:
        (source,) = item.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == series.first.sop_uid
        assert source.SpatialLocationsPreserved == "NO"
        assert "ReferencedFrameNumber" not in source
        place = list(map(float, item.PlanePositionSequence[0].ImagePositionPatient))
        assert place[:2] == pytest.approx(corner[:2], abs=1e-6)
        heights.add(round(place[2], 4))
    assert heights == {10.0 + 3 * k for k in range(SLICES)}


def test_the_object_says_what_it_is_and_whose():
    series = series_of()
    frames = np.linspace(-3e-5, 1e-5, SLICES * ROWS * COLUMNS, dtype=np.float32)
    made = made_of(series, frames.reshape(SLICES, ROWS, COLUMNS))
    assert (made.PatientID, str(made.PatientName)) == ("00005", "Müller^Änne")
    assert (made.StudyInstanceUID, made.StudyID, str(made.StudyDate)) == ("1.2.3", "7", "20240229")
    assert made.SeriesInstanceUID != "1.2.3.4"
    assert made.FrameOfReferenceUID == "1.2.3.9"
    assert made["Laterality"].is_empty
    assert (made.Manufacturer, made.ContentQualification) == (NAME, "RESEARCH")
    assert made.SeriesDescription == FACTS.description
    assert "not for clinical use" in made.ContentDescription
    shared = made.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeMeaning == "no units"
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("130404", "DCM")
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    (window,) = shared.FrameVOILUTSequence
    assert float(window.WindowCenter) == 0
    assert float(window.WindowWidth) == pytest.approx(6e-5, rel=0.02)
    assert window.VOILUTFunction == "LINEAR_EXACT"


def test_the_same_map_is_the_same_file_and_another_one_another_instance():
    series = series_of()
    frames = np.zeros((SLICES, ROWS, COLUMNS), np.float32)
    first = parametric_map(frames, series, origin(), FACTS)
    assert parametric_map(frames.copy(), series_of(), origin(), FACTS) == first
    frames[0, 0, 0] = 1
    others: list[Dataset] = [pydicom.dcmread(io.BytesIO(first))]
    moved = frames[::-1].copy()  # of the same least and greatest number
    for facts, values in itertools.product((FACTS, _other(FACTS)), (frames, 2 * frames, moved)):
        others.append(made_of(series, values, facts))
    assert len({one.SOPInstanceUID for one in others}) == len(others)
    assert len({one.SeriesInstanceUID for one in others}) == 2  # one a run, whatever its numbers


def _other(facts: MapFacts) -> MapFacts:
    return MapFacts(**{**vars(facts), "run": "another", "gradcam": True})


def test_an_empty_map_of_odd_words_is_an_object_too():
    facts = MapFacts(**{**vars(FACTS), "description": "a\\b\x1b" + "é" * 90})
    made = made_of(series_of(), np.zeros((SLICES, ROWS, COLUMNS), np.float32), facts)
    assert made.SeriesDescription.startswith("a?b?éé")
    assert len(made.SeriesDescription) == 63


def test_a_series_without_places_has_no_map():
    series = series_of(position=(), orientation=(), frame_of_reference="")
    assert not series.geometry_known
    with pytest.raises(RejectedError, match="ImagePositionPatient"):
        on_series(np.zeros((3, 3, 3)), np.eye(4), series)


def test_a_series_of_more_than_a_value_holds_has_no_map():
    series = series_of()
    huge = VolumeGeometry(shape=(1 << 15, 1 << 14, SLICES), affine=series.geometry.affine)
    with pytest.raises(RejectedError, match="15032385536 bytes"):
        on_series(np.zeros((3, 3, 3)), np.eye(4), dataclasses.replace(series, geometry=huge))


@pytest.mark.parametrize("uid", ["", "1.2\\3", "abc", "1" * 65])
@pytest.mark.parametrize("field", ["sop_uid", "sop_class"])
def test_a_series_that_cannot_be_referred_to_has_no_map(field, uid):
    changes: dict[str, Any] = {field: uid}
    series = series_of(**changes)
    with pytest.raises(RejectedError, match="cannot refer"):
        parametric_map(np.zeros((SLICES, ROWS, COLUMNS), np.float32), series, origin(), FACTS)


def test_a_series_without_a_frame_of_reference_gets_one_of_its_own():
    made = made_of(series_of(frame_of_reference=""), np.zeros((SLICES, ROWS, COLUMNS), np.float32))
    assert made.FrameOfReferenceUID.startswith("2.25.")


def test_own_files_are_known_from_others(tmp_path):
    data = parametric_map(
        np.zeros((SLICES, ROWS, COLUMNS), np.float32), series_of(), origin(), FACTS
    )
    (tmp_path / "own.dcm").write_bytes(data)
    other = pydicom.dcmread(io.BytesIO(data))
    other.Manufacturer = "Somebody"
    other.save_as(tmp_path / "other.dcm")
    (tmp_path / "junk.dcm").write_bytes(b"no DICOM")
    found = {name: is_own(str(tmp_path / f"{name}.dcm")) for name in ("own", "other", "junk")}
    assert found == {"own": True, "other": False, "junk": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {"heights": UNEVEN},
        {"plane": "oblique", "tilt": 0.3},
        {"slice_thickness": None},
        {"frame_of_reference": ""},
        {"tiles": 3, "sop_uid": "1.2.3.5"},
        {"frames": SLICES, "sop_uid": "1.2.3.5", "sop_class": EnhancedMRImageStorage},
    ],
)
def test_dciodvfy_finds_no_error(kind: dict[str, Any], tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    series = series_of(**kind)
    frames = np.ones((len(series.headers), ROWS, COLUMNS), np.float32)
    path = tmp_path / "map.dcm"
    path.write_bytes(parametric_map(frames, series, origin(), FACTS))
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert "ParametricMap" in said
    assert "Error" not in said
