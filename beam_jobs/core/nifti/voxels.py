"""Voxels of NIfTI files, slice by slice, each file read once and forwards."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.nifti.header import HEADER_BYTES, NiftiHeader, parse_header
from beam_jobs.core.nifti.slices import most_padding
from beam_jobs.core.nifti.stream import Content
from beam_jobs.core.reasons import Reason, RejectedError

# Values are kept in float32: these, and their differences, stay far within it.
_GREATEST = 1e30


class NiftiReader:
    """Reads slices; a file stays open, and its inflation goes on, while its slices follow.

    With the last slice the rest of the file is read, so that gzip's checksum is checked.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self._path = ""
        self._next = 0  # the slice that comes next
        self._source: files.ByteSource | None = None
        self._content: Content | None = None
        self._buffer = memoryview(b"")
        self._samples: npt.NDArray[Any] = np.empty((0, 0))
        self._swapped = False
        self._turn = (slice(None), slice(None))

    def close(self) -> None:
        """Closes the file that is open."""
        self._open.close()
        self._source = self._content = None
        self._path = ""

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        """(row, column) stored values, valid until the next call.

        Rows and columns are turned as the header has them; bytes are in this machine's order.

        Raises:
          RejectedError: the file is another one than its header was read from, ends too early, or
            has voxels that are no numbers.
          OSError: it cannot be read, or its gzip is damaged.
        """
        if header.path != self._path or header.frame < self._next:
            self.close()
            self._begin(header)
        content = self._content
        assert content is not None
        content.skip((header.frame - self._next) * len(self._buffer))
        samples = self._slice(header, content)
        self._next = header.frame + 1
        if samples.dtype.kind == "f":
            limit = _GREATEST / max(1.0, abs(header.slope or 1.0))
            with np.errstate(invalid="ignore"):
                within = samples.min() > -limit and samples.max() < limit  # a NaN is neither
            if not within:
                raise self._not_finite(header, content, limit)
            samples += 0.0  # a zero below zero is a zero: blank slices are told by their bits
        if self._next == header.frames:
            self._end(header, content)
        return np.ascontiguousarray(samples[self._turn])

    def _begin(self, header: SliceHeader) -> None:
        source = self._open.enter_context(files.open_bytes(header.path))
        content = Content(source, header.path)
        if _is_changed(source, header):
            raise _changed(header)
        found = parse_header(content.read(HEADER_BYTES), header.path)
        wanted = (header.columns, header.rows, header.frames)
        if found.shape != wanted or 8 * found.dtype.itemsize != header.bits_allocated:
            raise _changed(header)
        self._source, self._path, self._next = source, header.path, 0
        self._content = _from_voxels(source, header.path, found, content)
        self._swapped = not found.dtype.isnative
        columns, rows = (slice(None, None, -1 if flipped else 1) for flipped in found.flips)
        self._turn = rows, columns
        # Memory that is only taken as it is filled: a small file may claim a large slice.
        i, j, _ = found.shape
        self._samples = np.empty((j, i), dtype=found.dtype.newbyteorder("="))
        self._buffer = memoryview(self._samples.reshape(-1).view(np.uint8).data)

    def _slice(self, header: SliceHeader, content: Content) -> npt.NDArray[Any]:
        found = content.read_into(self._buffer)
        if found < len(self._buffer):
            raise RejectedError(
                Reason.TRUNCATED_PIXELS,
                f"{len(self._buffer)} voxel bytes of slice {header.frame} required, {found} found",
                path=header.path,
            )
        if self._swapped:
            self._samples.byteswap(inplace=True)
        return self._samples

    def _not_finite(self, header: SliceHeader, content: Content, limit: float) -> RejectedError:
        """The refusal of a file with such a slice, once the slices behind it are counted, too."""
        samples, count = self._samples, 0
        for frame in range(header.frame, header.frames or 0):
            if frame > header.frame:
                samples = self._slice(header._replace(frame=frame), content)
            with np.errstate(invalid="ignore"):
                count += samples.size - int(np.count_nonzero(np.abs(samples) < limit))
        voxels = samples.size * (header.frames or 1)
        share = "under 0.01%" if count * 10_000 < voxels else f"{count / voxels:.2%}"
        return RejectedError(
            Reason.NOT_FINITE,
            f"NaN, infinite or beyond float32: {count} of {voxels} voxels ({share}); "
            "write a copy with numbers in their place (numpy.nan_to_num)",
            path=header.path,
        )

    def _end(self, header: SliceHeader, content: Content) -> None:
        most = most_padding(header.pixel_length or 0)
        if content.is_gzip and content.skip(most + 1) > most:
            raise RejectedError(
                Reason.CORRUPT_HEADER,
                f"{header.pixel_length} voxel bytes required, over {most} more found",
                path=header.path,
            )
        assert self._source is not None
        if _is_changed(self._source, header):
            raise _changed(header)
        self.close()


def _from_voxels(
    source: files.ByteSource, path: str, header: NiftiHeader, content: Content
) -> Content:
    """The content at the first voxel; where the header was read beyond that, from its begin."""
    if content.at > header.offset:
        content = Content(source, path)
    content.skip(header.offset - content.at)
    return content


def _is_changed(source: files.ByteSource, header: SliceHeader) -> bool:
    if isinstance(source, files.LocalBytes) and source.is_changed:
        return True
    return bool(source.modified and header.modified and source.modified != header.modified)


def _changed(header: SliceHeader) -> RejectedError:
    return RejectedError(
        Reason.UNREADABLE_FILE, "changed since its header was read", path=header.path
    )
