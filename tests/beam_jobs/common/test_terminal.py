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
from beam_jobs.common.printable import printable

ROOT = Path(__file__).resolve().parents[3]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

WORK = """
import sys, time
from beam_jobs.common import terminal
from beam_jobs.common.printable import printable
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


def on_a_terminal(*argv: str, code: str = WORK, status: int = 0, **environment: str) -> str:
    """All that a terminal of 60 columns gets."""
    master, slave = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLUMNS": "60", "LINES": "24", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
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
    assert process.wait() == status, found.decode()
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


HOSTILE = "P\x1b[31m1\x1b]0;title\x07 \u202eevil\r\x9b2J\u2066 caf\u00e9"
SHOWN = r"P\x1b[31m1\x1b]0;title\x07 \u202eevil\r\x9b2J\u2066 caf\u00e9".replace(
    r"\u00e9", "\u00e9"
)
SAY = f"""
import sys
from beam_jobs.common import cli, terminal
def main(argv):
    terminal.say({HOSTILE!r})
    terminal.row({HOSTILE!r}, {HOSTILE!r})
    terminal.show_lines([({HOSTILE!r}, "bold")])
    raise cli.UsageError({HOSTILE!r})
cli.run(main, "python -m some.command")
"""


def test_what_headers_say_moves_no_cursor_and_hides_nothing() -> None:
    argv = [sys.executable, "-c", SAY]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count(SHOWN) == 4
    assert done.stderr == f"python -m some.command: error: {SHOWN.replace(chr(92) + 'r', ' ')}\n"
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    own = re.compile(r"\x1b\[[01]m")  # bold, and its end
    shown = on_a_terminal(code=SAY, status=2, COLUMNS="200")
    assert shown.count(SHOWN) == 4
    assert all(line.isprintable() for line in own.sub("", shown).split("\n"))


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("latin-1", "caf\xe9 \\u982d \xb7"), ("ascii", "caf\\xe9 \\u982d \\xb7")],
)
def test_what_a_terminal_cannot_show_stands_in_escapes(encoding: str, shown: str) -> None:
    code = SAY.replace(repr(HOSTILE), repr("caf\xe9 \u982d \xb7"))
    argv = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout.decode(encoding).count(shown) == 4
    assert done.stderr.decode(encoding) == f"python -m some.command: error: {shown}\n"
    text = on_a_terminal(code=code, status=2, PYTHONIOENCODING="ascii")
    assert "caf\\xe9 \\u982d" in text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("t1_mprage · 256×256 ü 頭部", "t1_mprage · 256×256 ü 頭部"),
        ("no\xa0break", "no break"),
        ("a\tb\nc", r"a\tb\nc"),
        ("\udcff", r"\udcff"),
        ("[bold]", "[bold]"),
    ],
)
def test_text_that_can_be_seen_stays(text: str, kept: str) -> None:
    assert printable(text) == kept


def test_quiet_leaves_hints_alone() -> None:
    done = in_a_pipe("--quiet")
    assert (done.stdout, done.stderr) == ("", "a hint\n")
    assert CONTROL.sub("", on_a_terminal("--quiet")) == "a hint\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h"), (36000, "10 h")],
)
def test_durations_are_reported_in_the_unit_one_would_use(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_parts_that_do_not_fit_a_line_hang_below_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal.say_parts("trial 07", "", "AUC 0.612", "3 of at most 30 trials")
    terminal.say_parts("trial 08", f"(diverged: {'the loss is nan ' * 4})")
    assert capsys.readouterr().out.splitlines() == [
        "trial 07  AUC 0.612",
        "  3 of at most 30 trials",
        "trial 08",
        "  (diverged: the loss is nan the loss is",
        "  nan the loss is nan the loss is nan )",
    ]
