"""Streams that become a file when they are closed, and leave no trace when they are abandoned."""

from __future__ import annotations

import io
from typing import Any

_BUFFER_BYTES = 1 << 20


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
