"""One exclusive lock for whatever only one job may write, and claims that outlive it.

On a local disk it is the kernel's and ends with the process, however that ends. The file stays: who
unlinked it would hold a lock on a file that the next one no longer finds, and both would work. In a
store it is an object (`store_lock`), which a killed job leaves behind: its successor on the same
machine takes it over; one elsewhere can `wait` for the heartbeat that does not come.

A lock is one process's. Its workers may be elsewhere and outlive it, so they go by a claim: a file
that says whose an output is. On a disk it is written in place, under the kernel's lock on it, for
so a network's disk shows all its machines the same; whoever writes under a claim shares that lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from beam_jobs.common.files import objects
from beam_jobs.common.files.local import make_directory
from beam_jobs.common.files.names import StrPath, is_remote, require_writable, text
from beam_jobs.common.files.store_lock import LockedError, held, owner, store_lock
from beam_jobs.common.files.writer import refused

_OWNER_BYTES = 4096
_CLAIM_S = 30.0  # that one who writes under a claim may take
_POLL_S = 0.01
# Never through a link: the lock's holder is written into the file.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe is not waited for


class Lock(Protocol):
    """A lock that is held."""

    def require(self) -> None:
        """Refuses to work on where the lock was taken from this process.

        Raises:
          LockedError: another job holds it now.
        """


class _KernelLock:
    def require(self) -> None:
        """The kernel takes it from no holder."""


@contextmanager
def lock(
    path: StrPath, message: str, *, break_lock: bool = False, wait: bool = False, hint: str = ""
) -> Iterator[Lock]:
    """Holds a lock for the time of the block.

    Args:
      path: of the lock's own file; its directory is made.
      message: what another holder means, "another job is writing s3://bucket/data".
      break_lock: take a store's lock from whoever holds it. A disk's needs no breaking.
      wait: for as long as it takes to find out whether a store's holder still works (90 s).
      hint: what to add to the message in a store, "; --break_lock if it is dead".

    Raises:
      LockedError: another holds it: "<message> (<owner>)<hint>".
      OSError: the disk has no locks, or the file cannot be written.
      StoreError: the store refuses.
    """
    path = text(path)
    require_writable(path)
    if is_remote(path):
        with store_lock(path, message, break_lock=break_lock, wait=wait, hint=hint) as held_there:
            yield held_there
        return
    with _closing(_local_lock(path, message)):
        yield _KernelLock()


def _local_lock(path: str, message: str) -> int:
    make_directory(os.path.dirname(path))
    while True:
        descriptor = os.open(path, _LOCK_FLAGS, 0o666)
        try:
            with refused(path):  # a disk without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, path):
                if os.fstat(descriptor).st_nlink == 1:  # else it is another's file, too
                    with refused(path):
                        os.truncate(descriptor, 0)
                        os.pwrite(descriptor, owner().encode(), 0)
                return descriptor
        except BlockingIOError as error:
            holder = os.pread(descriptor, _OWNER_BYTES, 0)
            os.close(descriptor)
            raise LockedError(held(message, holder)) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # someone removed the file meanwhile


def _is_same(descriptor: int, path: str) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def claim(path: StrPath, data: bytes) -> None:
    """Says in a file whose an output is, once those who write under what it says are done.

    In a store nobody is waited for: who has looked at the file just before may still write.

    Args:
      path: of the claim's own file; its directory is made.
      data: what it says, fewer than 4096 bytes that no other claim has.

    Raises:
      LockedError: somebody writes under it for 30 s (on a disk).
    """
    path = text(path)
    require_writable(path)
    if is_remote(path):
        objects.put(path, data)
        return
    make_directory(os.path.dirname(path))
    while True:
        descriptor = os.open(path, _LOCK_FLAGS, 0o666)
        with _closing(descriptor), refused(path):
            if os.fstat(descriptor).st_nlink > 1:  # it is another's file, too
                os.unlink(path)
                continue
            # Before the lock: who looks from here on goes, and of many there is never none.
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, data, 0)
            _wait(descriptor, fcntl.LOCK_EX, path)
            if _is_same(descriptor, path):
                return


@contextmanager
def claimed(path: StrPath) -> Iterator[bytes]:
    """What a claim says; on a disk for the time of the block, as `claim` waits for its end.

    The block is to be short. Where there is no such file, what it says is b"".
    """
    path = text(path)
    said, descriptor = b"", None
    with suppress(FileNotFoundError):
        if is_remote(path):
            said = objects.read(path, 0, _OWNER_BYTES).data
        else:
            descriptor = os.open(path, _READ_FLAGS)
    if descriptor is None:
        yield said
        return
    with _closing(descriptor):
        _wait(descriptor, fcntl.LOCK_SH, path)
        yield os.pread(descriptor, _OWNER_BYTES, 0) if _is_same(descriptor, path) else b""


def unclaim(path: StrPath, data: bytes) -> None:
    """Removes a claim's file where it says `data`; another's stays."""
    path = text(path)
    with suppress(FileNotFoundError):
        if is_remote(path):
            if objects.read(path, 0, _OWNER_BYTES).data == data:
                objects.delete([path])
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        with _closing(descriptor):
            _wait(descriptor, fcntl.LOCK_EX, path)
            if _is_same(descriptor, path) and os.pread(descriptor, _OWNER_BYTES, 0) == data:
                os.truncate(descriptor, 0)  # for who has the file open already
                os.unlink(path)


def _wait(descriptor: int, how: int, path: str) -> None:
    """Locks a claim's file, when others are done with it."""
    end = time.monotonic() + _CLAIM_S
    while True:
        try:
            with refused(path):
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                message = (
                    f"{path}: another job's worker is writing, and does not come to an end: end it"
                )
                raise LockedError(message) from error
            time.sleep(_POLL_S)


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        # Said aloud, for a forked child has the descriptor too.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
