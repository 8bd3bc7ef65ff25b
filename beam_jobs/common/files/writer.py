"""Streams that become a file when they are closed, and leave no trace when they are abandoned."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_BUFFER_BYTES = 1 << 20
# What a disk, or the limits of a process, refuse. Libraries tell them by their texts alone.
REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EMFILE, errno.ENFILE),
)


@contextmanager
def refused(path: str | os.PathLike[str]) -> Iterator[None]:
    """What is refused while the block writes a file or directory, told of the name it is to have.

    A write's error has no name at all, that of a temporary file is nobody's; TensorFlow raises
    errors of its own, h5py leaves the number in a text.

    Raises:
      OSError: with the number, its text, and `path`.
    """
    try:
        yield
    except Exception as error:
        number = _refusal(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _refusal(error: Exception) -> int | None:
    """The number of what was refused, None where an error is of another kind."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = str(error).lower()
    return next((number for number in REFUSALS if os.strerror(number).lower() in said), None)


class Target(io.RawIOBase):
    """Where a writer's bytes go before they are the file."""

    def writable(self) -> bool:
        return True

    def publish(self) -> None:
        """Makes what was written the file, at once; closes."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Forgets what was written; what was there before stays. Closes, and never fails."""
        raise NotImplementedError


class Writer(io.BufferedWriter):
    """A stream that becomes the file when it is closed; not when its block is left by an error."""

    def __init__(self, target: Target) -> None:
        self._target = target
        super().__init__(target, _BUFFER_BYTES)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
            self._target.publish()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Forgets what was written; what was there before stays."""
        self._target.abandon()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self.abandon()
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            self.abandon()
