"""One face for all commands: what a terminal shows, what a pipe gets, and what quiet leaves."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from beam_jobs.common import terminal

ROOT = Path(__file__).resolve().parents[3]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

WORK = """
import sys, time
from beam_jobs.common import terminal
from beam_jobs.common import cli
def main(argv):
    cli.Parser(prog="python -m some.command", description="d", examples="  none").parse_args(argv)
    for item in terminal.track(range(20), "working", 20):
        time.sleep(0.05 if sys.stderr.isatty() else 0)
    terminal.say("a line")
    terminal.row("auc", "0.5 " + "and more " * 12)
    print("a hint", file=sys.stderr)
    return 0
cli.run(main, "python -m some.command")
"""


def in_a_pipe(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WORK, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def on_a_terminal(*argv: str, **environment: str) -> str:
    """All that a terminal of 60 columns gets."""
    master, slave = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "24", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, *argv],
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, **environment},
    )
    os.close(slave)
    found = bytearray()
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        found += data
    os.close(master)
    assert process.wait() == 0, found.decode()
    return found.decode().replace("\r\n", "\n")


def test_a_pipe_gets_plain_rows_and_no_bar() -> None:
    done = in_a_pipe()
    assert done.stdout == f"a line\nauc         0.5 {'and more ' * 12}\n"
    assert done.stderr == "a hint\n"


def test_a_terminal_gets_a_bar_with_rate_and_time_left_and_hanging_rows() -> None:
    shown = on_a_terminal()
    text = CONTROL.sub("", shown)
    assert re.search(r"working .*\d+/20 .*\d/s 0:00:0\d", text), text
    *_, first, second, third, _ = text.splitlines()
    assert first.startswith("auc         0.5 and more")
    assert second.startswith(" " * 12 + "and more")
    assert max(map(len, (first, second, third))) <= 60
    assert "\x1b[1mauc" in shown


def test_no_color_leaves_no_colour() -> None:
    colours = re.compile(r"\x1b\[[0-9;]*3[0-9](?:;[0-9;]*)?m")
    assert colours.search(on_a_terminal())
    assert not colours.search(on_a_terminal(NO_COLOR="1"))


def test_quiet_leaves_hints_alone() -> None:
    done = in_a_pipe("--quiet")
    assert (done.stdout, done.stderr) == ("", "a hint\n")
    assert CONTROL.sub("", on_a_terminal("--quiet")) == "a hint\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h")]
)
def test_durations_are_reported_in_the_unit_one_would_use(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text
