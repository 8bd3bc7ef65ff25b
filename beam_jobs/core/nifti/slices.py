"""A NIfTI file as the slices of a stack, and the stack's lattice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.geometry import VolumeGeometry
from beam_jobs.core.nifti.header import HEADER_BYTES, NiftiHeader, parse_header
from beam_jobs.core.nifti.stream import Content
from beam_jobs.core.reasons import Reason, RejectedError

# A header is made a slice. Not even gzip of zeros takes fewer bytes for a slice of 128 x 128.
_ALWAYS_SLICES, _BYTES_A_SLICE = 64, 16
_PADDING = 4096  # bytes that may follow the voxels of a small file


def read_slices(path: str, source: files.ByteSource) -> list[SliceHeader]:
    """One header a slice along the third voxel axis, in the order of the file.

    A slice's rows run along the second axis, its columns along the first, turned as a scanner's
    images are (`NiftiHeader.flips`): what samples a volume from the begin of its axes then finds
    what it finds in DICOM. No voxel is read.

    Args:
      path: of the file.
      source: the open file.

    Raises:
      RejectedError: it is no volume that can be read; its reason says why.
      OSError: it cannot be read, or its gzip is damaged.
    """
    content = Content(source, path)
    header = parse_header(content.read(HEADER_BYTES), path)
    if not content.is_gzip:
        _require_voxel_bytes(header, source.size - header.offset, path)
    i, j, k = header.shape
    if k > _ALWAYS_SLICES + source.size // _BYTES_A_SLICE:
        raise RejectedError(
            Reason.TOO_LARGE, f"{source.size} bytes of file claim {k} slices", path=path
        )
    affine = header.affine.copy()
    for axis, flipped in enumerate(header.flips):
        if flipped:
            affine[:3, 3] += (header.shape[axis] - 1) * affine[:3, axis]
            affine[:3, axis] *= -1
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :2] / steps[:2]
    bits = 8 * header.dtype.itemsize
    first = SliceHeader(
        path,
        source.size,
        header.version,
        header.offset,
        header.voxel_bytes,
        orientation=tuple(directions.T.ravel().tolist()),
        pixel_spacing=(float(steps[1]), float(steps[0])),
        samples=1,
        photometric="MONOCHROME2",
        frames=k,
        rows=j,
        columns=i,
        bits_allocated=bits,
        bits_stored=bits,
        high_bit=bits - 1,
        pixel_representation=int(header.dtype.kind != "u"),
        slope=header.slope,
        intercept=header.intercept,
        modified=source.modified,
    )
    places = affine[:3, 3] + np.arange(k)[:, None] * affine[:3, 2]
    return [
        first._replace(frame=frame, position=tuple(place))
        for frame, place in enumerate(places.tolist())
    ]


def _require_voxel_bytes(header: NiftiHeader, found: int, path: str) -> None:
    """Refuses fewer bytes from the first voxel on than the header says, and far too many."""
    needed = header.voxel_bytes
    if not needed <= found <= needed + most_padding(needed):
        raise RejectedError(
            Reason.TRUNCATED_PIXELS if found < needed else Reason.CORRUPT_HEADER,
            f"{needed} voxel bytes required, {max(found, 0)} found",
            path=path,
        )


def most_padding(needed: int) -> int:
    """Bytes that may follow so many of voxels: with more, one of header and file is wrong."""
    return needed // 4 + _PADDING


def lattice_of(headers: Sequence[SliceHeader]) -> tuple[VolumeGeometry, tuple[float, ...]]:
    """The lattice of a file, as its header has it, sheared too, and each slice's index on it.

    The lattice ascends as a stack of a scanner's images does, along their normal: to superior,
    posterior or right. The slices of the file may descend on it.

    Args:
      headers: all of one file's, at least two, in its order.

    Raises:
      RejectedError: it is no lattice.
    """
    first, last = headers[0], headers[-1]
    offsets = tuple(float(k) for k in range(len(headers)))
    step = np.subtract(last.position, first.position)
    axis = int(np.argmax(np.abs(step)))
    if step[axis] * (-1 if axis == 0 else 1) < 0:
        first, last, offsets = last, first, offsets[::-1]
    spacing = first.pixel_spacing
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.orientation[3:], spacing[0])
    affine[:3, 1] = np.multiply(first.orientation[:3], spacing[1])
    affine[:3, 2] = np.subtract(last.position, first.position) / (len(headers) - 1)
    affine[:3, 3] = first.position
    shape = (first.rows or 0, first.columns or 0, len(headers))
    try:
        return VolumeGeometry(shape=shape, affine=affine), offsets
    except ValueError as error:
        raise RejectedError(Reason.INVALID_GEOMETRY, str(error)) from error
