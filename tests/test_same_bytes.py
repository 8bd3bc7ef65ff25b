"""The same command twice, in other directories and under other hash seeds: the same bytes.

What differs by nature is named here: how long something took, when a file was written, by whom.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# How long something took.
BY_NATURE = {"wall_seconds", "step_seconds", "epoch_seconds", "seconds", "input_wait"}
TWICE = ("a", "b")
# TensorBoard's curves and a run's page hold times, locks the process that holds them.
TIMED = ("logs/", ".lock", ".state/lock")


def command(module: str, *argv: object, seed: str, cwd: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": seed, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, argv)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def lasting(data: Any) -> Any:
    """JSON without what differs by nature."""
    if isinstance(data, dict):
        return {name: lasting(value) for name, value in data.items() if name not in BY_NATURE}
    return [lasting(value) for value in data] if isinstance(data, list) else data


def untimed(path: Path) -> bytes:
    """A file's bytes, less what says how long something took or when it was written."""
    if path.name == "report.html":
        return b""
    if path.suffix == ".json":
        return json.dumps(lasting(json.loads(path.read_text()))).encode()
    if path.name == "history.csv":
        header, *rows = (line.split(",") for line in path.read_text().splitlines())
        kept = [place for place, name in enumerate(header) if name not in BY_NATURE]
        return "\n".join(",".join(row[place] for place in kept) for row in rows).encode()
    return path.read_bytes()


def hashes(root: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> dict[str, str]:
    return {
        name: hashlib.sha256(read(path)).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not (name := str(path.relative_to(root))).startswith(TIMED)
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_conversions_trainings_exports_and_predictions_give_the_same_bytes_twice(
    tmp_path: Path,
) -> None:
    small = ("--patients", 8, "--test_patients", 2, "--matrix", "16,16", "--slices", "8,8")
    command("beam_jobs.phantoms", "--output", "cohort", *small, seed="0", cwd=tmp_path)
    for place, seed in zip(TWICE, ("1", "2"), strict=True):
        here = tmp_path / place
        here.mkdir()
        cohort = tmp_path / "cohort"
        command(
            *("beam_jobs.dicom_to_tfrecord", "--input", cohort / "train", "--output", "dataset"),
            *("--labels", cohort / "train_labels.csv", "--shape", "16,16,10", "--folds", 2),
            seed=seed,
            cwd=here,
        )
        command(
            *("trainer.task", "--data", "dataset", "--output_dir", "run", "--cross_validate"),
            *("--model", "seed_cnn", "--width", 0.1, "--epochs", 1),
            seed=seed,
            cwd=here,
        )
        # Of another name: what a directory is called is no part of a model.
        (here / "run").rename(here / f"run-{place}")
        command(
            *("serving.export", "--runs", f"run-{place}", "--data", "dataset"),
            *("--output", "model"),
            seed=seed,
            cwd=here,
        )
        command(
            *("serving.batch_predict", "--model", "model", "--input", cohort / "test"),
            *("--output", "out/submission.csv"),
            seed=seed,
            cwd=here,
        )
    first, second = (tmp_path / place for place in TWICE)
    assert hashes(first / "dataset") == hashes(second / "dataset")
    assert hashes(first / "run-a", untimed) == hashes(second / "run-b", untimed)
    assert hashes(first / "model") == hashes(second / "model")
    assert hashes(first / "out") == hashes(second / "out")
