"""One exclusive lock for whatever only one job may write.

On a local disk it is the kernel's and ends with the process, however that ends. The file stays: who
unlinked it would hold a lock on a file that the next one no longer finds, and both would work. In a
store it is an object that is made unless there is one; a killed job leaves it behind, and
`break_lock` says that its job is dead.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import objects
from beam_jobs.common.files.names import StrPath, is_remote, require_writable, text

_OWNER_BYTES = 4096


class LockedError(CommandError):
    """Another job holds the lock; the message says who."""


@contextmanager
def lock(
    path: StrPath, message: str, *, break_lock: bool = False, hint: str = ""
) -> Iterator[None]:
    """Holds a lock for the time of the block.

    Args:
      path: of the lock's own file; its directory is made.
      message: what another holder means, "another job is writing s3://bucket/data".
      break_lock: take a store's lock from whoever holds it. A disk's needs no breaking.
      hint: what to add to the message in a store, "; --break_lock if it is dead".

    Raises:
      LockedError: another holds it: "<message> (<owner>)<hint>".
      OSError: the disk has no locks, or the file cannot be written.
      StoreError: the store refuses.
    """
    path = text(path)
    require_writable(path)
    if is_remote(path):
        with _store_lock(path, message, break_lock=break_lock, hint=hint):
            yield
        return
    descriptor = _local_lock(path, message)
    try:
        yield
    finally:
        # Said aloud, for a forked child has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _local_lock(path: str, message: str) -> int:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, path):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, _owner().encode(), 0)
                return descriptor
        except BlockingIOError as error:
            owner = os.pread(descriptor, _OWNER_BYTES, 0)
            os.close(descriptor)
            raise LockedError(_held(message, owner)) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # someone removed the file meanwhile


def _is_same(descriptor: int, path: str) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


@contextmanager
def _store_lock(path: str, message: str, *, break_lock: bool, hint: str) -> Iterator[None]:
    token = f"{_owner()}, {uuid.uuid4().hex[:8]}".encode()
    taken = objects.put_new(path, token)
    if not taken and break_lock:
        # Of two who break it, one gets it.
        taken = objects.put_over(path, token) or objects.put_new(path, token)
    if not taken:
        raise LockedError(_held(message, _read_owner(path)) + hint)
    try:
        yield
    finally:
        # Another's, who broke this one, stays; so does one that cannot be looked at now.
        with suppress(CommandError, OSError):
            if _read_owner(path) == token:
                objects.delete([path])


def _read_owner(path: str) -> bytes:
    with suppress(FileNotFoundError):
        return objects.read(path, 0, _OWNER_BYTES).data
    return b"it has just ended"


def _held(message: str, owner: bytes) -> str:
    line = " ".join(owner.decode(errors="replace").split())
    return f"{message} ({line or 'it has just begun'})"


def _owner() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} since {started} UTC"
