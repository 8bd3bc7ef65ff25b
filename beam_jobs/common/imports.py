"""Imports of large libraries: spared the garbage collector, and quiet."""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from beam_jobs.common.cli import LOG_LEVELS, log_level, require_utf8
from beam_jobs.common.files import scratch

_SHOWN_AT = ("warning", "info", "debug")  # of --log_level
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_LAST_WORDS = 2.0  # seconds for the filter to write what is left


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


def quiet_tensorflow(default: str = "3") -> None:
    """Sets what TensorFlow says of itself; to be called before its import, whoever imports it.

    Args:
      default: TF_CPP_MIN_LOG_LEVEL where neither the user nor the environment says. At 3 even its
        errors are not shown: all that it logs as such at its start is no error, and what fails is
        raised.

    Raises:
      UsageError: the directory for temporary files, where it writes, is not named in UTF-8.
    """
    with contextlib.suppress(OSError):  # there is none
        require_utf8(scratch.temporary_directory())
    level = log_level()
    logging.getLogger("tensorflow").setLevel((level or "error").upper())
    if level is None:
        os.environ.setdefault(_LEVEL, default)
    else:
        os.environ[_LEVEL] = str(max(0, 2 - LOG_LEVELS.index(level)))
    if "tensorflow" not in sys.modules and _QUIETLY not in sys.meta_path:
        sys.meta_path.insert(0, _QUIETLY)


class _Quietly:
    """Finds TensorFlow as Python itself does, and drops its notes while it is imported.

    From 2.18 on it writes some before it reads TF_CPP_MIN_LOG_LEVEL.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module: ModuleType) -> None:
                with contextlib.suppress(ValueError):
                    sys.meta_path.remove(_QUIETLY)
                with without_notes():
                    load(module)

            vars(spec.loader)["exec_module"] = load_quietly
        return spec


_QUIETLY: Any = _Quietly()


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Drops information and warnings that compiled libraries write to stderr while the block runs.

    All else that is written meanwhile arrives, at the latest when the block ends: another process
    passes it on, so that the last words of one that dies in the block are not lost. Nothing is
    dropped where the user requests the libraries' messages (`--log_level`, TF_CPP_MIN_LOG_LEVEL),
    or where no such process can be started.
    """
    filtering = None if _is_wanted() else _started_filter()
    if filtering is None:
        yield
        return
    process, kept, into = filtering
    try:
        _flush()
        os.dup2(into, 2)
        os.close(into)
        yield
    finally:
        _flush()
        os.dup2(kept, 2)
        os.close(kept)
        # A process that was started in the block, and lives on, may hold the pipe.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_WORDS)


def _is_wanted() -> bool:
    """Whether the user requests what libraries have to say."""
    return log_level() in _SHOWN_AT or os.environ.get(_LEVEL) in ("0", "1")


def _started_filter() -> tuple[subprocess.Popen[bytes], int, int] | None:
    """A process of `_pass_on`, stderr as it was, and the filter's input; None: there is none."""
    with contextlib.ExitStack() as opened, contextlib.suppress(OSError, ValueError):
        kept = os.dup(2)
        opened.callback(os.close, kept)
        out, into = os.pipe()
        opened.callback(os.close, into)
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", inspect.getsource(_pass_on) + "\n_pass_on()"],
                stdin=out,
                stdout=subprocess.DEVNULL,
                stderr=kept,
                # A terminal's Ctrl-C is not for it: it ends when nobody holds its input any more.
                start_new_session=True,
            )
        finally:
            os.close(out)
        opened.pop_all()
        return process, kept, into
    return None


def _pass_on() -> None:
    """Copies stdin's lines to stderr, without notes; its source alone is another process's code.

    Notes are absl's lines of information and warning, each with the lines that continue it, the
    announcement before the first, and that CUDA's libraries are registered twice, which
    TensorFlow logs as an error at every import.
    """
    import os

    def is_note(line: bytes) -> bool:
        severity, date = line[:1], line[1:5]
        if date.isdigit() and line[5:6] == b" " and line[8:9] == b":":
            return severity in b"IW" or b"] Unable to register cu" in line
        return line.startswith(b"WARNING: All log messages before absl::InitializeLog()")

    def write(left: bytes) -> None:
        while left:
            left = left[os.write(2, left) :]

    rest, in_note = b"", False
    while data := os.read(0, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        told = []
        for line in lines:
            in_note = is_note(line) or (in_note and line.startswith((b"\t", b"To enable the ")))
            if not in_note:
                told.append(line + b"\n")
        write(b"".join(told))
    write(b"" if is_note(rest) else rest)


def _flush() -> None:
    """What Python still holds of stderr goes where it was meant to."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or none
        sys.stderr.flush()
