"""Images that hold a whole volume as tiles: Siemens mosaics and UIH grids.

Both fill a square of ceil(sqrt(slices)) tiles a side row by row from the top left; what is over
stays empty. A UIH grid tells the position of every slice. A mosaic tells one, as if a single slice
as large as the whole mosaic had been imaged about the first slice's centre; the others follow along
the slice normal of the CSA header, against that of the orientation where the scanner was set to
number its images the other way round.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.values import convert_SQ

from beam_jobs.common.files.interface import ByteSource
from beam_jobs.core.dicom.header_walk import PIXEL_DATA
from beam_jobs.core.dicom.reading import limited, parse, require_short
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.geometry import Array, slice_directions
from beam_jobs.core.reasons import Reason, RejectedError

_SIEMENS, _CSA, _UIH = "SIEMENS MR HEADER", "SIEMENS CSA HEADER", "Image Private Header"
# No scanner makes more tiles, or smaller ones; a small file may claim millions of them.
_MOST_TILES, _FEWEST_PIXELS = 64, 4
# Decimals in two places of one header differ by rounding: the normals agree as lines within this.
_PARALLEL = 1 - 1e-3


def expand(header: SliceHeader, path: str, source: ByteSource) -> list[SliceHeader]:
    """One header a tile of a mosaic; the image's own where it has none.

    Args:
      header: of the image, one of whose ImageType values is MOSAIC or VFRAME.
      path: of the file.
      source: the open file.

    Raises:
      RejectedError: what the file says of its tiles does not put them in space.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = parse(limited(source), force=True, stop=lambda tag: tag == PIXEL_DATA)
            siemens = "MOSAIC" in header.image_type
            positions = _siemens_positions(header, dataset) if siemens else _uih_positions(dataset)
            if positions is None:
                return [header]
            side = _side(header, len(positions))
    except RejectedError as error:
        raise RejectedError(error.reason, str(error), path=path) from error
    except Exception as error:  # private elements hold anything
        raise RejectedError(
            Reason.MOSAIC,
            f"the private elements that place the tiles are malformed ({type(error).__name__})",
            path=path,
        ) from error
    rows, columns = header.rows or 0, header.columns or 0
    return [
        header._replace(
            frame=index,
            tiles=side,
            rows=rows // side,
            columns=columns // side,
            position=tuple(float(value) for value in position),
        )
        for index, position in enumerate(positions)
    ]


def whole_image(tile: SliceHeader) -> SliceHeader:
    """The header of the stored image that a tile is cut from."""
    return tile._replace(
        frame=0,
        tiles=0,
        rows=(tile.rows or 0) * tile.tiles,
        columns=(tile.columns or 0) * tile.tiles,
    )


def _side(header: SliceHeader, count: int) -> int:
    """Tiles along one side of the square that holds `count`.

    Raises:
      RejectedError: the image is no such square.
    """
    side = math.isqrt(max(count, 1) - 1) + 1
    rows, columns = header.rows or 0, header.columns or 0
    if side > _MOST_TILES or min(rows, columns) < side * _FEWEST_PIXELS:
        raise RejectedError(
            Reason.MOSAIC, f"{rows} x {columns} pixels are too few or {count} slices too many"
        )
    if rows % side or columns % side:
        raise RejectedError(
            Reason.MOSAIC,
            f"{rows} x {columns} pixels are not {count} slices in {side}²",
        )
    return side


def _siemens_positions(header: SliceHeader, dataset: Dataset) -> Array:
    """(slices, 3) LPS mm, in the order of the tiles."""
    count, towards = _csa_values(dataset)
    count = count or _number(_private(dataset, 0x0019, _SIEMENS, 0x0A))
    if not count:
        raise RejectedError(Reason.MOSAIC, "NumberOfImagesInMosaic (0019,100A) is absent")
    along_column, along_row, normal = slice_directions(header.orientation)
    step = abs(header.spacing_between_slices or header.slice_thickness or 0.0)
    if len(header.position) != 3 or len(header.pixel_spacing) != 2 or not step:
        raise RejectedError(Reason.MOSAIC, "position, pixel spacing or slice spacing is absent")
    if towards is None:
        # Scanners may be set to number images either way: a guess would turn volumes over.
        raise RejectedError(
            Reason.MOSAIC, "no SliceNormalVector (0029,1010) tells which way the slices follow"
        )
    cosine = float(towards @ normal) / float(np.linalg.norm(towards))
    if abs(cosine) < _PARALLEL:
        raise RejectedError(Reason.MOSAIC, "SliceNormalVector is not normal to the orientation")
    # Share of the mosaic's sides by which it exceeds a tile's.
    outside = 1 - 1 / _side(header, count)
    first = np.asarray(header.position, dtype=np.float64)
    first = first + along_column * header.pixel_spacing[1] * (header.columns or 0) * outside / 2
    first = first + along_row * header.pixel_spacing[0] * (header.rows or 0) * outside / 2
    positions: Array = first + np.arange(count)[:, None] * (step * np.sign(cosine) * normal)
    return positions


def _csa_values(dataset: Dataset) -> tuple[int, Array | None]:
    """NumberOfImagesInMosaic and SliceNormalVector of the CSA image header (0029,1010)."""
    from nibabel.nicom import csareader  # only here: it costs and warns at import

    element = _private(dataset, 0x0029, _CSA, 0x10)
    if element is None:
        return 0, None
    tags = csareader.read(element.value)["tags"]

    def items(name: str) -> list[Any]:
        return list(tags[name]["items"]) if name in tags else []

    count, normal = items("NumberOfImagesInMosaic"), items("SliceNormalVector")
    return (
        int(count[0]) if count else 0,
        np.asarray(normal, dtype=np.float64) if len(normal) == 3 else None,
    )


def _uih_positions(dataset: Dataset) -> Array | None:
    """(slices, 3) LPS mm, in the order of the tiles, each from its own item of (0065,1051).

    None where nothing says that there are tiles: a plain image of its own position.
    """
    frames = _private(dataset, 0x0065, _UIH, 0x51)
    counted = _private(dataset, 0x0065, _UIH, 0x50)
    if frames is None and counted is None:
        return None
    if frames is None:
        raise RejectedError(Reason.MOSAIC, "the frames' sequence (0065,1051) is absent")
    # Of an unknown VR the value comes as it is stored, which is then implicit (PS3.5 6.2.2).
    items = frames.value
    if isinstance(items, bytes):
        items = convert_SQ(items, True, True)
    positions = np.array([item.ImagePositionPatient for item in items], dtype=np.float64)
    count = _number(counted) or len(positions)
    if positions.shape != (count, 3):
        raise RejectedError(Reason.MOSAIC, f"{len(positions)} frames' positions of {count} slices")
    return positions


def _private(dataset: Dataset, group: int, creator: str, element: int) -> DataElement | None:
    """A private element, in whichever block its creator has reserved (PS3.5 7.8.1)."""
    try:
        block = dataset.private_block(group, creator)
        require_short(dataset, block.get_tag(element))
        found: DataElement = block[element]
    except KeyError:
        return None
    return found


def _number(element: DataElement | None) -> int:
    """A count: a number, its text, or, where its VR is unknown, the bytes of either."""
    if element is None or not element.value:
        return 0
    value: Any = element.value
    if isinstance(value, bytes):
        text = value.strip(b" \0")
        return int(float(text)) if text.isdigit() else int.from_bytes(value[:2], "little")
    return int(float(value))
