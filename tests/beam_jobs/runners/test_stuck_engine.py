"""The command on an engine that takes a job and then answers nothing of use."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig

pytestmark = pytest.mark.slow

ENGINE = """\
import time
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState

class Result(PipelineResult):
    _job_id = "id-7"
    def wait_until_finish(self, duration=None): time.sleep(600)
    def cancel(self): {cancel}

class FarRunner(PipelineRunner):
    def run_pipeline(self, pipeline, options): return Result(PipelineState.RUNNING)
"""
REFUSES = "raise RuntimeError('permission denied')"
HANGS = "time.sleep(600)"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(patients=2, test_patients=1, seed=5, matrix=(24, 28), slices=(9, 11))
    write_cohort(config, root)
    return root


@pytest.fixture
def start(cohort, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the conversion on an engine with the given answer to a cancellation."""

    def started(cancel: str, *more: str) -> subprocess.Popen[str]:
        (tmp_path / "far_engine.py").write_text(ENGINE.format(cancel=cancel))
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--shape", "24,24,8"),
                *("--input", str(cohort / "train"), "--output", str(tmp_path / "d")),
                *("--runner=far_engine.FarRunner", "--shared_disk", "--quiet", *more),
            ],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
            # A test runner started in the background ignores SIGINT, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    return started


def wait_for_the_job(process: subprocess.Popen[str], output: Path) -> None:
    deadline = time.monotonic() + 60
    while not (output / ".state" / "running.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_job_that_cannot_be_cancelled_is_named_by_the_one_line_and_the_next_is_refused(
    start, tmp_path, how
):
    process = start(REFUSES)
    wait_for_the_job(process, tmp_path / "d")
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + how
    assert errors.count("\n") == 1, errors
    assert "(id-7) on FarRunner could not be cancelled (permission denied)" in errors
    again = start(REFUSES)
    _, errors = again.communicate(timeout=30)
    assert again.returncode == 1
    assert errors.count("\n") == 1, errors
    assert "id-7" in errors
    assert "--break_lock" in errors


def test_a_second_ctrl_c_ends_at_once_and_the_output_stays_locked(start, tmp_path):
    process = start(HANGS)
    wait_for_the_job(process, tmp_path / "d")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "error: interrupted: job " in errors.splitlines()[-1]
    assert "(id-7) on FarRunner may still run; to end it: " in errors.splitlines()[-1]
    assert (tmp_path / "d" / ".state" / "running.json").exists()


def test_a_killed_command_leaves_the_output_locked(start, tmp_path):
    process = start(HANGS)
    wait_for_the_job(process, tmp_path / "d")
    process.kill()
    process.communicate(timeout=5)
    again = start(HANGS)
    _, errors = again.communicate(timeout=30)
    assert again.returncode == 1
    assert "a job may still be writing" in errors
    broken = start(HANGS, "--break_lock")
    time.sleep(8)
    assert broken.poll() is None
    broken.kill()
    broken.communicate()
