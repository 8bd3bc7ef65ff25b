"""Sound series to spoil."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
)

from beam_jobs.phantoms.series import SeriesSpec, write_series
from beam_jobs.phantoms.vendor_headers import VENDORS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A sound series.

    Attributes:
      name: what it is good for.
      files: its files' bytes.
      weight: how often it is drawn; small where decoding is slow.
    """

    name: str
    files: tuple[bytes, ...]
    weight: float = 1.0


WHICH = ("all", "vendors", "others")


def make_bases(which: str = "all") -> list[Base]:
    """The series: those shaped like four vendors', the others, or all."""
    vendors = [] if which == "others" else _vendors()
    return vendors if which == "vendors" else vendors + _others()


def _vendors() -> list[Base]:
    """Headers as scanners write them, with nested sequences of undefined length."""
    return [
        _phantom(f"{vendor} {syntax}", 1.0, vendor=vendor, transfer_syntax=syntax)
        for vendor in VENDORS
        for syntax in ("explicit", "implicit")
    ]


def _others() -> list[Base]:
    """Phantoms, pydicom's greyscale test files set in a stack, enhanced objects."""
    bases = [
        _phantom("explicit", 4.0),
        _phantom("implicit", 4.0, transfer_syntax="implicit", slope=0.5, intercept=-100.0,
                 signed=True, bits_stored=12),
        _phantom("oblique", 1.5, obliquity_degrees=20.0, plane="coronal"),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # offline, only the files inside the package are listed
        for name, weight in (
            ("MR_small.dcm", 2.0), ("MR_small_implicit.dcm", 2.0), ("MR_small_bigendian.dcm", 2.0),
            ("MR_small_RLE.dcm", 1.5), ("MR_small_jp2klossless.dcm", 1.0),
            ("MR_small_jpeg_ls_lossless.dcm", 1.5), ("JPEGLSNearLossless_08.dcm", 1.0),
            ("JPEGLSNearLossless_16.dcm", 1.0), ("CT_small.dcm", 1.0), ("rtdose_1frame.dcm", 1.0),
            ("rtdose_rle_1frame.dcm", 1.0), ("JPEG-lossy.dcm", 0.1), ("693_J2KI.dcm", 0.05),
        ):  # fmt: skip
            bases.append(Base(name=name, files=_stack_of(name), weight=weight))
    bases.append(Base(name="deflated", files=_stack_of("MR_small.dcm", deflate=True), weight=1.5))
    bases.append(Base(name="packed", files=_packed(), weight=1.0))
    bases.append(Base(name="enhanced", files=(_enhanced(),), weight=2.5))
    bases.append(Base(name="enhanced RLE", files=(_enhanced(compress=True),), weight=1.0))
    return bases


def _phantom(name: str, weight: float, **changes: Any) -> Base:
    spec = SeriesSpec(rows=24, columns=20, slices=4, row_spacing=6.0, column_spacing=7.0,
                      slice_step=20.0, **changes)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        written = write_series(spec, Path(folder), lambda xyz: 300 + np.rint(xyz @ [1, 2, 1.5]))
        return Base(name=name, files=tuple(p.read_bytes() for p in written.paths), weight=weight)


def _packed() -> tuple[bytes, ...]:
    """A phantom whose samples are 12 bits allocated, two in three bytes (retired from PS3.5)."""
    files = []
    for data in _phantom("packed", 1.0, bits_stored=12).files:
        dataset = pydicom.dcmread(BytesIO(data))
        pairs = np.frombuffer(dataset.PixelData, "<u2").reshape(-1, 2)
        low, high = pairs[:, 0], pairs[:, 1]
        packed = np.stack([low & 255, low >> 8 | (high & 15) << 4, high >> 4], axis=1)
        dataset.BitsAllocated = 12
        dataset.PixelData = packed.astype(np.uint8).tobytes()
        stream = BytesIO()
        dataset.save_as(stream)
        files.append(stream.getvalue())
    return tuple(files)


def _stack_of(name: str, count: int = 3, deflate: bool = False) -> tuple[bytes, ...]:
    """`count` files like a bundled one, 5 mm apart; rolled a little where samples are plain."""
    path = get_testdata_file(name, download=False)
    files = []
    for index in range(count):
        dataset = pydicom.dcmread(str(path))
        for keyword, value in (("StudyInstanceUID", "1.2.3"), ("SeriesInstanceUID", "1.2.3.4")):
            setattr(dataset, keyword, value)
        dataset.SOPInstanceUID = f"1.2.3.4.{index + 1}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = index + 1
        dataset.PixelSpacing = [240.0 / dataset.Rows, 240.0 / dataset.Columns]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-100, -100, 5.0 * index]
        for stray in ("DataSetTrailingPadding", "NumberOfFrames"):
            if stray in dataset:
                delattr(dataset, stray)
        dataset.ImageType = ["ORIGINAL", "PRIMARY"]
        if not dataset["PixelData"].is_undefined_length:
            step = 16 * index
            dataset.PixelData = dataset.PixelData[step:] + dataset.PixelData[:step]
        if deflate:
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        stream = BytesIO()
        dataset.save_as(stream)
        files.append(stream.getvalue())
    return tuple(files)


def _enhanced(frames: int = 5, compress: bool = False) -> bytes:
    """An enhanced MR object with a rescale a frame (PS3.3 A.36.2), its sequences unbounded."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedMRImageStorage, "1.2.3.5.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    dataset.Modality, dataset.SeriesDescription = "MR", "T1w"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 12, 16, frames
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [10.0, 9.0], 6.0
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    groups = []
    for index in range(frames):
        group, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-60, -70, 6.0 * index]
        values.RescaleSlope, values.RescaleIntercept = 1 + index / 4, 10 * index
        group.PlanePositionSequence = [position]
        group.PixelValueTransformationSequence = [values]
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = groups
    samples = np.arange(12 * 16 * frames, dtype="<u2").reshape(frames, 12, 16) * 3 % 4096
    dataset.PixelData = samples.tobytes()
    dataset["PixelData"].VR = "OW"
    if compress:
        dataset.compress(RLELossless, generate_instance_uid=False)
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
