"""A body received by a thread of its own, while what came before is written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_BLOCKS = 32  # that wait to be taken
_POLL_S = 0.5


@contextmanager
def drained(read: Callable[[int], bytes], length: int) -> Iterator[Callable[[int], bytes]]:
    """What gives the blocks that `read` gives, received ahead: at most 32 of them.

    Args:
      read: gives at most so many of the next bytes, b"" at the end. It is called by another thread
        during the block, and once more after it where it did not come to an end.
      length: that it is called with.
    """
    blocks: queue.Queue[bytes | Exception] = queue.Queue(_BLOCKS)
    left = threading.Event()

    def receive() -> None:
        while not left.is_set():
            block: bytes | Exception
            try:
                block = read(length)
            except Exception as error:  # whoever takes it gets it
                block = error
            while not left.is_set():
                with suppress(queue.Full):
                    blocks.put(block, timeout=_POLL_S)
                    break
            if isinstance(block, Exception) or not block:
                return

    ended: bytes | Exception = b"?"

    def take(_: int) -> bytes:
        nonlocal ended
        if ended:
            ended = blocks.get()
        if isinstance(ended, Exception):
            raise ended
        return ended

    threading.Thread(target=receive, name="dicomweb-receive", daemon=True).start()
    try:
        yield take
    finally:
        left.set()
