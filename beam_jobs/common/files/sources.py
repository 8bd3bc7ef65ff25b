"""Files open for reading at any place: what the DICOM core, zipfile and numpy read from."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from beam_jobs.common.files.names import Entry
from beam_jobs.common.files.objects import PART_BYTES, Piece, read_range

# A DICOM header almost always fits; less costs no less time to fetch.
HEAD_BYTES = 64 << 10


# What a command reads whole into memory: lists of a million patients are half as long.
MOST_BYTES = 256 << 20
TABLE_BYTES = 2 << 30  # a dataset's own tables have a line a series or file


class TooLargeError(OSError):
    """A file holds more than is read of one of its kind."""


class SpecialFileError(OSError):
    """A pipe, a device or a socket in the place of a file."""


def require_size(size: int, limit: int, path: str) -> None:
    """Refuses a file for its size.

    Raises:
      TooLargeError: `size` is more than `limit`.
    """
    if size > limit:
        allowed = f"{limit >> 20} MB" if limit >> 20 else f"{limit} bytes"
        why = f"holds more than {allowed}, which is the most that is read of such a file"
        raise TooLargeError(errno.EFBIG, why, path)


class ByteSource(Protocol):
    """A file open for reading at any place."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    @property
    def modified(self) -> int:
        """Changes when the content does: a disk's time of change in ns, a listing's stamp, or 0."""

    def read_at(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only at the end of the file."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset`; returns the number of bytes read."""

    def close(self) -> None:
        """Gives back what the open file holds."""


class Known(threading.local):
    """What this thread knows of files before it opens them.

    Attributes:
      entries: path → what a listing said of it.
      take: gives a path's begin where it is being fetched, as something to wait for.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.take: Callable[[str], Callable[[], Piece] | None] = lambda path: None


known = Known()


class ObjectBytes:
    """An object open for reading; opening costs no request.

    What is read is a block of at least `HEAD_BYTES`; blocks that follow one another grow, so that
    a header costs little and a long file few requests. All are of one version of the object.

    Attributes:
      modified: stamp of the listing it was found in, 0 without one.
    """

    def __init__(
        self,
        path: str,
        *,
        size: int | None = None,
        tag: str = "",
        address: str = "",
        start: int = 0,
    ) -> None:
        """Opens an object.

        Args:
          path: of the object.
          size: of it, None where that is not known yet.
          tag: of the version it has to be, "" for any.
          address, start: of the member of it that is going to be read, and where that begins.
        """
        entry = None if address else known.entries.get(path)
        self.modified = entry.stamp if entry else 0
        self._path = path
        self._size = entry.size if entry else size
        self._tag = tag
        self._block, self._start, self._step = b"", start, HEAD_BYTES
        self._fetched = known.take(address or path)

    @property
    def size(self) -> int:
        if self._size is None:
            self.read_at(0, 1)
        assert self._size is not None
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        if self._fetched is not None:
            fetched, self._fetched = self._fetched, None
            self._keep(fetched(), self._start)
        if self._size is not None:
            length = min(length, self._size - offset)
        if length <= 0:
            return b""
        begin = offset - self._start
        there = self._block[begin : begin + length] if begin >= 0 else b""
        missing = length - len(there)
        if not missing:
            return there
        at = offset + len(there)
        follows = self._block and at == self._start + len(self._block)
        self._step = min(4 * self._step, PART_BYTES) if follows else HEAD_BYTES
        first = at
        if self._size is not None and not follows:
            # What is read at the end, an archive's table, is often preceded by more of it.
            first = max(0, min(at, self._size - self._step))
        wanted = max(missing + at - first, self._step)
        self._keep(read_range(self._path, first, wanted, self._tag), first)
        return there + self._block[at - first : at - first + missing]

    def _keep(self, piece: Piece, start: int) -> None:
        self._block, self._start = piece.data, start
        self._tag = piece.tag or self._tag
        if piece.size is not None:
            self._size = piece.size
        elif start == 0 and self._size is None:
            self._size = 0  # nothing lies at its begin

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._block, self._fetched = b"", None


class SourceFile(io.RawIOBase):
    """A source as a stream that never allocates more than there is, whatever is requested.

    Args:
      source: the source.
      name: of the file.
      owned: close it with the stream.
    """

    def __init__(self, source: ByteSource, name: str = "", *, owned: bool = False) -> None:
        super().__init__()
        self.name = name  # pydicom looks for it
        self._source = source
        self._owned = owned
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = 0 if whence == os.SEEK_SET else self._at
        if whence == os.SEEK_END:
            base = self._source.size
        self._at = max(0, base + offset)
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self._source.size - self._at)
        wanted = left if count is None or count < 0 else min(count, left)
        data = self._source.read_at(self._at, wanted) if wanted else b""
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._owned:
                self._source.close()
