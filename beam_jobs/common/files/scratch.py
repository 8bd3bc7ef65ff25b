"""What a process has on a disk that is not to stay: directories, and files that are being written.

Temporary directories are left behind by no killed run for long: the next one removes them.

    $TMPDIR/voxelbeam-convert-3f2a91c0          of `scratch("convert")`
    $TMPDIR/voxelbeam-mirror-08d1f2ee           of `shared("mirror", key)`, of several processes
    .model.voxelbeam-3f2a91c0                   of `scratch("export", beside="model")`

Their process holds the kernel's lock on the directory itself, which ends with the process, however
that ends. Whoever makes another of the name removes those of the same user whose lock is free.
Of a directory on a disk without locks nobody can tell, and it stays.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = "voxelbeam-"
_RANDOM = 8
_START, _END = rf"{_MARK}[a-z_]+-", rf"[0-9a-f]{{{_RANDOM}}}"
_TRIES = 100
_POLL_S = 0.05
# Directories of this process, and files that it writes, for `remove_all`; a forked child's are none
# of its parent's.
_own: dict[str, int] = {}
_shared: dict[str, tuple[int, int]] = {}  # with the descriptor that holds the lock
_unfinished: dict[str, int] = {}
_writing = threading.RLock()
_PATIENCE_S = 1.0  # for who is opening a file on a disk that does not answer
_stopped = False


@contextmanager
def scratch(what: str, *, beside: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """A directory of this process's own for the time of the block, then gone with all in it.

    Args:
      what: it is for, a word of its name.
      beside: hidden beside this local path, to be renamed to it, and not in the directory for
        temporary files; the directory that holds `beside` is made.

    Raises:
      OSError: no directory can be made.
    """
    if beside is None:
        parent, start = temporary_directory(), f"{_MARK}{what}-"
        # Whatever it was for: the next run may be of another command.
        _remove_left(parent, _START, None)
    else:
        remove_left(beside)
        parent, start = _hidden(beside)
        os.makedirs(parent, exist_ok=True)
    path, lock = _make(parent, start)
    try:
        yield Path(path)
    finally:
        _remove(path)
        os.close(lock)


def shared(what: str, key: str, fill: Callable[[Path], None]) -> Path:
    """A directory that all processes of this user and machine share which ask for the same key.

    The first of them fills it and the others wait for that; it goes with the last.

    Args:
      what: it is for, a word of its name.
      key: tells its content from every other's.
      fill: puts all there is to be into an empty directory.

    Raises:
      OSError: no directory can be made, or its disk has no locks.
    """
    parent = temporary_directory()
    _remove_left(parent, _START, None)
    digest = hashlib.sha256(f"{os.getuid()} {key}".encode()).hexdigest()[:8]
    path = os.path.join(parent, f"{_MARK}{what}-{digest}")
    whole = Path(path, "whole")
    if _shared.get(path, (0, 0))[0] == os.getpid():
        return whole
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # removed before it was locked
            if not os.path.isdir(parent):
                raise
            continue
        try:
            if os.fstat(lock).st_uid != os.getuid():
                raise PermissionError(errno.EACCES, "another user's directory", path)
            if _filled(lock, path, fill):
                if not _shared:
                    atexit.register(remove_all)
                _shared[path] = os.getpid(), lock
                return whole
        except BaseException:
            _leave(path, lock)
            raise
        os.close(lock)


def _filled(lock: int, path: str, fill: Callable[[Path], None]) -> bool:
    """Fills a shared directory, or waits for who does; False where it was removed meanwhile.

    Whoever fills it has the lock alone, and all who need what is in it share the lock.
    """
    part, whole = Path(path, "part"), Path(path, "whole")
    while True:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _is_at(lock, path) or whole.exists():
            return _is_at(lock, path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_S)
            continue
        if _is_at(lock, path) and not whole.exists():  # between the two locks it may be another's
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            fill(part)
            part.rename(whole)


def _leave(path: str, lock: int) -> None:
    """Removes a shared directory unless another process holds it."""
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_uid == os.getuid() and _is_at(lock, path):
            shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open directory still has this path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def temporary_directory() -> str:
    """Where temporary files go, as `tempfile` has it, which would write one to find that out."""
    if tempfile.tempdir is None:
        for name in ("TMPDIR", "TEMP", "TMP"):
            place = os.environ.get(name)
            if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
                return os.path.abspath(place)
        if os.access("/tmp", os.W_OK | os.X_OK):
            return "/tmp"
    return tempfile.gettempdir()


def is_scratch(path: str) -> bool:
    """Whether a path is that of a directory for temporary files that `scratch` made."""
    return re.fullmatch(_START + _END, os.path.basename(path)) is not None


def remove_left(
    beside: str | os.PathLike[str], rescue: Callable[[Path], None] | None = None
) -> None:
    """Removes what killed runs left hidden beside a local path.

    Args:
      beside: as `scratch` has it.
      rescue: gets each directory before it goes.
    """
    parent, start = _hidden(beside)
    _remove_left(parent, re.escape(start), rescue)


def create(path: str) -> io.FileIO:
    """Opens a new file under a temporary name, locked; until `settled` it goes with the process.

    Raises:
      OSError: it cannot be made, or the process is ending.
    """
    with _writing:
        if _stopped:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED), path)
        unfinished(path)
        try:
            file = io.FileIO(path, "x")
        except OSError:
            settled(path)
            raise
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file


def remove_unlocked(path: str) -> None:
    """Removes a file of this user's that `create` made, unless its process lives."""
    with contextlib.suppress(OSError):  # gone, a link, a disk without locks, held
        lock = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(lock)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
        finally:
            os.close(lock)


def unfinished(path: str) -> None:
    """A file under a temporary name is to go with the process until `settled`."""
    _unfinished[path] = os.getpid()


def settled(path: str) -> None:
    """A file has another name now, or is gone."""
    _unfinished.pop(path, None)


def stop_writing() -> None:
    """Removes the files that this process is writing, whoever writes; nobody begins another."""
    global _stopped
    owned = _writing.acquire(timeout=_PATIENCE_S)
    try:
        _stopped = True
        for path, process in list(_unfinished.items()):
            if process == os.getpid():
                with contextlib.suppress(OSError):
                    os.unlink(path)
    finally:
        if owned:
            _writing.release()


def remove_all() -> None:
    """Removes the directories of this process, whoever still works in them: it is ending."""
    for path, process in list(_own.items()):
        if process == os.getpid():
            _remove(path)
    for path, (process, lock) in list(_shared.items()):
        del _shared[path]
        if process == os.getpid():
            _leave(path, lock)


def _make(parent: str, start: str) -> tuple[str, int]:
    """A new directory, and the descriptor that holds its lock."""
    for _ in range(_TRIES):
        path = os.path.join(parent, f"{start}{_random()}")
        _own[path] = os.getpid()  # before it is there: an interrupt may come between
        try:
            os.mkdir(path, 0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileExistsError, FileNotFoundError):  # removed before it was locked, or no parent
            del _own[path]
            if not os.path.isdir(parent):
                raise
            continue
        except OSError:
            del _own[path]
            raise
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(lock, path):
            return path, lock
        # Another took it for a killed run's, as it had no lock yet.
        os.close(lock)
        del _own[path]
    raise FileExistsError(f"{parent}: no temporary directory can be made")


def _hidden(beside: str | os.PathLike[str]) -> tuple[str, str]:
    """Where what lies hidden beside a path is, and how its name begins."""
    parent, name = os.path.split(os.path.abspath(beside))
    return parent, f".{name}.{_MARK}"


def _remove_left(parent: str, start: str, rescue: Callable[[Path], None] | None) -> None:
    """Removes this user's directories whose name begins so (a pattern) and whose lock is free."""
    name = re.compile(start + _END)
    try:
        with os.scandir(parent) as entries:
            found = [entry.path for entry in entries if name.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        with contextlib.suppress(OSError):  # gone meanwhile, a link, a disk without locks, held
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if rescue is not None:
                        rescue(Path(path))
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _remove(path: str) -> None:
    # Threads that end with the process may still write into it: by its name, if it keeps that.
    other = f"{path[:-_RANDOM]}{_random()}"
    _own[other] = os.getpid()
    with contextlib.suppress(OSError):  # gone, or it cannot be renamed
        os.rename(path, other)
    for place in (other, path):
        for _ in range(3):
            shutil.rmtree(place, ignore_errors=True)
            if not os.path.lexists(place):
                break
        _own.pop(place, None)


def _random() -> str:
    return uuid.uuid4().hex[:_RANDOM]
