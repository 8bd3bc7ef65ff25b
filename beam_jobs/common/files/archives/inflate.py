"""Parts of files, and files that are compressed, as sources that are read like any other."""

from __future__ import annotations

import errno
import functools
import zlib

from beam_jobs.common.files.sources import ByteSource, TooLargeError

# No DICOM object that is worked on here is larger; what claims to be would only cost memory.
INFLATED_BYTES = 2 << 30
# Images give a half to a tenth of themselves, with much air a little less; zeros a thousandth.
_MOST_RATIO = 20
_ALWAYS_BYTES = 128 << 20
RAW, GZIP = -zlib.MAX_WBITS, 16 + zlib.MAX_WBITS
_FIRST_BYTES = 64 << 10
_LATER_BYTES = 1 << 20


def most_inflated(packed: int) -> int:
    """The bytes that so many packed ones may unpack to: what gives more is no image.

    >>> most_inflated(1000) >> 20, most_inflated(10 << 20) >> 20
    (128, 200)
    """
    return max(_ALWAYS_BYTES, _MOST_RATIO * packed)


def too_large(limit: int, path: str) -> OSError:
    """The error of what unpacks to more than `most_inflated` or `INFLATED_BYTES`."""
    why = f"unpacks to more than {limit >> 20} MB, which no image of its size does"
    return TooLargeError(errno.EFBIG, why, path)


class Window:
    """Some bytes of another source, which is closed with it.

    Attributes:
      size: in bytes.
      modified: a stamp of the content.
    """

    def __init__(self, source: ByteSource, start: int, size: int, modified: int) -> None:
        self.size = size
        self.modified = modified
        self._source = source
        self._begin = start

    def read_at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return self._source.read_at(self._begin + offset, length) if length > 0 else b""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        length = max(0, min(len(buffer), self.size - offset))
        return self._source.read_into(buffer[:length], self._begin + offset)

    def close(self) -> None:
        self._source.close()


class InflatedBytes:
    """A deflated source, inflated as far as it is read; what was inflated is kept.

    Attributes:
      modified: of the packed source.
    """

    def __init__(
        self,
        packed: ByteSource,
        path: str,
        *,
        window: int,
        size: int | None = None,
        crc: int | None = None,
    ) -> None:
        """Opens a deflated source, which is closed with this one.

        Args:
          packed: the compressed bytes.
          path: for messages.
          window: `RAW` (in a zip archive) or `GZIP`.
          size, crc: what it has to give, None where that is not known.
        """
        self.modified = packed.modified
        self._packed = packed
        self._path = path
        self._window = window
        self._size, self._crc = size, crc
        self._inflate = zlib.decompressobj(window)
        self._data = bytearray()
        self._at = 0
        self._rest = b""
        self._ended = False

    @property
    def size(self) -> int:
        if self._size is None:
            self._grow(INFLATED_BYTES)
            return len(self._data)
        return self._size

    @functools.cached_property
    def _most(self) -> int:
        if self._size is not None:  # which the archive's table was refused for
            return self._size
        return min(most_inflated(self._packed.size), INFLATED_BYTES)

    def read_at(self, offset: int, length: int) -> bytes:
        if self._size is not None:
            length = min(length, self._size - offset)
        self._grow(min(offset + length, INFLATED_BYTES))
        return bytes(memoryview(self._data)[offset : offset + length]) if length > 0 else b""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._data = bytearray()
        self._packed.close()

    def _grow(self, end: int) -> None:
        limit = self._most
        try:
            while not self._ended and (len(self._data) < end or len(self._data) == limit):
                packed = self._rest or self._next()
                # One more than there may be, to see that there is not.
                self._data += self._inflate.decompress(packed, limit + 1 - len(self._data))
                self._rest = self._inflate.unconsumed_tail
                if len(self._data) > limit:
                    if self._size is None:
                        raise too_large(limit, self._path)
                    raise self._damaged(f"it unpacks to more than {limit} bytes")
                if self._inflate.eof:
                    self._end_of_stream()
        except zlib.error as error:
            raise self._damaged(str(error).partition(": ")[2] or str(error)) from error

    def _next(self) -> bytes:
        packed = self._packed.read_at(self._at, _LATER_BYTES if self._at else _FIRST_BYTES)
        if not packed:
            raise self._damaged("it ends too early")
        self._at += len(packed)
        return packed

    def _end_of_stream(self) -> None:
        if self._window == GZIP:  # several may follow one another
            following = self._inflate.unused_data or self._packed.read_at(self._at, _LATER_BYTES)
            if following.startswith(b"\x1f\x8b"):
                if not self._inflate.unused_data:
                    self._at += len(following)
                self._inflate, self._rest = zlib.decompressobj(self._window), following
                return
        self._ended = True
        if self._size is not None and len(self._data) != self._size:
            raise self._damaged(f"{len(self._data)} bytes instead of {self._size}")
        if self._crc is not None and zlib.crc32(self._data) != self._crc:
            raise self._damaged("its checksum differs")

    def _damaged(self, why: str) -> OSError:
        return OSError(errno.EBADMSG, f"damaged compressed data: {why}", self._path)
