"""A run that is killed and started again ends as one that was left alone, bit for bit on a CPU."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

import trainer.training.checkpoint
import trainer.training.fold
import trainer.training.run
from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from tests.datasets import write_dataset
from trainer.config.run_layout import NETWORK_NAME
from trainer.task import main
from trainer.training.claim import LOCK_NAME
from trainer.training.run_files import Run

LAST = ("--fold", "1", "--epochs", "5")
CROSSFIT = ("--cross_validate", "--epochs", "3", "--epoch_choice", "crossfit")
# Whatever has a state of its own: dropout, schedule, moving average, augmentation.
SETTINGS = (
    *("--modalities", "T1wCE", "--learning_rate", "1e-3"),
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
    return ["--data", str(data), "--output_dir", str(directory), *SETTINGS, *(more or LAST)]


def _history(member: Path) -> list[dict[str, str]]:
    with (member / "history.csv").open(newline="") as stream:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(stream)
        ]


def _weights(member: Path) -> list[npt.NDArray[Any]]:
    model = keras.saving.load_model(member / NETWORK_NAME, compile=False)
    return [np.asarray(weight) for weight in model.get_weights()]


def _assert_same_run(one: Path, other: Path) -> None:
    members = Run.load(one).members
    assert members == Run.load(other).members  # their epochs, too
    for member in members:
        left, right = ((run / member.path).parent for run in (one, other))
        assert _history(left) == _history(right)
        for weight, again in zip(_weights(left), _weights(right), strict=True):
            np.testing.assert_array_equal(weight, again)
        assert {file.name for file in left.iterdir()} == {file.name for file in right.iterdir()}
    predictions = [(run / "oof_predictions.csv").read_bytes() for run in (one, other)]
    assert predictions[0] == predictions[1]


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(_argv(dataset, directory)) == 0
    return directory


@pytest.fixture(scope="module")
def crossfitted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("crossfitted") / "run"
    assert main(_argv(dataset, directory, *CROSSFIT)) == 0
    return directory


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


@contextlib.contextmanager
def _killed_in_epoch_3(monkeypatch: pytest.MonkeyPatch, *, saved: bool) -> Iterator[None]:
    """Ends a run at the end of that epoch, before its state is saved or behind it."""
    save = trainer.training.checkpoint.save_state

    def save_and_die(
        directory: Path, state: trainer.training.checkpoint.FoldState, *args: Any, **kwargs: Any
    ) -> None:
        if state.epoch < 3 or saved:
            save(directory, state, *args, **kwargs)
        if state.epoch == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer.training.fold, "save_state", save_and_die)
        yield


@pytest.mark.slow  # three runs of three members
@pytest.mark.parametrize("moment", ["before the state", "after the state"])
def test_a_run_stopped_around_its_checkpoint_ends_as_if_it_had_not_been(
    dataset: Path,
    uninterrupted: Path,
    tmp_path: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = moment == "after the state"
    with _killed_in_epoch_3(monkeypatch, saved=saved), pytest.raises(Killed):
        main(_argv(dataset, tmp_path / "run"))
    assert not (tmp_path / "run" / "run.json").exists()
    assert main(_argv(dataset, tmp_path / "run")) == 0
    done = 2 if moment == "before the state" else 3
    assert f"resumes after epoch {done}" in capsys.readouterr().out
    _assert_same_run(uninterrupted, tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_starts_from_weights_is_resumed_with_the_very_same(
    dataset: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "start.keras", tmp_path / "other.keras"
    shutil.copyfile(uninterrupted / "fold-1" / NETWORK_NAME, file)
    more = (*LAST, "--weights", str(file), "--freeze", "1", "--stage_decay", "0.5")
    assert main(_argv(dataset, tmp_path / "whole", *more)) == 0
    started = Run.load(tmp_path / "whole").weights
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert started == ({"setting": "weights", "file": str(file), "sha256": digest},)

    with _killed_in_epoch_3(monkeypatch, saved=True), pytest.raises(Killed):
        main(_argv(dataset, tmp_path / "run", *more))
    file.rename(other)
    with pytest.raises(UsageError, match=r"^--weights: .*start.keras is not a file$"):
        main(_argv(dataset, tmp_path / "run", *more))
    file.write_bytes(other.read_bytes() + b"\0")
    with pytest.raises(ContractError, match=r"weights\..*start.keras: '.*' there, '.*' requested"):
        main(_argv(dataset, tmp_path / "run", *more))
    other.replace(file)
    assert main(_argv(dataset, tmp_path / "run", *more)) == 0
    _assert_same_run(tmp_path / "whole", tmp_path / "run")
    # The frozen stage is the file's; what learnt is not.
    found, start = (_weights(run / "fold-1") for run in (tmp_path / "run", uninterrupted))
    np.testing.assert_allclose(found[0], start[0], rtol=1e-6)
    assert np.abs(found[-2] - start[-2]).max() > 0
    file.unlink()
    assert main(_argv(dataset, tmp_path / "run", *more)) == 0  # finished: it needs no weights


@pytest.mark.slow
def test_a_run_stopped_while_its_epochs_are_chosen_chooses_the_same(
    dataset: Path, crossfitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the second fold, then at each step from the folds' results to run.json."""
    argv = _argv(dataset, tmp_path / "run", *CROSSFIT)

    def start_and_die(place: object, name: str, calls: int) -> None:
        """Dies in a function's call after so many that went well."""
        function: Callable[..., object] = getattr(place, name)
        left = calls

        def once(*args: Any, **kwargs: Any) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, once)
            with pytest.raises(Killed):
                main(argv)
        assert not (tmp_path / "run" / "run.json").exists()

    start_and_die(trainer.training.fold, "save_state", 4)
    start_and_die(trainer.training.run, "crossfit", 0)
    assert len(list((tmp_path / "run").glob("fold-*/.epoch-*.keras"))) == 6
    start_and_die(shutil, "copyfile", 1)
    start_and_die(trainer.training.run, "_write_predictions", 0)
    assert not list((tmp_path / "run").glob("fold-*/.epoch-*.keras"))
    start_and_die(Run, "save", 0)
    assert main(argv) == 0
    _assert_same_run(crossfitted, tmp_path / "run")


def test_a_run_of_other_settings_does_not_resume_from_a_state(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(trainer.training.fold, "learn", die)
    with pytest.raises(Killed):
        main(_argv(dataset, tmp_path / "run"))
    with pytest.raises(ContractError, match=r"config\.seed: 0 there, 1 requested"):
        main(_argv(dataset, tmp_path / "run", *LAST, "--seed", "1"))


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
    more = (*LAST, "--augment", "strong", "--epochs", "60")
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


# Trains, and kills itself in an epoch of a member: amid its steps, or before its state is written.
KILLS_ITSELF = """
import itertools, os, signal, sys
import trainer.task, trainer.training.fold as fold
member, epoch, amid, *argv = sys.argv[1:]
learn, save = fold.learn, fold.save_state
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def learn_and_die(trainee, batches, *, label, **more):
    if amid == "amid" and label == f"{member}, epoch {epoch}":
        batches = itertools.chain([next(batches)], map(die, [0]))
    return learn(trainee, batches, label=label, **more)
def die_or_save(directory, state, *args, **more):
    if amid != "amid" and (directory.name, state.epoch) == (member, int(epoch)):
        die()
    save(directory, state, *args, **more)
fold.learn, fold.save_state = learn_and_die, die_or_save
sys.exit(trainer.task.main(argv))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("choice", [("--epoch_choice", "last"), ("--epoch_choice", "crossfit")])
def test_a_run_killed_twice_in_every_epoch_predicts_the_same(
    dataset: Path, tmp_path: Path, choice: tuple[str, ...]
) -> None:
    """kill -9, amid the epoch's steps, then between its network and its state."""
    more = (*CROSSFIT, *choice)
    assert main(_argv(dataset, tmp_path / "uninterrupted", *more)) == 0
    argv = _argv(dataset, tmp_path / "run", *more)
    for member in ("fold-0", "fold-1"):
        for epoch in ("1", "2", "3"):
            for moment in ("amid", "before the state"):
                command = [sys.executable, "-c", KILLS_ITSELF, member, epoch, moment, *argv]
                done = subprocess.run(command, stdout=subprocess.DEVNULL)
                assert done.returncode == -signal.SIGKILL
    subprocess.run([sys.executable, "-m", "trainer.task", *argv], check=True)
    _assert_same_run(tmp_path / "uninterrupted", tmp_path / "run")
