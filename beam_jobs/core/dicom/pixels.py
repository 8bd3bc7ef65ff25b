"""Stored samples of one image, from file bytes to integers; native pixels are read exactly once.

Three ways lead there: plain little-endian samples are read at their offset; compressed frames are
cut out of their fragments and given to one decoder a transfer syntax; what is left (big endian,
deflated, a Modality LUT) goes through pydicom's data set.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from beam_jobs.common.files.interface import ByteSource, LocalBytes, open_bytes
from beam_jobs.core.dicom.codestreams import (
    decode_frame,
    encapsulated_frames,
    only_stored_bits,
    unpack_12_bits,
)
from beam_jobs.core.dicom.header_walk import DEFLATED, EXPLICIT_BIG
from beam_jobs.core.dicom.headers import ENCAPSULATED, SliceHeader, require_pixel_bytes
from beam_jobs.core.dicom.modality_lut import through_modality_lut
from beam_jobs.core.dicom.mosaics import whole_image
from beam_jobs.core.dicom.reading import PieceLimit, as_plain, parse, unreadable
from beam_jobs.core.nifti.voxels import NiftiReader
from beam_jobs.core.reasons import Reason, RejectedError


class StoredSlice(NamedTuple):
    """One slice's samples and how they become values: `value = samples * slope + intercept`.

    `samples` is (row, column), integers or a NIfTI file's floats, and valid only until the next
    slice is read (the buffer is used again). MONOCHROME1 inversion is folded into slope and
    intercept (PS3.3 C.7.6.3.1.2).
    `blank` is what `is_blank` says of the samples.
    """

    samples: npt.NDArray[Any]
    slope: float
    intercept: float
    blank: bool


def is_blank(samples: npt.NDArray[Any]) -> bool:
    """Whether all pixels of a slice have one value, whichever it is.

    Rescaling and inversion cannot change that; a Modality LUT can, and has been applied.

    Args:
      samples: (row, column), at least one of each.
    """
    rows, columns = samples.shape
    # In most slices of a head these two differ, and then the others need no look.
    if samples.item(rows // 2, columns // 2) != samples.item(0):
        return False
    bits = samples.view(f"u{samples.itemsize}")
    # One pass for the two usual cases: nothing but zeros, and something beside them.
    highest = bits.max()
    return bool(highest == bits[0, 0] and (highest == 0 or bits.min() == highest))


class BlankTally:
    """Counts the blank slices of a series while its pixels stream past.

    A slice is blank when all its pixels have one value (`is_blank`); a series is when all its
    slices are, and their value is the same in float32, in which values are kept. Frames are slices.

    Attributes:
      slices: how many were seen.
      blank: how many of them are blank.
    """

    def __init__(self) -> None:
        self.slices = 0
        self.blank = 0
        self._values: set[float] = set()

    @property
    def one_value(self) -> float | None:
        """The value of every pixel seen, after rescaling; None where there are several."""
        if self.blank < self.slices or len(self._values) != 1:
            return None
        return next(iter(self._values))

    def watch(self, slices: Iterable[StoredSlice]) -> Iterator[StoredSlice]:
        """The slices as they come, each counted before it is handed on."""
        for stored in slices:
            self.slices += 1
            if stored.blank:
                self.blank += 1
                value = stored.samples.item(0) * stored.slope + stored.intercept
                self._values.add(float(np.float32(value)))
            yield stored


def stored_slices(headers: Iterable[SliceHeader]) -> Iterator[StoredSlice]:
    """The slices of a series in order, each file read once.

    The first slice is read at once: where its pixels are not of the matrix that the header claims,
    nothing has been allocated for that matrix yet.

    Raises:
      RejectedError: unreadable, truncated or undecodable pixels; the error names the file.
    """
    slices = _read_slices(headers)
    return _resumed(next(slices), slices)


def _resumed(first: StoredSlice, others: Iterator[StoredSlice]) -> Iterator[StoredSlice]:
    yield first
    del first  # or its samples would stay to the end
    yield from others


def _read_slices(headers: Iterable[SliceHeader]) -> Iterator[StoredSlice]:
    native = _NativeReader()
    compressed = _CompressedReader()
    deflated = _DeflatedReader()
    parsed = _DatasetReader()
    tiled = _TileReader()
    with closing(NiftiReader()) as nifti:
        for header in headers:
            try:
                if header.is_nifti:
                    samples = nifti.read(header)
                elif header.tiles:
                    samples = tiled.read(header)
                elif header.is_native:
                    samples = native.read(header)
                elif header.transfer_syntax in ENCAPSULATED:
                    samples = compressed.read(header)
                elif header.transfer_syntax == DEFLATED:
                    samples = deflated.read(header)
                else:
                    samples = parsed.read(header)
                if header.has_modality_lut:
                    yield _through_modality_lut(header, samples)
                else:
                    yield _with_rescale(header, samples)
            except OSError as error:
                raise unreadable(error, header.path) from error


def _with_rescale(header: SliceHeader, samples: npt.NDArray[Any]) -> StoredSlice:
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    # Beyond these, values or their differences leave the range of float32.
    if not (1e-20 < abs(slope) < 1e20 and abs(intercept) < 1e20):
        raise RejectedError(
            Reason.CORRUPT_HEADER, f"rescale slope {slope}, intercept {intercept}", path=header.path
        )
    blank = is_blank(samples)
    if header.photometric == "MONOCHROME1":
        bits = header.bits_stored or 16
        top = float((1 << (bits - 1)) - 1 if header.pixel_representation else (1 << bits) - 1)
        bottom = float(-(1 << (bits - 1)) if header.pixel_representation else 0)
        return StoredSlice(samples, -slope, slope * (top + bottom) + intercept, blank)
    return StoredSlice(samples, slope, intercept, blank)


def _through_modality_lut(header: SliceHeader, samples: npt.NDArray[Any]) -> StoredSlice:
    """Values by the Modality LUT (PS3.3 C.11.1.1), which stands in the place of rescaling."""
    try:
        order = ">" if header.transfer_syntax == EXPLICIT_BIG else "<"
        values, depth = through_modality_lut(_parse(header), samples, order)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, RejectedError):
            raise
        raise RejectedError(
            Reason.CORRUPT_HEADER,
            f"Modality LUT (0028,3000) is malformed ({type(error).__name__})",
            path=header.path,
        ) from error
    plain = header._replace(slope=None, intercept=None, bits_stored=depth, pixel_representation=0)
    return _with_rescale(plain, values)


@contextmanager
def _as_headed(header: SliceHeader) -> Iterator[ByteSource]:
    """A header's file, inflated, which has to be the one that the header was read from.

    Pixels of another file would be laid out by this one's geometry.

    Raises:
      RejectedError: it was replaced, or written to, since.
    """
    with open_bytes(header.path) as source:
        yield as_plain(source, header.path) if header.transfer_syntax == DEFLATED else source
        _require_unchanged(source, header)


def _require_unchanged(source: ByteSource, header: SliceHeader) -> None:
    changed = isinstance(source, LocalBytes) and source.is_changed
    # A store's objects and an archive's members may have no stamp; sizes need no request here.
    if source.modified and header.modified and source.modified != header.modified:
        changed = True
    if changed:
        raise RejectedError(
            Reason.UNREADABLE_FILE, "changed since its header was read", path=header.path
        )


class _NativeReader:
    """Reads native pixels at their offset into one buffer, used again for every slice."""

    def __init__(self) -> None:
        self._layout: object = None
        self._buffer = memoryview(bytearray())
        self._samples: npt.NDArray[Any] = np.empty((0, 0))

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        with open_bytes(header.path) as source:  # `_as_headed` costs a fifth of this again
            samples = self.read_from(source, header)
            _require_unchanged(source, header)
        return samples

    def read_from(self, source: _Readable, header: SliceHeader) -> npt.NDArray[Any]:
        """The samples of one frame.

        Args:
          source: the file, open.
          header: of the frame.
        """
        layout = (
            header.rows,
            header.columns,
            header.samples,
            header.bits_allocated,
            header.pixel_representation,
        )
        if layout != self._layout:
            self._layout = layout
            self._buffer = memoryview(bytearray(header.frame_bytes))
            kind, bits = "i" if header.pixel_representation else "u", header.bits_allocated or 16
            if bits != 12:
                samples = np.frombuffer(self._buffer, dtype=f"<{kind}{bits // 8}")
                self._samples = samples.reshape(header.rows or 0, header.columns or 0)
        size = len(self._buffer)
        found = source.read_into(self._buffer, header.pixel_offset + header.frame * size)
        if found < size:
            raise RejectedError(
                Reason.TRUNCATED_PIXELS,
                f"{size} pixel bytes required, {found} found",
                path=header.path,
            )
        if header.bits_allocated == 12:
            samples = unpack_12_bits(self._buffer)
            self._samples = samples.reshape(header.rows or 0, header.columns or 0)
            if header.pixel_representation:
                self._samples = self._samples.view("<i2")
        return only_stored_bits(header, self._samples)


class _Readable(Protocol):
    """What native pixels are read from."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset`; returns the number of bytes read."""


class _Bytes:
    """A file's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = memoryview(self._data)[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)


class _DeflatedReader:
    """Reads native pixels of deflated files; a multi-frame file is inflated once."""

    def __init__(self) -> None:
        self._path = ""
        self._native = _NativeReader()
        self._data = _Bytes(b"")

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        if header.pixel_length is None:
            raise RejectedError(
                Reason.UNDECODABLE_PIXELS, "deflated pixels of undefined length", path=header.path
            )
        if header.path != self._path:
            self._path, self._data = "", _Bytes(b"")
            with _as_headed(header) as source:
                self._data = _Bytes(source.read_at(0, source.size))
            self._path = header.path
        return self._native.read_from(self._data, header)


class _TileReader:
    """Cuts tiles out of mosaics; a file is read once."""

    def __init__(self) -> None:
        self._path = ""
        self._image: npt.NDArray[Any] = np.empty((0, 0))

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        if header.path != self._path:
            whole = whole_image(header)._replace(has_modality_lut=False)
            self._image = next(_read_slices([whole])).samples
            self._path = header.path
        rows, columns = header.rows or 0, header.columns or 0
        row, column = divmod(header.frame, header.tiles)
        tile = self._image[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
        return np.ascontiguousarray(tile)


class _CompressedReader:
    """Decodes encapsulated frames (PS3.5 A.4); a multi-frame file is read and cut up once."""

    def __init__(self) -> None:
        self._path = ""
        self._frames: list[bytes] = []

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        if header.path != self._path:
            with _as_headed(header) as source:
                data = source.read_at(header.pixel_offset, source.size - header.pixel_offset)
            self._frames = encapsulated_frames(header, data)
            self._path = header.path
        return decode_frame(header, self._frames[header.frame])


def _parse(header: SliceHeader) -> Any:
    """The whole data set of a header's file, its long values among it."""
    with _as_headed(header) as source:
        data = source.read_at(0, source.size)
    stream = PieceLimit(io.BytesIO(data), len(data))
    try:
        return parse(stream, force=data[128:132] != b"DICM")
    except Exception as error:
        if stream.left < 0:
            raise RejectedError(Reason.TOO_LARGE, stream.refusal, path=header.path) from error
        raise RejectedError(
            Reason.CORRUPT_HEADER,
            f"pydicom cannot parse the file ({type(error).__name__})",
            path=header.path,
        ) from error


class _DatasetReader:
    """Reads native pixels that are not plain (big endian, deflated); a file is parsed once."""

    def __init__(self) -> None:
        self._path = ""
        self._dataset: Any = None

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        if header.path != self._path:
            self._dataset = _parse(header)
            self._path = header.path
        dataset = self._dataset
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decoder = get_decoder(UID(header.transfer_syntax))
        except NotImplementedError as error:
            raise RejectedError(
                Reason.UNSUPPORTED_PIXELS,
                "the transfer syntax is not in the standard's table",
                path=header.path,
            ) from error
        if not decoder.is_native:
            raise RejectedError(
                Reason.UNSUPPORTED_PIXELS,
                f"no decoder is known for {decoder.UID.name}",
                path=header.path,
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = dataset.PixelData
                if not isinstance(pixels, bytes | None):
                    raise TypeError(f"pixel data of VR {dataset['PixelData'].VR}")
                require_pixel_bytes(header, len(pixels or b""))
                # What lies in the unused bits is dealt with here, high bit included.
                options: Any = {"correct_unused_bits": False}
                samples, _ = decoder.as_array(dataset, index=header.frame, **options)
        except RejectedError:
            raise
        except Exception as error:
            raise RejectedError(
                Reason.UNDECODABLE_PIXELS,
                f"pixels do not decode ({type(error).__name__})",
                path=header.path,
            ) from error
        return only_stored_bits(header, samples.astype(samples.dtype.newbyteorder("<")))
