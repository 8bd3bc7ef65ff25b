"""A killed conversion is gone on with, and ends as if it had never been killed."""

import subprocess
import sys
import time

import pytest

from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from tests import kills


@pytest.mark.slow
def test_two_kills_leave_no_trace(tmp_path):
    assert kills.run(2, seed=3, processes=1, scratch=tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(900)  # twenty starts of Beam, on a busy machine too
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_leave_no_trace(tmp_path, processes):
    assert kills.run(20, seed=0, processes=processes, scratch=tmp_path) == []


@pytest.mark.slow
def test_dead_worker_process_is_an_error_and_not_a_hang(tmp_path):
    config = PhantomConfig(patients=40, test_patients=1, matrix=(90, 96), slices=(30, 32))
    write_cohort(config, tmp_path / "cohort")
    process = subprocess.Popen(
        kills.command(tmp_path / "cohort", tmp_path / "d", 2), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "d").glob("*.tfrecord*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    subprocess.run(["pkill", "-9", "-n", "-P", str(process.pid)], check=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process died" in errors.splitlines()[-1]
    assert sys.executable not in errors
