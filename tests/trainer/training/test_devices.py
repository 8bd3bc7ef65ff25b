"""What a process is made ready with before it trains."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

_ROUNDS, _BYTES = 20, 40 << 20
_FAULTS = f"""
import resource
from trainer.training.devices import keep_memory
keep_memory()
bytearray({_BYTES})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({_ROUNDS}):
    bytearray({_BYTES})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_one_step_is_there_for_the_next() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    pages = _BYTES // 4096
    assert int(done.stdout) < pages / 10, "nor is it cleared anew, page by page"
