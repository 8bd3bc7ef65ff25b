"""A compressed file read at any place: inflated once, later from points that lie on its way.

zlib can copy the state of an inflation. A copy is kept for the begin of every block, so that a
block costs its own inflation alone, and reading one after the other costs no more than without.
"""

from __future__ import annotations

import errno
import itertools
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from beam_jobs.common.files.archives.inflate import GZIP, most_inflated
from beam_jobs.common.files.sources import ByteSource

_BLOCK_BYTES = 4 << 20
_PACKED_BYTES = 16 << 10  # a copied state keeps what of them it has not used yet
# A point costs 40 KB. Beyond so many every second one is forgotten, and blocks are twice as long.
_POINTS = 1024
_CACHED = 3  # blocks, of all indices together


class _Point(NamedTuple):
    """Where a block begins: the packed byte that comes next, and the state of the inflation."""

    at: int
    inflate: Any


class _Cache:
    """The last few blocks that were inflated."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[Any, bytes] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: Any) -> bytes | None:
        with self._guard:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def put(self, key: Any, data: bytes) -> None:
        with self._guard:
            self._blocks[key] = data
            if len(self._blocks) > _CACHED:
                self._blocks.popitem(last=False)


_cache = _Cache()
_numbers = itertools.count()


class GzipIndex:
    """The inflated content of a gzip file; threads may share it.

    Attributes:
      modified: of the packed source.
    """

    def __init__(self, first: ByteSource, again: Callable[[], ByteSource], path: str) -> None:
        """Opens a gzip file.

        Args:
          first: the packed bytes, read once from begin to end.
          again: opens them anew, for a block that is read again.
          path: for messages.
        """
        self.modified = first.modified
        self._first: ByteSource | None = first
        self._again = again
        self._path = path
        self._number = next(_numbers)
        self._block = _BLOCK_BYTES
        self._points = [_Point(0, zlib.decompressobj(GZIP))]
        self._size: int | None = None
        self._damage = ""  # why there is no more than `_size`
        self._most = most_inflated(first.size)
        self._reading = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the content, up to the first damage; finding out inflates it, once."""
        with self._reading:
            while self._size is None:
                self._read_block(len(self._points) - 1)
            return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        parts = []
        with self._reading:
            while length > 0:
                number, begin = divmod(offset, self._block)
                while number >= len(self._points) and self._size is None:
                    self._read_block(len(self._points) - 1)
                    number, begin = divmod(offset, self._block)
                if number >= len(self._points):
                    break
                part = self._read_block(number)[begin : begin + length]
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                length -= len(part)
        if length > 0 and self._damage:
            why = f"damaged compressed data: {self._damage}"
            raise OSError(errno.EBADMSG, why, self._path)
        return b"".join(parts)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Nothing: members are opened and closed, their archive's index stays."""

    def end_of_first_pass(self) -> None:
        """The packed bytes are opened anew from here on."""
        self._first = None

    def _read_block(self, number: int) -> bytes:
        key = (self._number, self._block, number)
        if (found := _cache.get(key)) is not None:
            return found
        packed = self._first or self._again()
        try:
            data, end = self._inflated(packed, number)
        finally:
            if packed is not self._first:
                packed.close()
        _cache.put(key, data)
        if number == len(self._points) - 1 and self._size is None:
            if len(data) < self._block:
                self._size = number * self._block + len(data)
            else:
                self._points.append(end)
                self._thin_out()
        return data

    def _thin_out(self) -> None:
        if len(self._points) > _POINTS and len(self._points) % 2:
            self._points = self._points[::2]
            self._block *= 2

    def _inflated(self, source: ByteSource, number: int) -> tuple[bytes, _Point]:
        """A block, and the point at which it ends."""
        point = self._points[number]
        at, inflate = point.at, point.inflate.copy()
        data = bytearray()
        begin = number * self._block
        try:
            while len(data) < self._block:
                if begin + len(data) > self._most:
                    self._damage = f"it unpacks to more than {self._most >> 20} MB"
                    break
                if inflate.eof:
                    if source.read_at(at, 2) != b"\x1f\x8b":  # no other one follows
                        break
                    inflate = zlib.decompressobj(GZIP)
                packed = source.read_at(at, _PACKED_BYTES)
                part = inflate.decompress(packed, self._block - len(data))
                if not packed and not part and not inflate.eof:
                    self._damage = "it ends too early"
                    break
                data += part
                # At its end a copy may name what is left twice.
                unused = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
                at += len(packed) - len(unused)
        except zlib.error as error:
            self._damage = str(error).partition(": ")[2] or str(error)
        return bytes(data), _Point(at, inflate)
