"""How long a run or a study will take, and the smaller command that is to be tried first."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import write_dataset
from tests.trainer.search.searches import FAKE, argv_of
from tests.trainer.search.searches import dataset as dataset
from trainer import task, tune
from trainer.config.space_file import space_of
from trainer.search import outlook
from trainer.search.outlook import changed, tell_of_run
from trainer.training.environment import Pace
from trainer.training.run_files import Run

RUN = "voxelbeam train --data 'a dataset' --output_dir runs/run/ --cross_validate --epochs=30"
HOUR = Pace(epoch_seconds=60.0, end_seconds=0.0, members=5, epochs=12)


def _told(text: str) -> tuple[str, list[str]]:
    """What is said of the time, on one line, and the command that is suggested."""
    said, _, command = text.partition("shorter:\n")
    return " ".join(said.split()), shlex.split(command.replace("\\\n", " "))


def test_an_hour_is_not_worth_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    tell_of_run(HOUR, fold=0, directory="run")
    assert capsys.readouterr().out == ""


def test_retrainings_count_and_a_smaller_command_is_suggested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = [*shlex.split(RUN), "--modalities", "T1w", "T2w", "--permutations", "39"]
    tell_of_run(HOUR, fold=2, directory="runs/run/", permutations=39, command=command)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    said, command = _told(printed)
    assert "40 h on this CPU: 5 networks of 12 epochs, 60 s an epoch" in said
    assert "try first 10 min, 240 times" in said
    again = "voxelbeam train --data 'a dataset' --modalities T1w T2w --output_dir runs/run-try"
    wanted = "--fold 2 --epochs 10 --repeats 1 --epoch_choice last"
    assert command == shlex.split(f"{again} {wanted}")


def test_where_one_epoch_is_the_whole_run_a_smaller_dataset_is_what_helps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pace = Pace(epoch_seconds=7200.0, end_seconds=0.0, members=1, epochs=1)
    tell_of_run(pace, fold=0, directory="run", command=["voxelbeam", "train"])
    assert "half the --shape" in capsys.readouterr().out


def test_a_flag_that_goes_takes_its_values_along() -> None:
    command = shlex.split("train --a 1 2 --b=3 --c --d 4")
    assert changed(command, {"--a": None, "--b": "5", "--c": None}).split() == [
        *("train", "--d", "4", "--b", "5")
    ]


def test_a_study_is_as_long_as_all_its_trials_by_the_first_ones_pace(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_PACE", "3600")
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", "2")
    assert tune.main(argv, command=FAKE) == 0
    printed = capsys.readouterr().out
    assert printed.count("expect ") == 1
    said, _, rest = printed[printed.index("expect ") :].partition("shorter:\n")
    assert "expect 54 h on this CPU: 2 trials with 3 networks each" in " ".join(said.split())
    again = shlex.split(rest.partition("\ntrial 0")[0].replace("\\\n", " "))
    changes = ("--tuner", "random", "--max_trials", "2", "--folds", "1", "--seeds", "1")
    place = ("--output_dir", f"{tmp_path / 'study'}-try")
    assert again[-12:] == [*place, *changes, "--epochs", "1"]


def test_rounds_count_their_own_epochs() -> None:
    from trainer.search.oracles.make_oracle import epochs_of, make_oracle

    space = space_of(("T1w",))
    told: dict[str, Any] = {"objective": "val_auc", "max_trials": 7, "epochs": 9, "seed": 0}
    assert sorted(epochs_of(make_oracle("hyperband", space, **told), 9)) == [3] * 5 + [9] * 2
    assert epochs_of(make_oracle("random", space, **told), 9) == [9] * 7


@pytest.mark.slow
def test_what_is_suggested_works_and_a_run_that_is_timed_is_the_run_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_dataset(data, patients=64, folds=2, shape=(10, 10, 10))
    argv = [*("--data", str(data), "--cross_validate", "--epochs", "2"), *("--width", "0.25")]
    assert task.main([*argv, "--output_dir", str(tmp_path / "untold")]) == 0
    assert "expect" not in capsys.readouterr().out
    monkeypatch.setattr(outlook, "LONG_S", 0.0)
    assert task.main([*argv, "--output_dir", str(tmp_path / "told")]) == 0
    said, command = _told(capsys.readouterr().out.partition("fold-0 ")[0])
    assert re.match(r"expect \d+ s on this CPU: 2 networks of 2 epochs, [\d.]+ s an epoch", said)
    for file in ("oof_predictions.csv", "config.json"):
        one, other = (tmp_path / name / file for name in ("untold", "told"))
        assert one.read_bytes() == other.read_bytes()
    assert {file.name for file in (tmp_path / "untold").iterdir()} == {
        file.name for file in (tmp_path / "told").iterdir()
    }
    assert command[:3] == ["python", "-m", "trainer.task"]
    assert task.main(command[3:]) == 0
    tried = Run.load(tmp_path / "told-try")
    assert [(one.fold, one.epoch) for one in tried.members] == [(0, 2)]


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own_is_told_with_its_retrainings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_dataset(data, patients=64, folds=2, shape=(10, 10, 10))
    monkeypatch.setattr(outlook, "LONG_S", 0.0)
    argv = ["--data", str(data), "--output_dir", str(tmp_path / "run"), "--permutations", "1"]
    assert task.main([*argv, "--cross_validate", "--epochs", "2", "--width", "0.25"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("expect ") == 1
    assert "all of it once more on permuted labels" in " ".join(printed.split())
