"""Runs a command whose own processes `python -m trainer...` are forks of it, not new interpreters.

    python -m tests.hostile.forked MODULE ARGUMENTS...

In a child of the zygote all is imported already: a trial's process takes seconds, not a quarter of
a minute. It is the same module, run as `__main__` with the same arguments, surroundings, streams
and signals; it keeps none of its parent's descriptors, and so none of its locks.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

_MOST_FILES = 4096


class _Forked(subprocess.Popen[bytes]):
    """`subprocess`'s, that forks where a module of the trainer's is started."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        own = [str(arg) for arg in args] if not isinstance(args, str | bytes) else []
        if own[:2] != [sys.executable, "-m"] or not own[2].startswith("trainer."):
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        environ, pipes = rest[5], rest[9:15]
        read, _, _, out, _, err = pipes
        pid = os.fork()
        if pid == 0:
            for number, fd in enumerate((read, out, err)):
                if fd != -1:
                    os.dup2(fd, number)
            _become(own[2:], os.environ.copy() if environ is None else dict(environ))
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _become(arguments: list[str], environ: dict[str, str]) -> NoReturn:
    code = 1
    try:
        os.closerange(3, _MOST_FILES)
        os.environ.clear()
        os.environ.update(environ)
        tempfile.tempdir = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                standard = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, standard)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = arguments
        sys.modules.pop(arguments[0], None)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def install() -> None:
    """From here on this process starts the trainer's by forking."""
    subprocess.Popen = _Forked  # type: ignore[misc, assignment]


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
