"""A map over a record's grid as a DICOM Parametric Map on the lattice of the series it explains.

    map (row, column, slice) on the grid --trilinear--> every slice of the series --highdicom-->
            Parametric Map (PS3.3 A.75): float32, a frame a slice, where the slices lie

Each frame has the place of one slice of the series and refers to it: uneven stacks, gantry tilt and
oblique slices stay what they are, because nothing is said of a lattice they do not have.
highdicom is imported when a map is written.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, ParametricMapStorage
from pydicom.valuerep import DSfloat
from scipy import ndimage

from beam_jobs.common.files import interface as files
from beam_jobs.common.version import __version__
from beam_jobs.core.dicom_out.origin import UTF_8, derived_uid, is_uid
from beam_jobs.core.dicom_out.outgoing import (
    MIDNIGHT,
    NAME,
    NO_DATE,
    encoded,
    quietly,
    without_clock,
)
from beam_jobs.core.geometry import Array, VolumeGeometry
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.reduction import Float32
from beam_jobs.core.series import Series

# A slice of the series that lies on the grid's outermost voxels stays in it: the affines of records
# are float32, which moves a place by a hundred-thousandth of a voxel.
_ON_EDGE = 1e-3
_TOP = 99.5  # percentile of the sizes that a viewer's window ends at
_LO = 63  # most letters of a text of this kind, and the blank that makes its bytes even
_ELEMENT = struct.Struct("<HH2s2xI")  # tag, kind and length of a long value
_MOST_BYTES = (1 << 32) - 2
_SERIES_NUMBER = 9901  # behind those of scanners


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapFacts:
    """What a map is, beside its numbers.

    Attributes:
      description: of the series, as a list of series shows it.
      content: of the map itself, "not for clinical use" with it.
      explanation: what a number means, its sign included.
      gradcam: the map is a class activation map weighed by gradients; else a saliency map.
      run: what tells apart the runs whose networks are explained.
      key: what tells apart the maps of a run's patient and series.
    """

    description: str
    content: str
    explanation: str
    gradcam: bool
    run: str
    key: str


def on_series(values: npt.NDArray[Any], affine: Array, series: Series) -> Float32:
    """A map at the voxels of a series: trilinear, 0 outside the grid of the map.

    Args:
      values: (row, column, slice) of the grid.
      affine: 4x4, (row, column, slice, 1) of the grid's voxel centres to LPS mm.
      series: where to; its slices count at their true places.

    Returns:
      (slice, row, column) of the series, in its order.

    Raises:
      RejectedError: the series' geometry is not known, or it has more voxels than a map holds.
    """
    if not series.geometry_known:
        raise RejectedError(
            Reason.INVALID_GEOMETRY, "no ImagePositionPatient (0020,0032): the map has no place"
        )
    row_count, column_count, slice_count = values.shape
    grid = VolumeGeometry(shape=(row_count, column_count, slice_count), affine=affine)
    rows, columns, _ = series.geometry.shape
    needed = 4 * rows * columns * len(series.headers)
    if needed > _MOST_BYTES:
        raise RejectedError(
            Reason.TOO_LARGE,
            f"its map would take {needed} bytes, at most {_MOST_BYTES} are possible",
        )
    to_grid = np.zeros((3, 3))  # of a slice's row and column; it has one place along the third axis
    to_grid[:, :2] = np.linalg.solve(grid.affine[:3, :3], series.geometry.affine[:3, :2])
    given = np.ascontiguousarray(values, dtype=np.float32)
    found = np.empty((len(series.headers), rows, columns), dtype=np.float32)
    for frame, header in zip(found, series.headers, strict=True):
        first = grid.to_index(header.position)
        ndimage.affine_transform(
            given,
            to_grid,
            offset=first,
            output_shape=(rows, columns, 1),
            output=frame[:, :, np.newaxis],
            order=1,
            mode="nearest",
            prefilter=False,
        )
        for axis, size in enumerate(grid.shape):
            row, column = to_grid[axis, 0] * np.arange(rows), to_grid[axis, 1] * np.arange(columns)
            place = (row + first[axis])[:, np.newaxis] + column
            frame[(place < -_ON_EDGE) | (place > size - 1 + _ON_EDGE)] = 0.0
    return found


def parametric_map(frames: Float32, series: Series, origin: Dataset, facts: MapFacts) -> bytes:
    """A DICOM file: the Parametric Map of a map on a series, filed in the series' study.

    Args:
      frames: (slice, row, column), as `on_series` gives them.
      series: the series.
      origin: of `origin.read_origin`, of one of its images.
      facts: what the map is.

    Returns:
      The bytes: the same for the same arguments and the same versions of Voxelbeam and highdicom.

    Raises:
      RejectedError: an image of the series has no UID to refer to, or they are of several people.
    """
    images = _instances(series)
    with quietly():
        made = _object(frames, series, origin, facts)
        order = _refer(made, series, images)
        made.Rows, made.Columns = frames.shape[1:]
        del made.FloatPixelData
        # Equal content has one UID, other content another one (PS3.5 9).
        digest = hashlib.sha256(encoded(made))
        digest.update(frames.data)
        made.SOPInstanceUID = derived_uid("map", digest.hexdigest())
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        head = encoded(made)
    # The numbers are the last element (PS3.5 7.1.2). pydicom would copy them three times over.
    element = _ELEMENT.pack(0x7FE0, 0x0008, b"OF", frames.nbytes)
    return b"".join((head, element, *(frames[number].data for number in order)))


def is_own(path: str) -> bool:
    """Whether a file is a Parametric Map that was made here."""
    try:
        with files.open_read(path) as stream:
            found = pydicom.dcmread(
                stream, stop_before_pixels=True, specific_tags=["SOPClassUID", "Manufacturer"]
            )
    except Exception:  # pydicom's errors on what is no DICOM are of any type
        return False
    known = (found.get("Manufacturer"), found.get("SOPClassUID"))
    return known == (NAME, ParametricMapStorage)


def _object(frames: Float32, series: Series, origin: Dataset, facts: MapFacts) -> Dataset:
    """The object with stand-ins for the series' images, and frames of a single pixel.

    Of large frames highdicom would make several copies.
    """
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    quantity = codes.DCM.GradientWeightedClassActivation if facts.gradcam else codes.DCM.Saliency
    of_series = derived_uid("map series", series.first.series_uid, facts.run, facts.key)
    made = ParametricMap(
        source_images=_stand_ins(series, origin),
        pixel_array=np.zeros((len(frames), 1, 1), dtype=np.float32),
        series_instance_uid=of_series,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=of_series,  # until its content is known
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=__version__,
        device_serial_number=facts.run,
        contains_recognizable_visual_features=True,
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="Grad-CAM" if facts.gradcam else "Saliency",
                lut_explanation=_cut(facts.explanation),
                unit=codes.UCUM.NoUnits,
                value_range=(float(frames.min()), float(frames.max())),
                quantity_definition=quantity,
            )
        ],
        voi_lut_transformations=[
            VOILUTTransformation(
                window_center=0.0,
                window_width=_width(frames),
                voi_lut_function="LINEAR_EXACT",  # the only one of widths below 1
            )
        ],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="GRADCAM" if facts.gradcam else "SALIENCY",
        content_description=_cut(facts.content),
        series_description=_cut(facts.description),
        specific_character_set=UTF_8,
        content_date=origin.StudyDate or NO_DATE,
        content_time=origin.StudyTime or MIDNIGHT,
    )
    without_clock(made)
    made.Laterality = None  # type 2C of this object: which side of a pair is not known
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = derived_uid("dimensions", of_series)
    return made


def _instances(series: Series) -> list[tuple[str, str]]:
    """(SOP class, instance) of each object of a series, once.

    Raises:
      RejectedError: one has no UIDs, or they are of several people.
    """
    people = {header.patient_id for header in series.headers}
    if len(people) > 1:
        raise RejectedError(Reason.MIXED_PATIENTS, f"{len(people)} different PatientIDs")
    found = dict.fromkeys((header.sop_class, header.sop_uid) for header in series.headers)
    uids = {series.first.series_uid, *(uid for image in found for uid in image)}
    if not all(map(is_uid, uids)):
        raise RejectedError(
            Reason.CORRUPT_HEADER,
            "an image without a valid SOPClassUID (0008,0016), SOPInstanceUID (0008,0018) or "
            "SeriesInstanceUID (0020,000E): a map cannot refer to it",
        )
    return list(found)


def _stand_ins(series: Series, origin: Dataset) -> list[Dataset]:
    """A plain image for each slice, from which highdicom takes places; `_refer` names the real.

    It knows plain images and one enhanced object whose frames are all taken, in order; no mosaic.
    """
    first = series.first
    reference = first.frame_of_reference
    thickness = first.slice_thickness or 0.0
    thickness = thickness if 0 < thickness < math.inf else 0.0  # it may say anything
    if not is_uid(reference):
        reference = derived_uid("frame of reference", first.series_uid)
    made = []
    for number, header in enumerate(series.headers):
        image = copy.deepcopy(origin)
        image.SOPClassUID = MRImageStorage
        image.SOPInstanceUID = f"2.25.{number}"
        image.StudyInstanceUID, image.SeriesInstanceUID = first.study_uid, first.series_uid
        image.FrameOfReferenceUID = reference
        image.Rows = image.Columns = 1  # as the frames of `_object`
        image.SliceThickness = DSfloat(thickness, auto_format=True) if thickness else None
        for keyword, values in (
            ("PixelSpacing", first.pixel_spacing),
            ("ImageOrientationPatient", first.orientation),
            ("ImagePositionPatient", header.position),
        ):
            setattr(image, keyword, [DSfloat(value, auto_format=True) for value in values])
        made.append(image)
    return made


def _refer(made: Dataset, series: Series, images: Sequence[tuple[str, str]]) -> list[int]:
    """Puts the series' own images where highdicom put the stand-ins.

    Returns:
      Of each frame which slice of the series it is of: highdicom orders them its own way.
    """
    order = []
    made.SourceImageSequence = [_reference(*image) for image in images]
    referred = made.ReferencedSeriesSequence[0]
    referred.ReferencedInstanceSequence = [_reference(*image) for image in images]
    for group in made.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        order.append(int(source.ReferencedSOPInstanceUID.removeprefix("2.25.")))
        header = series.headers[order[-1]]
        source.ReferencedSOPClassUID = header.sop_class
        source.ReferencedSOPInstanceUID = header.sop_uid
        if header.tiles:
            source.SpatialLocationsPreserved = "NO"  # the slice is one tile of that image
        elif (header.frames or 1) > 1:
            source.ReferencedFrameNumber = header.frame + 1
    return order


def _reference(sop_class: str, uid: str) -> Dataset:
    """An item that names an object."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def _width(frames: Float32) -> float:
    """Of the window around 0 that shows nearly all there is, in few digits."""
    some = frames.reshape(-1)[:: max(1, frames.size >> 20)]
    sizes = np.abs(some[some != 0])
    top = float(np.percentile(sizes, _TOP)) if sizes.size else 0.0
    return float(f"{2 * top:.4g}") or 1.0


def _cut(text: str) -> str:
    """A text as an attribute of the kind LO may hold it (PS3.5 6.2)."""
    plain = "".join(letter if letter.isprintable() and letter != "\\" else "?" for letter in text)
    return plain if len(plain) <= _LO else f"{plain[: _LO - 1]}…"
