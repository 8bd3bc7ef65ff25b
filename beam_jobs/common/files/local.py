"""Files on a local disk: read by descriptor, listed, written whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat as modes
import uuid
from collections import Counter
from contextlib import suppress
from typing import Any

from beam_jobs.common.files import scratch
from beam_jobs.common.files.names import HIDDEN, Status, left_out_as, temporary_of
from beam_jobs.common.files.sources import SpecialFileError, require_size
from beam_jobs.common.files.writer import Target, Writer, refused

_KINDS = {
    modes.S_IFIFO: "is a named pipe, not a file",
    modes.S_IFCHR: "is a device, not a file",
    modes.S_IFBLK: "is a device, not a file",
    modes.S_IFSOCK: "is a socket, not a file",
}


_DANGLING = "a link to a file that is not there (git-annex, DataLad: its content was not fetched)"


def _open_regular(path: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
    """Opens a regular file; whatever else could wait or go on for ever.

    Raises:
      IsADirectoryError: a directory.
      SpecialFileError: a pipe, a device, a socket.
      OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            _require_regular(os.stat(path), path)
        if error.errno == errno.ENOENT and os.path.islink(path):  # git-annex keeps files so
            raise FileNotFoundError(errno.ENOENT, _DANGLING, path) from error
        raise
    status = os.fstat(descriptor)
    if modes.S_ISREG(status.st_mode):
        return descriptor, status
    os.close(descriptor)
    _require_regular(status, path)
    raise OSError(errno.EINVAL, "not a regular file", path)


def _require_regular(status: os.stat_result, path: str) -> None:
    kind = modes.S_IFMT(status.st_mode)
    if kind == modes.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if kind in _KINDS:
        raise SpecialFileError(errno.EINVAL, _KINDS[kind], path)


def require_plain(path: str) -> None:
    """Refuses what is there and is neither file nor directory, for a library that would open it.

    Raises:
      SpecialFileError: a pipe, a device, a socket.
    """
    with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
        _require_regular(os.stat(path), path)


def open_read(path: str) -> io.BufferedReader:
    """A regular file as a stream.

    Raises:
      OSError: it cannot be opened, or is something else (see `_open_regular`).
    """
    return open(path, "rb", opener=lambda name, flags: _open_regular(name, flags)[0])


def read_whole(path: str, limit: int | None) -> bytes:
    """A whole regular file, of at most so many bytes.

    Raises:
      TooLargeError: it holds more; no more than `limit` of it was read.
      OSError: as `open_read`.
    """
    with open_read(path) as stream:
        if limit is None:
            return stream.read()
        size = os.fstat(stream.fileno()).st_size
        require_size(size, limit, path)
        # One more, to see that there is not; a file that grows, or of /proc, has not said its size.
        data = stream.read(size + 1)
        if len(data) > size:
            data += stream.read(limit + 1 - len(data))
            require_size(len(data), limit, path)
        return data


class LocalBytes:
    """A local file, read by descriptor without any buffering of its own.

    Attributes:
      descriptor: of the open file.
      size: in bytes.
      modified: time of change in ns.
    """

    __slots__ = ("descriptor", "modified", "size")

    def __init__(self, path: str) -> None:
        self.descriptor, status = _open_regular(path)
        self.size = status.st_size
        self.modified = status.st_mtime_ns

    @property
    def is_changed(self) -> bool:
        """Whether the file was written to since it was opened."""
        status = os.fstat(self.descriptor)
        return (status.st_size, status.st_mtime_ns) != (self.size, self.modified)

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


def list_files(root: str, left_out: Counter[str] | None = None) -> list[str]:
    """Every file below a local directory that is read, sorted; directories behind links once each.

    A directory that cannot be listed is a path too, with a slash at its end: see `unlisted`.

    Args:
      root: the directory.
      left_out: counts the files that are never read, by what they are left out as; without it
        hidden directories are not entered.

    Raises:
      OSError: `root` is not a directory, or cannot be listed.
    """
    if not os.path.isdir(root):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", root)
    paths: list[str] = []
    skipped: Counter[str] = Counter()
    hidden: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        below: list[str] = []
        try:
            # A link to a directory above would be walked for ever.
            if not _is_new(directory, seen):
                continue
            with os.scandir(directory) as found:
                for entry in found:
                    path = f"{directory.rstrip('/')}/{entry.name}"
                    left_out_here = left_out_as(entry.name)
                    if left_out_here != HIDDEN and _is_dir(entry):
                        below.append(path)
                    elif left_out_here == HIDDEN and _is_dir(entry, follow_symlinks=False):
                        hidden.append(path)
                    elif left_out_here:
                        skipped[left_out_here] += 1
                    else:
                        paths.append(path)
        except OSError:
            if directory == root:
                raise
            paths.append(f"{directory}/")
        waiting += sorted(below, reverse=True)
    if left_out is not None:
        skipped[HIDDEN] += _hidden_files(hidden, seen)
        left_out.update(+skipped)
    return sorted(paths)


def _is_dir(entry: os.DirEntry[str], *, follow_symlinks: bool = True) -> bool:
    """Whether an entry is a directory; whoever opens what cannot be looked at gets the error."""
    try:
        return entry.is_dir(follow_symlinks=follow_symlinks)
    except OSError:
        return False


def _is_new(directory: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a directory is not among those seen; adds it."""
    status = os.stat(directory)
    before = len(seen)
    seen.add((status.st_dev, status.st_ino))
    return len(seen) > before


def _hidden_files(directories: list[str], seen: set[tuple[int, int]]) -> int:
    """Files in hidden directories, which follow no link; one for each that cannot be listed."""
    files = 0
    waiting = list(directories)
    while waiting:
        directory = waiting.pop()
        try:
            if not _is_new(directory, seen):  # a link from outside led here
                continue
            with os.scandir(directory) as found:
                for entry in found:
                    if _is_dir(entry, follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        files += 1
        except OSError:
            files += 1
    return files


def unlisted(directory: str) -> OSError:
    """Why `list_files` could not list a directory."""
    try:
        with os.scandir(directory) as found:
            next(found, None)
    except OSError as error:
        why = f"the directory cannot be listed: {error.strerror or error}"
        return OSError(error.errno, why, directory)
    return OSError(errno.EIO, "the directory could not be listed", directory)


def tree(root: str) -> list[str]:
    """Every file below a directory, hidden ones too, as `interface.tree` has it."""
    found: list[str] = []
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as entries:
                for entry in entries:
                    name = f"{below}{entry.name}"
                    if _is_dir(entry, follow_symlinks=False):
                        waiting.append(f"{name}/")
                    else:
                        found.append(f"{name}/" if _is_dir(entry) else name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            if not below:
                raise
            found.append(below)
    return sorted(found)


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


def make_directory(directory: str) -> None:
    """Makes a directory, and those above it, unless it is there.

    Raises:
      NotADirectoryError: a file has its name, or that of one above it.
    """
    try:
        os.makedirs(directory or ".", exist_ok=True)
    except FileExistsError as error:
        why = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, why, error.filename) from error


def _temporary_beside(path: str) -> str:
    """A name for what becomes the file `path`, in its directory, which is made."""
    directory, name = os.path.split(path)
    make_directory(directory)
    return os.path.join(directory, f"{name}.{uuid.uuid4().hex[:12]}.part")


class _Temporary(Target):
    """A file under a temporary name beside its own (see `names.temporary_of`)."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._temporary = _temporary_beside(path)
        _remove_halves(path)
        with refused(path):
            self._file = scratch.create(self._temporary)

    def write(self, data: Any) -> int:
        with refused(self._path):
            return self._file.write(data)

    def publish(self) -> None:
        with refused(self._path):
            self._file.close()
            if temporary_of(self._path) is not None:  # to be proven before it takes its name
                scratch.unfinished(self._path)
            os.replace(self._temporary, self._path)
        scratch.settled(self._temporary)
        super().close()

    def abandon(self) -> None:
        super().close()
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            os.unlink(self._temporary)
        scratch.settled(self._temporary)


# Directory → name → temporary files of that name which lay there when this process first wrote.
_halves: dict[str, dict[str, list[str]]] = {}


def _remove_halves(path: str) -> None:
    """Removes what killed processes had begun to write as this file; a living one's is locked."""
    directory, name = os.path.split(os.path.abspath(path))
    if directory not in _halves:
        found: dict[str, list[str]] = {}
        with suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                if (target := temporary_of(entry.name)) is not None:
                    found.setdefault(target, []).append(entry.path)
        _halves[directory] = found
    for left in _halves[directory].pop(name, []):
        scratch.remove_unlocked(left)


def open_write(path: str) -> Writer:
    """A stream that becomes the file when it is closed; its directory is made."""
    return Writer(_Temporary(path))


def write(path: str, data: bytes) -> None:
    """Writes a file whole: no reader ever finds half of it, no failure costs the old one."""
    with open_write(path) as stream:
        stream.write(data)


def write_new(path: str, data: bytes) -> bool:
    """Writes a file whole unless there is one, which no other writer can come between."""
    temporary = _temporary_beside(path)
    try:
        with refused(path):
            with io.BufferedWriter(scratch.create(temporary)) as stream:
                stream.write(data)
            os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        with suppress(OSError):
            delete(temporary)
    return True


def copy(source: str, target: str) -> None:
    """Copies a file; the target appears whole."""
    with open_read(source) as stream, open_write(target) as copied:
        shutil.copyfileobj(stream, copied, 1 << 20)


def delete(path: str) -> None:
    """Deletes a file; one that is gone already is no error."""
    with suppress(FileNotFoundError):
        os.unlink(path)
    scratch.settled(path)


def replace(source: str, target: str) -> None:
    """Renames a file, over another at once."""
    os.replace(source, target)
    scratch.settled(source)
