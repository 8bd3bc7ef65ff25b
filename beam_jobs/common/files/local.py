"""Files on a local disk: read by descriptor, listed, written whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat as modes
import uuid
from contextlib import suppress
from typing import Any

from beam_jobs.common.files.names import Status, is_input
from beam_jobs.common.files.writer import Target, Writer


class LocalBytes:
    """A local file, read by descriptor without any buffering of its own.

    Attributes:
      descriptor: of the open file.
      size: in bytes.
      modified: time of change in ns.
    """

    __slots__ = ("descriptor", "modified", "size")

    def __init__(self, path: str) -> None:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self.descriptor)
        if not modes.S_ISREG(status.st_mode):
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


def list_files(root: str) -> list[str]:
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


def stat(path: str) -> Status | None:
    """Size and time of a file, None where there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if modes.S_ISDIR(found.st_mode) else Status(found.st_size, found.st_mtime_ns)


def list_names(directory: str) -> list[str]:
    """Names of the files directly in a directory, sorted; none when it is not there."""
    if not os.path.isdir(directory):
        return []
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if entry.is_file())


class _Temporary(Target):
    """A file under a temporary name beside its own (see `names.temporary_of`)."""

    def __init__(self, path: str) -> None:
        super().__init__()
        directory, name = os.path.split(path)
        os.makedirs(directory or ".", exist_ok=True)
        self._path = path
        self._temporary = os.path.join(directory, f"{name}.{uuid.uuid4().hex[:12]}.part")
        self._file = io.FileIO(self._temporary, "x")

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def publish(self) -> None:
        self._file.close()
        os.replace(self._temporary, self._path)
        super().close()

    def abandon(self) -> None:
        super().close()
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            os.unlink(self._temporary)


def open_write(path: str) -> Writer:
    """A stream that becomes the file when it is closed; its directory is made."""
    return Writer(_Temporary(path))


def write(path: str, data: bytes) -> None:
    """Writes a file whole: no reader ever finds half of it, no failure costs the old one."""
    with open_write(path) as stream:
        stream.write(data)


def write_new(path: str, data: bytes) -> bool:
    """Writes a file whole unless there is one, which no other writer can come between."""
    directory, name = os.path.split(path)
    os.makedirs(directory or ".", exist_ok=True)
    temporary = os.path.join(directory, f"{name}.{uuid.uuid4().hex[:12]}.part")
    with open(temporary, "xb") as stream:
        stream.write(data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def copy(source: str, target: str) -> None:
    """Copies a file; the target appears whole."""
    with open(source, "rb") as stream, open_write(target) as copied:
        shutil.copyfileobj(stream, copied, 1 << 20)


def delete(path: str) -> None:
    """Deletes a file; one that is gone already is no error."""
    with suppress(FileNotFoundError):
        os.unlink(path)
