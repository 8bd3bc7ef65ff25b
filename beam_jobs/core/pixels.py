"""Stored samples of one image, from file bytes to integers; native pixels are read exactly once."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.uid import UID

from beam_jobs.core.dicom_index import SliceHeader
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.series import Series
from beam_jobs.core.storage import open_bytes


class StoredSlice(NamedTuple):
    """One slice's samples and how they become values: `value = samples * slope + intercept`.

    `samples` is (row, column) and valid only until the next slice is asked for (the buffer is
    used again). MONOCHROME1 inversion is folded into slope and intercept (PS3.3 C.7.6.3.1.2).
    """

    samples: npt.NDArray[Any]
    slope: float
    intercept: float


def stored_slices(series: Series) -> Iterator[StoredSlice]:
    """Yields the slices of a series in order, each file read once.

    Raises:
      RejectedError: unreadable, truncated or undecodable pixels; the error names the file.
    """
    reader = _NativeReader()
    opened = _Decoded()
    for header in series.headers:
        try:
            if reader.can_read(header):
                yield _with_rescale(header, reader.read(header))
            else:
                yield opened.read(header)
        except OSError as error:
            raise RejectedError(
                Reason.UNREADABLE_FILE, error.strerror or type(error).__name__, path=header.path
            ) from error


def _with_rescale(header: SliceHeader, samples: npt.NDArray[Any]) -> StoredSlice:
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope != 0):
        raise RejectedError(
            Reason.CORRUPT_HEADER, f"rescale slope {slope}, intercept {intercept}", path=header.path
        )
    if header.photometric == "MONOCHROME1":
        bits = header.bits_stored or 16
        top = float((1 << (bits - 1)) - 1 if header.pixel_representation else (1 << bits) - 1)
        bottom = float(-(1 << (bits - 1)) if header.pixel_representation else 0)
        return StoredSlice(samples, -slope, slope * (top + bottom) + intercept)
    return StoredSlice(samples, slope, intercept)


class _NativeReader:
    """Reads native pixels at their offset into one buffer, used again for every slice."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @staticmethod
    def can_read(header: SliceHeader) -> bool:
        return (
            header.is_native
            and header.bits_allocated in (8, 16, 32)
            and header.high_bit in (None, (header.bits_stored or 0) - 1)
            and not header.has_modality_lut
        )

    def read(self, header: SliceHeader) -> npt.NDArray[Any]:
        size = header.frame_bytes
        if len(self._buffer) != size:
            self._buffer = bytearray(size)
        with open_bytes(header.path) as source:
            start = header.pixel_offset + header.frame * size
            found = source.read_into(memoryview(self._buffer), start)
        if found < size:
            raise RejectedError(
                Reason.TRUNCATED_PIXELS,
                f"{size} pixel bytes required, {found} found",
                path=header.path,
            )
        kind = "i" if header.pixel_representation else "u"
        bytes_each = (header.bits_allocated or 16) // 8
        samples = np.frombuffer(self._buffer, dtype=f"<{kind}{bytes_each}")
        unused = (header.bits_allocated or 16) - (header.bits_stored or 16)
        if unused:
            # Bits above bits_stored may hold anything (old overlays): PS3.5 8.1.1.
            if kind == "u":
                samples &= samples.dtype.type((1 << (header.bits_stored or 16)) - 1)
            else:
                samples <<= unused
                samples >>= unused
        return samples.reshape(header.rows or 0, header.columns or 0)


class _Decoded:
    """Decodes pixels through pydicom; a multi-frame file is parsed once."""

    def __init__(self) -> None:
        self._path = ""
        self._dataset: Any = None

    def read(self, header: SliceHeader) -> StoredSlice:
        if header.path != self._path:
            with open_bytes(header.path) as source:
                data = source.read_at(0, source.size)
            self._dataset = None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._dataset = pydicom.dcmread(
                        io.BytesIO(data), force=data[128:132] != b"DICM"
                    )
            except Exception as error:
                raise RejectedError(
                    Reason.CORRUPT_HEADER,
                    f"pydicom cannot parse the file ({type(error).__name__})",
                    path=header.path,
                ) from error
            self._path = header.path
        return self._decode(header)

    def _decode(self, header: SliceHeader) -> StoredSlice:
        try:
            decoder = get_decoder(UID(header.transfer_syntax))
        except NotImplementedError as error:
            raise RejectedError(
                Reason.UNSUPPORTED_PIXELS,
                "the transfer syntax is not in the standard's table",
                path=header.path,
            ) from error
        if not decoder.is_available:
            raise RejectedError(
                Reason.UNSUPPORTED_PIXELS,
                f"no decoder is installed for {UID(header.transfer_syntax).name}",
                path=header.path,
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                samples, _ = decoder.as_array(self._dataset, index=header.frame, raw=False)
                if header.has_modality_lut:
                    values = apply_modality_lut(samples, self._dataset)
                    plain = header._replace(slope=None, intercept=None)
                    return _with_rescale(plain, np.ascontiguousarray(values))
        except Exception as error:
            raise RejectedError(
                Reason.UNDECODABLE_PIXELS,
                f"pixels do not decode ({type(error).__name__})",
                path=header.path,
            ) from error
        if samples.shape != (header.rows, header.columns):
            raise RejectedError(
                Reason.UNDECODABLE_PIXELS,
                f"decoded {samples.shape}, header says ({header.rows}, {header.columns})",
                path=header.path,
            )
        return _with_rescale(header, np.ascontiguousarray(samples))
