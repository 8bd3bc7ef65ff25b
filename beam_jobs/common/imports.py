"""Imports of large libraries, spared the garbage collector."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def lasting(module: str) -> Iterator[None]:
    """Around the first import of a module in a command's process: the garbage collector lets it be.

    Beam and TensorFlow make half a million objects each. While they are imported, looking for
    garbage among them takes a fifth of the time; later every full collection would do so again.
    All that lives at the end of the block stays for good, which a library may not decide for the
    process that uses it, nor anybody a second time.

    Args:
      module: its full name; nothing is done where it was imported before.
    """
    if module in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
