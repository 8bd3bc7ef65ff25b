"""The benchmark of training steps against PyTorch: its twin must be one, its turns are counted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from beam_jobs.common.cli import CommandError, UsageError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import _against_torch as against
from _harness import Clock

# Answers as `_torch_step.py` does, with the first format the slower one.
_STAND_IN = """#!{python}
import json, sys
request = json.loads(sys.argv[-1])
print(json.dumps({{"parameters": 7, "version": "2.0"}}), flush=True)
for line in sys.stdin:
    wall = int(line) * (2.0 if request["layout"] == "plain" else 1.0)
    print(json.dumps({{"wall": wall, "cpu": 3 * wall}}), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    file = tmp_path / "python"
    file.write_text(_STAND_IN.format(python=sys.executable))
    file.chmod(0o755)
    return str(file)


def _beside(python: str, parameters: int) -> against.Beside:
    return against.beside(
        "resnet10",
        against.grid_of("8x8x8x1x2"),
        lambda: time.sleep(0.01),
        parameters=parameters,
        python=python,
        threads=1,
        steps=2,
        rounds=3,
    )


@pytest.mark.slow
def test_the_faster_format_of_pytorch_counts_a_step(stand_in: str) -> None:
    found = _beside(stand_in, 7)
    assert (found.layout, found.version) == ("channels_last_3d", "2.0")
    assert found.theirs == [Clock(cpu=3.0, wall=1.0)] * 3
    assert all(0.01 <= clock.wall < 0.1 for clock in found.ours)
    assert found.wall == [1 / clock.wall for clock in found.ours]


@pytest.mark.slow
def test_a_twin_of_other_parameters_is_none(stand_in: str) -> None:
    with pytest.raises(CommandError, match="resnet10 has 8 parameters, PyTorch's 7"):
        _beside(stand_in, 8)


def test_a_python_without_pytorch_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--torch_python: .*none has no PyTorch with MONAI"):
        against.require_torch(str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["48x48x32x1", "48x48x32x1x0", "48x48x32x1xb", ""])
def test_a_grid_is_five_positive_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--grids: five numbers joined by x are needed"):
        against.grid_of(text)
