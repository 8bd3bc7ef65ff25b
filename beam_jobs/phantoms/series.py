"""One MR series of a phantom: geometry and storage as a value, and the writer of its files.

`write_series` images any function of patient coordinates, so a test can write a linear ramp, a step
or a head in a chosen plane, spacing, order and encoding, and know where each value must land.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from beam_jobs.common.files import interface as files
from beam_jobs.phantoms.anatomy import Array, Vector
from beam_jobs.phantoms.vendor_headers import (
    VENDORS,
    Vendor,
    add_series_elements,
    slice_elements,
)

Plane = Literal["axial", "coronal", "sagittal"]
IntensityFunction = Callable[[NDArray[np.float64]], Array]

# Directions of increasing column index and of increasing row index, LPS: radiological display.
PLANES: dict[str, tuple[Vector, Vector]] = {
    "axial": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
}
TRANSFER_SYNTAXES = {"explicit": ExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian}

# (repetition, echo, inversion time) in ms, as brain protocols have them.
_TIMING: dict[str, tuple[float, float, float | None]] = {
    "FLAIR": (9000.0, 120.0, 2500.0),
    "T1w": (1900.0, 2.6, 900.0),
    "T1wCE": (1900.0, 2.6, 900.0),
    "T2w": (4800.0, 98.0, None),
}


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """Where the voxels of a series lie and how they are stored.

    Slice index 0 is the first along the normal.

    Attributes:
        modality: SeriesDescription and, in a cohort, the folder's name.
        plane: the plane before tilting; its normal is row direction x column direction
            (PS3.3 C.7.6.2.1.1).
        obliquity_degrees: tilt about an axis within the plane.
        obliquity_axis_degrees: that axis, from the direction of increasing column index (0) to
            that of increasing row index (90).
        rows, columns, slices: the matrix.
        row_spacing, column_spacing: mm between rows and between columns, in PixelSpacing's order.
        slice_step: true mm between slice centres, along the normal.
        centre: patient LPS of the middle of the volume, mm.
        slope, intercept: rescale; written only where they are not 1 and 0.
        bits_stored: 12 or 16, in 16 allocated.
        signed: PixelRepresentation 1.
        transfer_syntax: "explicit" or "implicit" VR little endian.
        vendor: whose classic MR headers the files' are shaped like (`vendor_headers`): "GE",
            "Philips", "UIH", "Siemens"; "" is a short header of the package's own.
        slice_thickness: the tag's value; None writes `slice_step`.
        spacing_between_slices: the tag's value, which may lie; None writes no tag.
        file_numbers: the n of `Image-<n>.dcm` for each slice, in order along the normal; empty
            means 1..slices.
        instance_numbers: InstanceNumber likewise.
        blank: every voxel is 0 (after rescale).
        missing: the series is not written at all (only `write_cohort` looks at it).
        blank_slices: indices of slices without signal; known once written.
    """

    modality: str = "T1wCE"
    plane: Plane = "axial"
    obliquity_degrees: float = 0.0
    obliquity_axis_degrees: float = 0.0
    rows: int = 64
    columns: int = 64
    slices: int = 24
    row_spacing: float = 3.0
    column_spacing: float = 3.0
    slice_step: float = 5.0
    centre: Vector = (0.0, 0.0, 0.0)
    slope: float = 1.0
    intercept: float = 0.0
    bits_stored: int = 16
    signed: bool = False
    transfer_syntax: Literal["explicit", "implicit"] = "explicit"
    vendor: Vendor = ""
    slice_thickness: float | None = None
    spacing_between_slices: float | None = None
    file_numbers: tuple[int, ...] = ()
    instance_numbers: tuple[int, ...] = ()
    blank: bool = False
    missing: bool = False
    blank_slices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.plane not in PLANES:
            raise ValueError(f"plane must be one of {', '.join(PLANES)}, found {self.plane!r}")
        if self.transfer_syntax not in TRANSFER_SYNTAXES:
            raise ValueError(
                f"transfer_syntax must be explicit or implicit, found {self.transfer_syntax!r}"
            )
        if self.vendor and self.vendor not in VENDORS:
            raise ValueError(
                f"vendor must be one of {', '.join(VENDORS)} or '', found {self.vendor!r}"
            )
        if min(self.rows, self.columns, self.slices) < 1:
            raise ValueError(
                "rows, columns and slices must be >= 1, found "
                f"{self.rows}, {self.columns}, {self.slices}"
            )
        if min(self.row_spacing, self.column_spacing, self.slice_step) <= 0 or self.slope == 0:
            raise ValueError(f"spacings must be > 0 mm and slope not 0 in {self}")
        if self.bits_stored not in (12, 16):
            raise ValueError(f"bits_stored must be 12 or 16, found {self.bits_stored}")
        for name in ("file_numbers", "instance_numbers"):
            numbers = getattr(self, name)
            if numbers and (len(numbers) != self.slices or len(set(numbers)) != self.slices):
                raise ValueError(
                    f"{name} must be empty or {self.slices} different numbers, found {len(numbers)}"
                )

    @property
    def directions(self) -> NDArray[np.float64]:
        """(3, 3) unit vectors, LPS: of increasing column, of increasing row, slice normal."""
        along_row, along_column = (np.array(vector) for vector in PLANES[self.plane])
        if self.obliquity_degrees:
            turn, tilt = np.deg2rad([self.obliquity_axis_degrees, self.obliquity_degrees])
            axis = np.cos(turn) * along_row + np.sin(turn) * along_column
            along_row, along_column = (
                _rotate(vector, axis, tilt) for vector in (along_row, along_column)
            )
        return np.stack([along_row, along_column, np.cross(along_row, along_column)])

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): (row, column, slice, 1) of a voxel centre to patient LPS mm."""
        along_row, along_column, normal = self.directions
        result = np.eye(4)
        result[:3, 0] = along_column * self.row_spacing
        result[:3, 1] = along_row * self.column_spacing
        result[:3, 2] = normal * self.slice_step
        middle = (np.array([self.rows, self.columns, self.slices]) - 1) / 2
        result[:3, 3] = np.asarray(self.centre) - result[:3, :3] @ middle
        return result


class WrittenSeries(NamedTuple):
    """Files in order along the normal, and the indices of slices without signal."""

    paths: tuple[Path, ...]
    blank_slices: tuple[int, ...]


def write_series(
    spec: SeriesSpec,
    folder: Path,
    intensity: IntensityFunction,
    *,
    patient_id: str = "00000",
    seed: int = 0,
) -> WrittenSeries:
    """Image a function of patient space and write it as one MR series.

    Args:
        spec: geometry and storage.
        folder: where `Image-<n>.dcm` go; made if absent.
        intensity: takes (rows, columns, 3) float64 patient LPS mm of voxel centres, gives
            (rows, columns) values in rescaled units; called once a slice, in order along the
            normal; not called for a blank series.
        patient_id: PatientID. Study and frame of reference are shared by all series of one
            (seed, patient_id); the series UID also depends on the modality.
        seed: enters every UID.

    Returns:
        The files and the slices that hold no signal.

    Raises:
        ValueError: a value that the stored bits cannot hold.
        OSError: a file that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def uid(*sources: str) -> str:
        return str(generate_uid(entropy_srcs=[str(seed), patient_id, *sources]))

    implicit = spec.transfer_syntax == "implicit"
    # Elements that do not change are encoded once: a third of the time of writing whole datasets.
    shared = _encoded(_series_dataset(spec, patient_id, uid), implicit=implicit)
    affine, normal = spec.affine, spec.directions[2]
    row, column = np.arange(spec.rows)[:, None, None], np.arange(spec.columns)[None, :, None]
    in_plane = row * affine[:3, 0] + column * affine[:3, 1]
    file_numbers = spec.file_numbers or tuple(range(1, spec.slices + 1))
    instance_numbers = spec.instance_numbers or tuple(range(1, spec.slices + 1))
    paths, blank_slices = [], []
    for index in range(spec.slices):
        position = affine[:3, 3] + index * affine[:3, 2]
        values: Array = np.zeros((spec.rows, spec.columns))
        if not spec.blank:
            points: NDArray[np.float64] = np.add(in_plane, position)
            values = np.asarray(intensity(points))
        if not values.any():
            blank_slices.append(index)
        dataset = Dataset()
        dataset.SOPInstanceUID = uid(spec.modality, "slice", str(index))
        dataset.InstanceNumber = instance_numbers[index]
        place = [_decimal(value) for value in position]
        dataset.ImagePositionPatient = place
        dataset.SliceLocation = _decimal(position @ normal)
        dataset.WindowCenter, dataset.WindowWidth = _window(values)
        dataset.add_new("PixelData", "OW", _stored(values, spec).tobytes())
        if spec.vendor:
            dataset.update(slice_elements(spec.vendor, index, place, uid))
        elements = shared | _encoded(dataset, implicit=implicit)
        path = folder / f"Image-{file_numbers[index]}.dcm"
        content = [elements[tag] for tag in sorted(elements)]
        start = _file_start(dataset.SOPInstanceUID, spec.transfer_syntax)
        with files.refused(path):
            path.write_bytes(b"".join([start, *content]))
        paths.append(path)
    return WrittenSeries(tuple(paths), tuple(blank_slices))


def _series_dataset(spec: SeriesSpec, patient_id: str, uid: Callable[..., str]) -> Dataset:
    """The attributes that all slices of a series share."""
    dataset = Dataset()
    dataset.SOPClassUID = MRImageStorage
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.Modality = "MR"
    dataset.Manufacturer = "Voxelbeam"
    dataset.InstitutionName = "Phantom Hospital"
    dataset.StudyDate = "20210101"
    dataset.SeriesDescription = spec.modality
    dataset.PatientID = patient_id
    dataset.PatientName = f"Phantom^{patient_id}"
    dataset.MRAcquisitionType = "2D"
    dataset.ScanningSequence = "GR" if spec.modality.startswith("T1") else "SE"
    dataset.SequenceVariant = "SK"
    repetition, echo, inversion = _TIMING.get(spec.modality, (2000.0, 10.0, None))
    dataset.RepetitionTime, dataset.EchoTime = _decimal(repetition), _decimal(echo)
    if inversion is not None:
        dataset.InversionTime = _decimal(inversion)
    dataset.MagneticFieldStrength = "3"
    if spec.modality.endswith("CE"):
        dataset.ContrastBolusAgent = "PHANTOM CONTRAST"
    dataset.SliceThickness = _decimal(
        spec.slice_step if spec.slice_thickness is None else spec.slice_thickness
    )
    if spec.spacing_between_slices is not None:
        dataset.SpacingBetweenSlices = _decimal(spec.spacing_between_slices)
    dataset.StudyInstanceUID = uid("study")
    dataset.FrameOfReferenceUID = uid("frame of reference")
    dataset.SeriesInstanceUID = uid(spec.modality, "series")
    dataset.SeriesNumber = 1 + (
        list(_TIMING).index(spec.modality) if spec.modality in _TIMING else len(_TIMING)
    )
    dataset.ImageOrientationPatient = [_decimal(value) for value in spec.directions[:2].ravel()]
    dataset.PixelSpacing = [_decimal(spec.row_spacing), _decimal(spec.column_spacing)]
    dataset.Rows, dataset.Columns = spec.rows, spec.columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        16,
        spec.bits_stored,
        spec.bits_stored - 1,
    )
    dataset.PixelRepresentation = int(spec.signed)
    if (spec.slope, spec.intercept) != (1.0, 0.0):
        dataset.RescaleSlope, dataset.RescaleIntercept = (
            _decimal(spec.slope),
            _decimal(spec.intercept),
        )
        dataset.RescaleType = "US"
    if spec.vendor:
        add_series_elements(dataset, spec.vendor, spec.modality, uid)
    return dataset


def _encoded(dataset: Dataset, *, implicit: bool) -> dict[int, bytes]:
    """Each element's bytes in little endian, by tag."""
    result = {}
    for element in dataset:
        stream = DicomBytesIO()
        stream.is_little_endian, stream.is_implicit_VR = True, implicit
        write_data_element(stream, element)
        result[int(element.tag)] = stream.getvalue()
    return result


def _file_start(instance_uid: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1)."""
    meta = Dataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = instance_uid
    meta.TransferSyntaxUID = TRANSFER_SYNTAXES[transfer_syntax]
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    group = b"".join(_encoded(meta, implicit=False).values())
    length = Dataset()
    length.FileMetaInformationGroupLength = len(group)
    return bytes(128) + b"DICM" + _encoded(length, implicit=False)[0x00020000] + group


def _stored(values: Array, spec: SeriesSpec) -> NDArray[np.int_]:
    """Rescaled values as stored pixels: (rows, columns), little-endian 16 bit."""
    if values.shape != (spec.rows, spec.columns):
        raise ValueError(
            f"intensity must give {(spec.rows, spec.columns)} values, found {values.shape}"
        )
    stored = np.rint((values - spec.intercept) / spec.slope)
    low = -(2 ** (spec.bits_stored - 1)) if spec.signed else 0
    high = low + 2**spec.bits_stored - 1
    if not (stored.min() >= low and stored.max() <= high):
        raise ValueError(
            f"stored pixels must lie in {low}..{high} ({spec.bits_stored} bits), found "
            f"{stored.min():.0f}..{stored.max():.0f}; choose another slope or intercept"
        )
    # A 12-bit signed pixel is sign-extended into its 16 bits, as scanners write it.
    return np.asarray(stored, dtype="<i2" if spec.signed else "<u2")


def _window(values: Array) -> tuple[str, str]:
    """WindowCenter and WindowWidth of one slice, from that slice alone, as scanners do."""
    top = float(values.max())
    if not top > 0:
        return "0", "1"
    return f"{0.45 * top:.0f}", f"{max(0.9 * top, 1):.0f}"


def _decimal(value: float) -> str:
    """A DS value: at most 16 characters (PS3.5 6.2), as exact as they allow."""
    value = float(value)
    return str(int(value)) if value.is_integer() else str(format_number_as_ds(value))


def _rotate(vector: Array, axis: Array, angle: float) -> Array:
    """Rodrigues' rotation of a vector about a unit axis, radians."""
    along = axis * (axis @ vector) * (1 - np.cos(angle))
    return np.asarray(vector * np.cos(angle) + np.cross(axis, vector) * np.sin(angle) + along)
