"""A run that is killed and started again ends as one that was left alone, bit for bit on a CPU."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

import trainer.training.checkpoint
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from tests.datasets import write_dataset
from trainer.task import main
from trainer.training.claim import LOCK_NAME
from trainer.training.run_files import Run

# Whatever has a state of its own: dropout, schedule, moving average, augmentation.
SETTINGS = (
    *("--fold", "1", "--modalities", "T1wCE", "--epochs", "5", "--learning_rate", "1e-3"),
    *("--schedule", "cosine", "--warmup_epochs", "1", "--ema", "0.8", "--weight_decay", "1e-3"),
    *("--clip_norm", "1", "--label_smoothing", "0.1"),
)
TIMES = ("step_seconds", "epoch_seconds", "input_wait")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=22, folds=2, shape=(10, 10, 10), signal=1.0)
    return directory


def _argv(data: Path, directory: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--output_dir", str(directory), *SETTINGS, *more]


def _history(directory: Path) -> list[dict[str, str]]:
    with (directory / "fold-1" / "history.csv").open(newline="") as stream:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(stream)
        ]


def _weights(directory: Path, name: str) -> list[npt.NDArray[Any]]:
    model = keras.saving.load_model(directory / "fold-1" / name, compile=False)
    return [np.asarray(weight) for weight in model.get_weights()]


def _assert_same_run(one: Path, other: Path) -> None:
    assert _history(one) == _history(other)
    for name in ("last.keras", "best.keras"):
        for left, right in zip(_weights(one, name), _weights(other, name), strict=True):
            np.testing.assert_array_equal(left, right)
    predictions = [(run / "oof_predictions.csv").read_bytes() for run in (one, other)]
    assert predictions[0] == predictions[1]
    assert Run.load(one).members == Run.load(other).members


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(_argv(dataset, directory)) == 0
    return directory


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


@pytest.mark.parametrize("moment", ["before the state", "after the state"])
def test_a_run_stopped_around_its_checkpoint_ends_as_if_it_had_not_been(
    dataset: Path,
    uninterrupted: Path,
    tmp_path: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = trainer.training.checkpoint.save_state

    def save_and_die(
        directory: Path, state: trainer.training.checkpoint.FoldState, *args: Any, **kwargs: Any
    ) -> None:
        if state.epoch < 3 or moment == "after the state":
            save(directory, state, *args, **kwargs)
        if state.epoch == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer.training.checkpoint, "save_state", save_and_die)
        with pytest.raises(Killed):
            main(_argv(dataset, tmp_path / "run"))
    assert not (tmp_path / "run" / "run.json").exists()
    assert main(_argv(dataset, tmp_path / "run")) == 0
    done = 2 if moment == "before the state" else 3
    assert f"resumes after epoch {done}" in capsys.readouterr().out
    _assert_same_run(uninterrupted, tmp_path / "run")


def test_a_run_of_other_settings_does_not_resume_from_a_state(
    dataset: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(trainer.training.checkpoint, "save_state", die)
    with pytest.raises(Killed):
        main(_argv(dataset, tmp_path / "run"))
    with pytest.raises(ContractError, match=r"config\.seed: 0 there, 1 requested"):
        main(_argv(dataset, tmp_path / "run", "--seed", "1"))


def test_two_processes_do_not_train_the_same_run(dataset: Path, tmp_path: Path) -> None:
    with (
        files.lock(tmp_path / "run" / LOCK_NAME, "held"),
        pytest.raises(files.LockedError, match="another process trains this run"),
    ):
        main(_argv(dataset, tmp_path / "run"))


@pytest.mark.slow
def test_a_run_killed_five_times_ends_as_if_it_had_not_been(dataset: Path, tmp_path: Path) -> None:
    """With all of augmentation, mixup too; each kill falls into an epoch that had begun.

    So many epochs that none of the kills comes after the last, however slow the machine.
    """
    moments = random.Random(0)
    more = ("--augment", "strong", "--epochs", "60")
    assert main(_argv(dataset, tmp_path / "uninterrupted", *more)) == 0
    command = [sys.executable, "-m", "trainer.task", *_argv(dataset, tmp_path / "run", *more)]
    history = tmp_path / "run" / "fold-1" / "history.csv"

    def epochs() -> int:
        return max(len(history.read_text().splitlines()) - 1, 0) if history.exists() else 0

    for kill in range(5):
        done = epochs()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while kill and epochs() == done:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 15 if kill == 0 else 0.3))
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
        process.wait()
    subprocess.run(command, check=True)
    _assert_same_run(tmp_path / "uninterrupted", tmp_path / "run")
