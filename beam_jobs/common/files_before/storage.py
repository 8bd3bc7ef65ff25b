"""Byte access to files, so that the core reads local paths and object stores by one interface.

The core knows local paths. A job that reads `gs://` or `s3://` registers an opener for them
(`filesystems` does, through Beam), which keeps Beam out of the pure core.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Protocol

_remote_opener: Callable[[str], IO[bytes]] | None = None


class ByteSource(Protocol):
    """A file open for reading at any place."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only at the end of the file."""

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fills `buffer` from `offset`; returns the number of bytes read."""


class LocalBytes:
    """A local file, read by descriptor without any buffering of its own."""

    __slots__ = ("descriptor", "modified", "size")

    def __init__(self, path: str) -> None:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.descriptor)
            raise OSError(errno.EINVAL, "not a regular file", path)
        self.size = status.st_size
        self.modified = status.st_mtime_ns

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        total = 0
        while total < len(buffer):
            count = os.preadv(self.descriptor, [buffer[total:]], offset + total)
            if count == 0:
                break
            total += count
        return total

    def close(self) -> None:
        os.close(self.descriptor)


class StreamBytes:
    """A seekable binary stream (an object in a store)."""

    __slots__ = ("_size", "modified", "stream")

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.modified: int = getattr(stream, "stamp", 0)
        self._size: int | None = None

    @property
    def size(self) -> int:
        """Of the stream; only who asks for it pays for finding out."""
        if self._size is None:
            self._size = self.stream.seek(0, os.SEEK_END)
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        self.stream.seek(offset)
        parts = []
        while length > 0 and (part := self.stream.read(length)):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.stream.close()


class SeekableBytes(io.RawIOBase):
    """A source as a stream that never allocates more than there is, whatever it is asked for."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._at, self._source.size)[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self._source.size - self._at)
        wanted = left if count is None or count < 0 else min(count, left)
        data = self._source.read_at(self._at, wanted) if wanted else b""
        self._at += len(data)
        return data


def register_remote_opener(opener: Callable[[str], IO[bytes]]) -> None:
    """Says how paths with a scheme (`gs://`, `s3://`) are opened in this process."""
    global _remote_opener
    _remote_opener = opener


def is_remote(path: str) -> bool:
    """Whether `path` names an object in a store rather than a local file."""
    return "://" in path


# Files that no image hides in, so that a tidy directory gives no rejections.
_NOT_INPUT = frozenset({"DICOMDIR", "Thumbs.db", "desktop.ini"})


def is_input(name: str) -> bool:
    """Whether a file of that name is read at all: hidden files and DICOMDIR are not."""
    return bool(name) and not name.startswith(".") and name not in _NOT_INPUT


def list_local_files(root: str) -> list[str]:
    """Every file below a local directory, sorted; directories behind links once each.

    Raises:
      OSError: `root` is not a directory.
    """
    if not os.path.isdir(root):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", root)
    paths = []
    seen: set[tuple[int, int]] = set()
    for directory, subdirectories, names in os.walk(root, followlinks=True):
        status = os.stat(directory)
        # A link to a directory above would be walked for ever.
        if (status.st_dev, status.st_ino) in seen:
            subdirectories.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        paths += [f"{directory}/{name}" for name in names if is_input(name)]
    return sorted(paths)


@contextmanager
def open_bytes(path: str) -> Iterator[LocalBytes | StreamBytes]:
    """Opens `path` for reading at any place.

    Raises:
      OSError: it cannot be opened, or it is remote and no opener was registered.
    """
    source: LocalBytes | StreamBytes
    if not is_remote(path):
        source = LocalBytes(path)
    elif _remote_opener is not None:
        source = StreamBytes(_remote_opener(path))
    else:
        raise OSError(f"no opener is registered for {path}")
    try:
        yield source
    finally:
        source.close()
