"""Imports of large libraries, spared the garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is imported within the block stays for good: the garbage collector leaves it alone.

    Beam and TensorFlow make half a million objects each. While they are imported, looking for
    garbage among them takes a fifth of the time; later every full collection would do so again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
