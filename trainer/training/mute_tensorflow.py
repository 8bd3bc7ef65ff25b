"""Keeps the notes of TensorFlow's compiled libraries off the terminal; errors come through."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

from beam_jobs.common.cli import log_level

# absl's prefix of information and warnings, which TF_CPP_MIN_LOG_LEVEL does not reach in XLA.
_NOTE = re.compile(
    rb"(?m)^(?:[IW]\d{4} \d\d:\d\d:[\d.]+ .*|WARNING: All log messages before absl.*)\n?"
)
_SHOWN_AT = ("warning", "info", "debug")  # of --log_level


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Drops information and warnings that C++ writes to stderr while the block runs.

    All else that is written meanwhile is written once the block ends, however it ends. Nothing is
    dropped where `--log_level` requests the libraries' messages.
    """
    if log_level() in _SHOWN_AT:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            notes.seek(0)
            if rest := _NOTE.sub(b"", notes.read()):
                os.write(2, rest)
