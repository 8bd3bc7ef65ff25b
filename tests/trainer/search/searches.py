"""Searches for tests: space, fake trial, command line, and what a search leaves."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import write_dataset

FAKE = (sys.executable, str(Path(__file__).with_name("fake_trial.py")))
SPACE = {
    "network": "seed_cnn",
    "width": [0.5, 1.0],
    "pooling": ["avg", "max"],
    "dropout": [0.0, 0.2],
    "fusion": "early",
    "learning_rate": [3e-5, 1e-4, 1e-3],
    "schedule": "constant",
    "batch_size": [4, 8],
    "augment": "none",
}  # 48 combinations
BEST = {"learning_rate": 1e-3, "width": 1.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=24, folds=3, unlabelled=2, modalities=("T1wCE",))
    return directory


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each start of a fake trial's process."""
    return _written_by_children(tmp_path / "starts.txt", "FAKE_STARTS", monkeypatch)


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each run of the toy recipe: where, and on whom."""
    return _written_by_children(tmp_path / "seen.jsonl", "TOY_SEEN", monkeypatch)


def _written_by_children(file: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    file.touch()
    monkeypatch.setenv(variable, str(file))
    return file


def argv_of(data: Path, study: Path, *more: str, **space: Any) -> list[str]:
    file = study.parent / f"{study.name}-space.json"
    file.write_text(json.dumps({**SPACE, **space}))
    return [
        *("--data", str(data), "--output_dir", str(study), "--space", str(file)),
        *("--epochs", "9", *more),
    ]


def rows_of(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def trials_started(starts: Path) -> list[str]:
    return [line.split()[0] for line in starts.read_text().splitlines()]
