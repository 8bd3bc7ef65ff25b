"""Packs: the files of a series one after the other in one file, as they came.

A file each would be created, renamed and opened each: on a disk that takes longer than to send it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import google_crc32c

from beam_jobs.common.files.local import LocalBytes

_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 64 << 10


class Kept(NamedTuple):
    """An instance in the spool.

    Attributes:
      start: where in the series' pack it begins.
      size: in bytes.
      crc: CRC-32C of its bytes. SHA-256 would take a third of the time that a series takes to come.
    """

    start: int
    size: int
    crc: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.size

    @property
    def stamp(self) -> int:
        """A number for its content, whenever it was fetched: 56 bits, as a listing's."""
        return (self.size & 0xFFFFFF) << 32 | self.crc or 1


class SpooledBytes(LocalBytes):
    """An instance within a pack; `modified` tells its content, not when it was fetched.

    Args:
      pack: path of the pack.
      kept: where in it the instance is.

    Raises:
      OSError: the pack cannot be opened, or ends before the instance does.
    """

    __slots__ = ("_start",)

    def __init__(self, pack: str, kept: Kept) -> None:
        super().__init__(pack)
        self._start = kept.start
        ends = self.size
        self.size, self.modified = kept.size, kept.stamp
        if ends < kept.start + kept.size:
            self.close()
            raise OSError(errno.EIO, "ends before what it holds", pack)

    @property
    def is_changed(self) -> bool:
        """Whether it is gone from the pack, which is only ever written to behind it."""
        return os.fstat(self.descriptor).st_size < self._start + self.size

    def read_at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return super().read_at(self._start + offset, length) if length > 0 else b""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        length = max(0, min(len(buffer), self.size - offset))
        return super().read_into(buffer[:length], self._start + offset)


class Arriving:
    """An instance being written into a file of the spool.

    Args:
      writing: what a refusal of the disk is turned into.
      descriptor: of the file.
      start: where in it.

    Attributes:
      head: the first 64 kB.
    """

    def __init__(
        self, writing: Callable[[], AbstractContextManager[None]], descriptor: int, start: int
    ) -> None:
        self.head = memoryview(b"")
        self._writing = writing
        self._descriptor = descriptor
        self._start = self._at = start
        self._crc = 0

    def write(self, piece: memoryview) -> None:
        """Adds some bytes.

        Raises:
          StoreError: the disk refuses them.
        """
        if not self.head:
            self.head = piece[:_HEAD_BYTES]
        elif len(self.head) < _HEAD_BYTES:  # pieces are short for once
            self.head = memoryview(b"".join([self.head, piece[: _HEAD_BYTES - len(self.head)]]))
        self._crc = google_crc32c.extend(self._crc, bytes(piece))
        try:
            while piece:
                count = os.pwrite(self._descriptor, piece, self._at)
                self._at += count
                piece = piece[count:]
        except OSError:
            with self._writing():
                raise

    @property
    def kept(self) -> Kept:
        """What it is, when all of it is written."""
        return Kept(self._start, self._at - self._start, self._crc)


def kept_of(start: object, size: object, crc: object) -> Kept:
    """An instance as a file of the spool names it.

    Raises:
      ValueError: it makes no sense.
    """
    if not (isinstance(start, int) and isinstance(size, int) and start >= 0 and size >= 0):
        raise ValueError("no place in a pack")
    if not (isinstance(crc, int) and 0 <= crc < 1 << 32):
        raise ValueError("no CRC-32C")
    return Kept(start, size, crc)


def line_of(uid: str, kept: Kept) -> str:
    """An instance as a line of a journal."""
    # Written for every instance that comes; nothing in it has to be quoted.
    return f'{{"uid": "{uid}", "start": {kept.start}, "size": {kept.size}, "crc32c": {kept.crc}}}'


def pieces(descriptor: int, start: int, size: int) -> Iterator[memoryview]:
    """So many bytes of a file from `start`, as far as it goes."""
    end = start + size
    while start < end and (data := os.pread(descriptor, min(_BLOCK_BYTES, end - start), start)):
        yield memoryview(data)
        start += len(data)


def crc_of(descriptor: int, kept: Kept) -> int:
    """CRC-32C of an instance in a pack, of what there is of it."""
    crc = 0
    for piece in pieces(descriptor, kept.start, kept.size):
        crc = google_crc32c.extend(crc, bytes(piece))
    return crc
