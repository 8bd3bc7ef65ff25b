"""The benchmark of training steps: against PyTorch, whose twin must be one, and on a GPU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf

from beam_jobs.common.cli import CommandError, UsageError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import _against_torch as against
import _gpu_steps as gpu_steps
import train_step
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


@pytest.mark.slow
def test_a_gpus_table_has_every_network_precision_and_xla(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On this machine's CPU, with a stand-in for what only a GPU tells."""
    monkeypatch.setattr(gpu_steps, "gpu_name", lambda: "Stand-in")
    monkeypatch.setattr(gpu_steps, "forget_peak", lambda: None)
    monkeypatch.setattr(gpu_steps, "peak_bytes", lambda: 2_500_000_000)
    given = "--device gpu --networks seed_cnn slice_cnn --precisions float32 mixed_bfloat16 "
    given += f"--shape 10 10 10 --batch_size 2 --steps 1 --rounds 1 --json {tmp_path}/gpu.json"
    assert train_step.main(given.split()) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Stand-in, TensorFlow {tf.__version__}, 10×10×10×1, batch 2\n")
    assert "limits" not in shown
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row[:3] for row in rows] == [
        [network, precision, xla]
        for network in ("seed_cnn", "slice_cnn")
        for precision in ("float32", "mixed_bfloat16")
        for xla in ("off", "on")
    ]
    assert all(float(row[3]) > 0 and row[5] == "2.50" for row in rows)
    # XLA compiles longer than TensorFlow makes a graph: it was asked to.
    assert float(rows[1][4]) > 0


def test_what_a_gpu_has_no_memory_for_does_not_end_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(network: str, precision: str, xla: str) -> gpu_steps.Steps:
        if xla == "on":
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return gpu_steps.Steps(0.0125, 3.0, 10**9)

    rows = list(gpu_steps.rows_of(["seed_cnn"], ["float32"], measure))
    assert rows == [
        ("seed_cnn", "float32", "off", "12.5", "3.0", "1.00"),
        ("seed_cnn", "float32", "on", "failed", "", ""),
    ]
    assert "seed_cnn float32 XLA on: OOM when allocating" in capsys.readouterr().err


def test_a_table_of_a_gpu_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    with pytest.raises(UsageError, match="--device gpu: TensorFlow finds no GPU here"):
        train_step.main(["--device", "gpu"])
