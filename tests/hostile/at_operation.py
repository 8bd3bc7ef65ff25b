"""Runs a command that gets a signal right before its n-th file operation.

    python -m tests.hostile.at_operation SIGNAL N MODULE ARGUMENTS...

N counts files opened for writing, renamed, linked or removed and directories made or removed, below
the working directory and $TMPDIR, by Python in this process. With N = 0 nothing is sent; what was
counted goes to the file that $OPERATIONS names, a line each.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _install(number: int, at: int) -> None:
    process = os.getpid()
    below = (os.getcwd(), os.path.realpath(os.environ["TMPDIR"]))
    log = os.environ.get("OPERATIONS")
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _EVENTS and not (event == "open" and (arguments[2] or 0) & _WRITES):
            return
        if os.getpid() != process:  # a fork of it is another one
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(below):
            return
        seen += 1
        if at == 0 and log:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{event} {path}\n".encode())
            os.close(descriptor)
        elif seen == at:
            os.killpg(0, number)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _install(int(sys.argv[1]), int(sys.argv[2]))
    sys.argv = sys.argv[3:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
