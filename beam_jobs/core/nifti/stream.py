"""A file's content from begin to end, inflated where it is gzip; nothing of it is kept.

A volume of 512 x 512 x 400 voxels is inflated once for all its slices, in the memory of one.
"""

from __future__ import annotations

import errno
import zlib

from beam_jobs.common.files import interface as files

_GZIP = b"\x1f\x8b"
_WINDOW = 16 + zlib.MAX_WBITS  # a gzip header and its checksum at the end
_PIECE = files.HEAD_BYTES  # of packed bytes, as much as is fetched of a store's object at once


class Content:
    """The bytes of a plain or a gzip file in their order; its first bytes say which it is.

    Several gzip members that follow one another are one content; what follows the last member and
    is none is padding, as it is for gunzip.

    Attributes:
      at: how many bytes were read.
      is_gzip: whether the file is gzip.
    """

    def __init__(self, source: files.ByteSource, path: str) -> None:
        """Reads nothing but the first two bytes.

        Args:
          source: the open file, which its owner closes.
          path: of it, for messages.
        """
        self.at = 0
        self.is_gzip = source.read_at(0, 2) == _GZIP
        self._source = source
        self._path = path
        self._inflate = zlib.decompressobj(_WINDOW)
        self._packed = b""  # read and not yet inflated
        self._packed_at = 0
        self._ended = False

    def read_into(self, buffer: memoryview) -> int:
        """Fills `buffer` with the next bytes; returns how many there were, fewer only at the end.

        Raises:
          OSError: the packed bytes are damaged, or end too early.
        """
        filled = 0
        if not self.is_gzip:
            filled = self._source.read_into(buffer, self.at)
        else:
            while filled < len(buffer) and (data := self._inflated(len(buffer) - filled)):
                buffer[filled : filled + len(data)] = data
                filled += len(data)
        self.at += filled
        return filled

    def read(self, count: int) -> bytes:
        """The next bytes, fewer than `count` only at the end."""
        buffer = bytearray(count)
        return bytes(buffer[: self.read_into(memoryview(buffer))])

    def skip(self, count: int) -> int:
        """Passes the next bytes over; returns how many there were."""
        if not self.is_gzip:
            passed = max(0, min(count, self._source.size - self.at))
            self.at += passed
            return passed
        passed = 0
        while passed < count and (data := self._inflated(min(count - passed, _PIECE))):
            passed += len(data)
        self.at += passed
        return passed

    def _inflated(self, most: int) -> bytes:
        """Some of the next bytes, at least one but at the end."""
        try:
            while not self._ended:
                if self._inflate.eof and not self._next_member():
                    self._ended = True
                    break
                if not self._packed:
                    self._packed = self._next()
                packed, data = self._packed, self._inflate.decompress(self._packed, most)
                ended = self._inflate.eof
                self._packed = self._inflate.unused_data if ended else self._inflate.unconsumed_tail
                if data:
                    return data
                if not packed and not ended:
                    raise self._damaged("it ends too early")
        except zlib.error as error:
            raise self._damaged(str(error).partition(": ")[2] or str(error)) from error
        return b""

    def _next(self) -> bytes:
        packed = self._source.read_at(self._packed_at, _PIECE)
        self._packed_at += len(packed)
        return packed

    def _next_member(self) -> bool:
        """Begins with the next gzip member, where one follows."""
        if len(self._packed) < len(_GZIP):
            self._packed += self._next()
        if not self._packed.startswith(_GZIP):
            return False
        self._inflate = zlib.decompressobj(_WINDOW)
        return True

    def _damaged(self, why: str) -> OSError:
        return OSError(errno.EBADMSG, f"damaged compressed data: {why}", self._path)
