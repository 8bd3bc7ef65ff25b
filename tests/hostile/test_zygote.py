"""What a command may not do is caught, ended and cleared away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.made import Made
from tests.hostile.sandbox import Sandbox, faults
from tests.hostile.zygote import ROOT, Outcome, Zygote, Zygotes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote("beam")
    yield zygote
    zygote.close()


def _run(what: str, zygote: Zygote, directory: Path) -> tuple[Outcome, list[str]]:
    for name in ("made", "case"):
        (directory / name).mkdir()
    sandbox = Sandbox(
        root=directory / "case", made=Made(directory=directory / "made", zygotes=Zygotes())
    )
    before = sandbox.snapshot()
    outcome = zygote.run(
        "tests.hostile.misbehave",
        [what],
        cwd=sandbox.work,
        env=sandbox.environment(),
        streams=sandbox.path("streams"),
        timeout=0.5 if what.startswith("hang") else 30.0,
        memory=400 << 20,
    )
    return outcome, list(faults(outcome, sandbox, before))


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("hang", "killed for timeout after "),
        ("hang as a child", "killed for timeout after "),
        ("hang beside a thread", "killed for timeout after "),
        ("eat", "killed for memory"),
        ("eat as a child", "killed for memory"),
        ("leave a child", "left running: sleep 1000"),
        ("raise", "stderr has another's words: 'Traceback"),
        ("leave a file", "left in TMPDIR: tmp"),
        ("change a file", "work/neighbour/manifest.json is changed"),
        ("change a mode", "state/state.npz is changed"),
        ("write beside", "work/.output.part is new"),
        ("clear the screen", "stdout has raw control characters"),
        ("fail twice", "2 error lines on stderr with exit code 1"),
        ("fail in silence", "0 error lines on stderr with exit code 1"),
        ("call it done", "failed, and yet manifest.json says that its output is finished"),
        ("exit with 3", "exit code 3"),
    ],
)
def test_misbehaviour_is_found(what: str, fault: str, zygote: Zygote, tmp_path: Path) -> None:
    _, found = _run(what, zygote, tmp_path)
    assert any(re.match(re.escape(fault), each) for each in found), found


def test_behaviour_is_not(zygote: Zygote, tmp_path: Path) -> None:
    outcome, found = _run("nothing", zygote, tmp_path)
    assert found == []
    assert outcome.code == 0
    assert 50 << 20 < outcome.peak_bytes < 400 << 20


def test_nothing_is_left_running(zygote: Zygote, tmp_path: Path) -> None:
    _run("hang as a child", zygote, tmp_path)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "sleep 1000" not in listed.stdout.splitlines()


def test_what_stands_on_a_terminal_is_caught(zygote: Zygote, tmp_path: Path) -> None:
    outcome = zygote.run(
        "beam_jobs.survey",
        [tmp_path / "nowhere"],
        cwd=tmp_path,
        env={},
        streams=tmp_path,
        terminal=True,
    )
    assert outcome.code == 2
    assert outcome.stderr.endswith("nowhere is not a directory\r\n")


def test_a_signal_that_a_shell_lets_its_background_ignore_is_heeded(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    zygote = Zygote("beam")
    try:
        outcome = zygote.run(
            "tests.hostile.misbehave", ["hang"], cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, streams=tmp_path,
            signal_after=(0.5, signal.SIGINT),
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
        zygote.close()
    assert (outcome.signal, outcome.killed) == (signal.SIGINT, "")
    assert outcome.slowdown >= 1.0
