"""Commands in this process: one of their own costs a second of imports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import pytest

from beam_jobs.common import cli


def outcome(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[object],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    prog: str = "command",
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, as its user meets it, without a process of its own.

    Args:
      main: the command's.
      argv: its arguments.
      capsys, monkeypatch: the test's.
      prog: what it calls itself.
    """
    monkeypatch.setattr(sys, "argv", ["command", *map(str, argv)])
    # A command that fails beside live threads ends its process at once: not this one.
    monkeypatch.setattr(os, "_exit", sys.exit)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(main, prog)
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
