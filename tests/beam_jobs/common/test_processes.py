"""Processes that work for another: they end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beam_jobs.common.processes import in_processes

ROOT = Path(__file__).resolve().parents[3]
# A command whose processes say who they are and work for a minute.
WORKS = """
import os, sys, time
from pathlib import Path
from beam_jobs.common import cli
from beam_jobs.common.processes import in_processes

def work(number):
    (Path(sys.argv[1]) / f"{os.getpid()}").touch()
    time.sleep(60)

def main(argv):
    list(in_processes(work, range(4), 2))
    return 0

if __name__ == "__main__":
    cli.run(main, "python -m some.command")
"""


def square(number: int) -> int:
    return number * number


def is_alive(pid: str) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return ") Z " not in status.read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_results_come_in_their_order() -> None:
    assert list(in_processes(square, range(20), 3)) == [n * n for n in range(20)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(number: signal.Signals, tmp_path: Path) -> None:
    script, place = tmp_path / "works.py", tmp_path / "pids"
    script.write_text(WORKS)
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(place)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until = time.monotonic() + 30
    while len(list(place.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    # As a terminal sends it: to all of them.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=5)
    words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}
    if number in words:
        assert err == f"python -m some.command: error: {words[number]}\n"
    pids = [path.name for path in place.iterdir()]
    until = time.monotonic() + 2
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
