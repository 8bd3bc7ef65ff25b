"""One exclusive lock for whatever only one job may write.

On a local disk it is the kernel's and ends with the process, however that ends. The file stays: who
unlinked it would hold a lock on a file that the next one no longer finds, and both would work. In a
store it is an object (`store_lock`), which a killed job leaves behind: its successor on the same
machine takes it over; one elsewhere can `wait` for the heartbeat that does not come.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from beam_jobs.common.files.local import make_directory
from beam_jobs.common.files.names import StrPath, is_remote, require_writable, text
from beam_jobs.common.files.store_lock import LockedError, held, owner, store_lock
from beam_jobs.common.files.writer import refused

_OWNER_BYTES = 4096
# Never through a link: the lock's holder is written into the file.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


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
    descriptor = _local_lock(path, message)
    try:
        yield _KernelLock()
    finally:
        # Said aloud, for a forked child has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _local_lock(path: str, message: str) -> int:
    make_directory(os.path.dirname(path))
    while True:
        descriptor = os.open(path, _LOCK_FLAGS, 0o666)
        try:
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
