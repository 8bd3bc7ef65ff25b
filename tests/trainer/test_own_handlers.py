"""Signals are the commands': a program that trains by the Python interface keeps its handlers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys, threading
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
received = []
def own(number, frame):
    received.append(number)
for number in NUMBERS:
    signal.signal(number, own)
hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
import beam_jobs.api, serving.api, trainer.api
done = threading.Event()
def send():
    while not done.wait(0.5):
        for number in NUMBERS:
            os.kill(os.getpid(), number)
threading.Thread(target=send).start()
try:
    trainer.api.train("dataset", "run", trainer.api.TrainConfig(fold=0, epochs=1))
    len(list(beam_jobs.api.open_dataset("dataset").cases()))
finally:
    done.set()
assert set(received) == set(NUMBERS), received
assert all(signal.getsignal(number) is own for number in NUMBERS)
assert hooks == (sys.excepthook, sys.unraisablehook, threading.excepthook)
assert signal.set_wakeup_fd(-1) == -1
"""


@pytest.mark.slow
def test_a_program_keeps_its_handlers_while_it_trains(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    write_dataset(tmp_path / "dataset", patients=8, folds=2, modalities=("T1wCE",))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "run.json").exists()
