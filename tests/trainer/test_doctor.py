"""`python -m trainer.doctor`: what it prints, and what its exit code says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_on_the_machine_that_tests_it_nothing_needed_is_broken(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.doctor", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    titles = ["machine", "packages", "decoders", "devices", "stores", "places"]
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in titles] == titles
    assert lines[-1] == "nothing needed is broken"
    assert max(map(len, lines)) <= 80
    assert f" {tmp_path}: empty, can be written to" in " ".join(done.stdout.split())
    assert "  CPU plain   float32, mixed_float16, mixed_bfloat16 agree with float64" in lines
