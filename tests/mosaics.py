"""Writes images that hold a volume as tiles, to the shapes of Siemens' mosaics and UIH's grids."""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset

from tests.dicom_files import image_dataset, save


def csa_header(tags: Mapping[str, Sequence[str]], *, version: int = 2) -> bytes:
    """A CSA header of either version: names to the texts of their items."""
    head = b"SV10\4\3\2\1" if version == 2 else b""
    parts = [head, struct.pack("<2I", len(tags), 77)]
    for name, texts in tags.items():
        items = [text.encode() + b"\0" for text in texts]
        # In scanners' files a tag with values has at least six items, those over being empty.
        items += [b""] * (6 - len(items) if items else 0)
        parts.append(
            struct.pack("<64si4s3i", name.encode(), len(texts), b"FD\0\0", 4, len(items), 77)
        )
        for item in items:
            # Version 1 adds the number of items (of its second tag) to every length.
            words = (len(item) + (6 if version == 1 else 0), len(item), 77, len(item))
            parts.append(struct.pack("<4i", *words) + item + b"\0" * (-len(item) % 4))
    return b"".join(parts)


def tiled(slices: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The slices as tiles of one square image, row by row."""
    side = math.isqrt(len(slices) - 1) + 1
    rows, columns = slices[0].shape
    image = np.zeros((side * rows, side * columns), slices[0].dtype)
    for index, pixels in enumerate(slices):
        row, column = divmod(index, side)
        image[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = pixels
    return image


def _tiled_dataset(
    slices: Sequence[npt.NDArray[Any]], orientation: Sequence[float], step: float, **attributes: Any
) -> Dataset:
    image = tiled(slices)
    dataset = image_dataset(rows=image.shape[0], columns=image.shape[1], **attributes)
    dataset.ImageOrientationPatient = [f"{value:.9g}" for value in orientation]
    dataset.PixelSpacing = [1.5, 1.25]
    dataset.SliceThickness, dataset.SpacingBetweenSlices = step - 0.5, step
    return dataset


def write_mosaic(
    path: Path,
    slices: Sequence[npt.NDArray[Any]],
    syntax: str = uid.ExplicitVRLittleEndian,
    *,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    corner: Sequence[float] = (-20.0, -30.0, 10.0),
    step: float = 3.0,
    up: int = 1,
    number: int = 1,
    csa: int = 2,
    counted: bool = True,
    change: Callable[[Dataset], object] = lambda dataset: None,
    **attributes: Any,
) -> Path:
    """A Siemens mosaic.

    Args:
      path: where to.
      slices: from the first tile on.
      syntax: transfer syntax.
      orientation: of the image.
      corner: LPS mm of the first slice's first pixel.
      step: mm from slice to slice.
      up: whether tiles follow along (1) or against (-1) the orientation's normal.
      number: of the repetition.
      csa: the version of the CSA header, 0 for none.
      counted: whether (0019,100A) tells the number of slices.
      change: has the last word.
      attributes: of the data set.
    """
    attributes = {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        "Manufacturer": "SIEMENS",
        "InstanceNumber": number,
        "AcquisitionNumber": number,
        "AcquisitionTime": f"1200{number:02}.250000",
        "bits_stored": 12,
        **attributes,
    }
    dataset = _tiled_dataset(slices, orientation, step, **attributes)
    across, down = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    normal = np.cross(across, down)
    rows, columns = slices[0].shape
    # Its position is that of an image as large as the mosaic about the slice's centre.
    first = np.asarray(corner, dtype=float) - across * 1.25 * (dataset.Columns - columns) / 2
    first = first - down * 1.5 * (dataset.Rows - rows) / 2
    dataset.ImagePositionPatient = [f"{value:.9g}" for value in first]
    if counted:
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", len(slices))
    if csa:
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        tags = {
            "EchoLinePosition": [],
            "NumberOfImagesInMosaic": [str(len(slices))],
            "SliceNormalVector": [f"{value:.8f}" for value in up * normal],
            "ProtocolSliceNumber": ["0"],
        }
        block.add_new(0x10, "OB", csa_header(tags, version=csa))
    change(dataset)
    return save(dataset, path, syntax, [tiled(slices)])


def write_grid(
    path: Path,
    slices: Sequence[npt.NDArray[Any]],
    syntax: str = uid.ExplicitVRLittleEndian,
    *,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    corner: Sequence[float] = (-20.0, -30.0, 10.0),
    step: float = 3.0,
    number: int = 1,
    change: Callable[[Dataset], object] = lambda dataset: None,
    **attributes: Any,
) -> Path:
    """A UIH grid file; arguments as `write_mosaic`, tiles along the orientation's normal."""
    attributes = {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "VFRAME"],
        "Manufacturer": "UIH",
        "InstanceNumber": number,
        "AcquisitionNumber": 1,
        "bits_stored": 12,
        **attributes,
    }
    dataset = _tiled_dataset(slices, orientation, step, **attributes)
    normal = np.cross(orientation[:3], orientation[3:])
    frames = []
    for index in range(len(slices)):
        frame = Dataset()
        frame.AcquisitionDateTime = f"2020010112{number:02}{index:02}.500"
        place = np.asarray(corner, dtype=float) + index * step * normal
        frame.ImagePositionPatient = [f"{value:.9g}" for value in place]
        frames.append(frame)
    dataset.ImagePositionPatient = frames[0].ImagePositionPatient
    block = dataset.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x50, "DS", str(len(slices)))
    block.add_new(0x51, "SQ", frames)
    change(dataset)
    return save(dataset, path, syntax, [tiled(slices)])
