"""How much memory a trial can have."""

from pathlib import Path

import pytest

from trainer.machine import system
from trainer.machine.system import Memory
from trainer.search.trial_process import free_memory


@pytest.mark.parametrize(
    ("available", "limit", "free"), [(48, 16, 16), (8, 16, 8), (48, None, 48), (None, None, None)]
)
def test_a_trial_on_a_cpu_can_have_what_is_there_and_allowed(
    available: int | None, limit: int | None, free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Memory(total=64, available=available, limit=limit, used=None)
    monkeypatch.setattr(system, "memory", lambda: found)
    assert free_memory(gpu=False) == free


def test_a_trial_on_gpus_can_have_what_the_smallest_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert free_memory(gpu=True) is None
    rows = "0, A, 8.0, 81920, 1, 545\\n1, B, 8.0, 16384, 1, 545\\n2, C, 8.0, [N/A], 1, 545"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{rows}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert free_memory(gpu=True) == 16 << 30
