"""Studies over ranges with trials in processes of their own: killed, resumed, and shared."""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.json_file import read_json
from tests.trainer.search.searches import (  # noqa: F401
    FAKE,
    argv_of,
    dataset,
    rows_of,
    starts,
    trials_started,
)
from tests.trainer.search.test_tune_processes import _free_port, _search, _until
from trainer.config.provenance import split_provenance
from trainer.config.run import TrainConfig
from trainer.config.space_file import read_space
from trainer.tune import main

pytestmark = pytest.mark.slow

RANGES: dict[str, Any] = {
    "network": ["seed_cnn", "resnet10"],
    "depth": {"min": 1, "max": 2, "step": 0.5},
    "width": {"min": 0.25, "max": 1},
    "learning_rate": {"min": 1e-5, "max": 1e-2, "log": True},
    "weight_decay": {"min": 1e-6, "max": 1e-2, "log": True},
    "batch_size": {"min": 2, "max": 16, "step": 2, "log": True},
    "augment.rotation_deg": {"min": 0, "max": 30, "step": 15},
}
TUNERS = ["random", "bayesian", "grid", "hyperband"]


def _values(study: Path) -> list[dict[str, Any]]:
    files = sorted(study.glob("trials/*/request.json"), key=lambda file: int(file.parent.name))
    return [read_json(file)["values"] for file in files]


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_killed_study_over_ranges_ends_as_one_that_was_not(
    dataset: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    more = ("--tuner", tuner, "--max_trials", "15")
    whole, study, log = tmp_path / "whole", tmp_path / "study", tmp_path / "log.txt"
    assert main(argv_of(dataset, whole, *more, **RANGES), command=FAKE) == 0
    argv = argv_of(dataset, study, *more, **RANGES)
    moments = random.Random(tuner)
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    for _ in range(3):
        begun = len(trials_started(starts))
        process = _search(argv, log)
        _until(lambda begun=begun: len(trials_started(starts)) > begun, process)
        time.sleep(moments.uniform(0.0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert main(argv, command=FAKE) == 0
    assert _values(study) == _values(whole)
    space = read_space(Path(f"{study}-space.json").read_text(), ("T1wCE",), source="")
    for values in _values(study):
        assert space.complete(space.chosen(values)) == values
    same = [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(whole)]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(study)] == same
    best = max(rows_of(study), key=lambda row: (float(row["objective"]), -int(row["trial"])))
    settings, _ = split_provenance(read_json(study / "best_hyperparameters.json"))
    config = TrainConfig.from_json(settings)
    assert config.optimizer.weight_decay == float(best["weight_decay"])
    assert config.optimizer.learning_rate == float(best["learning_rate"])
    assert config.to_json()["augment"]["rotation_deg"] == float(best["augment.rotation_deg"])
    wider = {**RANGES, "width": {"min": 0.25, "max": 2}}
    with pytest.raises(ValueError, match=r"space\.width\.max: 1\.0 there, 2\.0 requested"):
        main(argv_of(dataset, study, *more, **wider), command=FAKE)


def test_workers_share_a_study_over_ranges_to_the_digit(
    dataset: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    study = tmp_path / "study"
    argv = argv_of(dataset, study, "--tuner", "bayesian", "--max_trials", "8", **RANGES)
    where = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": _free_port()}
    logs = {name: tmp_path / f"{name}.txt" for name in ("chief", "one", "two")}
    processes = {
        name: _search(argv, log, KERASTUNER_TUNER_ID=name, **where) for name, log in logs.items()
    }
    try:
        for name, process in processes.items():
            assert process.wait(180) == 0, logs[name].read_text()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    oracle = read_json(study / "oracle.json")
    space = read_space(Path(f"{study}-space.json").read_text(), ("T1wCE",), source="")
    for number, values in enumerate(_values(study)):
        known = oracle["trials"][str(number)]["hyperparameters"]["values"]
        assert space.complete(known) == values
        assert space.chosen(values) == known
    # One process takes it up, with values from a file and not from a message.
    (study / "trials" / "3" / "result.json").unlink()
    assert main(argv, command=FAKE) == 0
    assert len(rows_of(study)) == 8


def test_epochs_are_searched_but_not_by_hyperband(dataset: Path, tmp_path: Path) -> None:
    epochs = {"epochs": {"min": 2, "max": 50, "step": 3}}
    study = tmp_path / "study"
    argv = argv_of(dataset, study, "--tuner", "random", "--max_trials", "6", **epochs)
    assert main(argv, command=FAKE) == 0
    rows = rows_of(study)
    for row, file in zip(rows, sorted(study.glob("trials/*/request.json")), strict=True):
        config = read_json(file)["config"]
        assert config["epochs"] == int(row["epochs"]) == read_json(file)["values"]["epochs"]
        assert config["optimizer"]["warmup_epochs"] == min(5, config["epochs"] // 4)
    header = (study / "trials.csv").read_text().splitlines()[0].split(",")
    assert len(header) == len(set(header))
    argv = argv_of(dataset, tmp_path / "other", "--tuner", "hyperband", **epochs)
    with pytest.raises(ValueError, match="epochs cannot be searched by hyperband, whose rounds"):
        main(argv, command=FAKE)
    assert json.loads((study / "study.json").read_text())["finished"]


def test_weights_that_are_not_there_are_told_before_the_first_trial(
    dataset: Path, tmp_path: Path, starts: Path
) -> None:
    (tmp_path / "there.keras").touch()
    weights = [str(tmp_path / name) for name in ("there.keras", "gone.keras")]
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "random", weights=weights)
    with pytest.raises(ValueError, match=r"--space: weights: .*/gone.keras is not a file"):
        main(argv, command=FAKE)
    assert not trials_started(starts)
