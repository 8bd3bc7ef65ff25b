"""An oracle that is taken up again knows what has ended, whenever its process was killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from keras_tuner.engine.trial import Trial, TrialStatus

from trainer.config.space_file import space_of
from trainer.search.oracles.durable import ORACLE_NAME, Durable
from trainer.search.oracles.make_oracle import make_oracle
from trainer.search.study import TRIALS
from trainer.search.trial import REQUEST_NAME, RESULT_NAME

VALUES = {
    "network": ["seed_cnn", "slice_cnn"],
    "fusion": "early",
    "width": [0.25, 0.5],
    "batch_size": [4, 8],
}
RANGES = {
    "network": ["seed_cnn", "my_networks:vit"],
    "fusion": "early",
    "width": {"min": 0.25, "max": 1, "step": 0.25},
    "batch_size": {"min": 2, "max": 16, "step": 2, "log": True},
    "learning_rate": {"min": 1e-5, "max": 1e-2, "log": True},
    "weight_decay": {"min": 0, "max": 0.1},
    "options.layers": {"min": 1, "max": 6},
    "options.norm": [False, True],
}


def oracle_of(kind: str, directory: Path, narrowed: Mapping[str, object]) -> Durable:
    """The study's oracle, as a start of its command has it."""
    space = space_of(("T1wCE",), narrowed)
    oracle = make_oracle(kind, space, objective="val_auc", max_trials=4, epochs=3, seed=0)
    oracle.directory = str(directory)
    oracle.reload()
    return oracle


def end(oracle: Durable, trial: Trial, score: float) -> None:
    """What the loop does with a trial that has trained."""
    place = Path(oracle.directory, TRIALS, trial.trial_id)
    place.mkdir(parents=True)
    for name in (REQUEST_NAME, RESULT_NAME):
        (place / name).touch()
    oracle.update_trial(trial.trial_id, {"val_auc": score})
    trial.status = TrialStatus.COMPLETED
    oracle.end_trial(trial)


@pytest.mark.parametrize(
    ("kind", "narrowed"),
    [
        *((kind, VALUES) for kind in ("random", "bayesian", "grid", "hyperband")),
        *((kind, RANGES) for kind in ("random", "grid", "hyperband")),
        pytest.param("bayesian", RANGES, marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_has_ended_is_not_begun_again(
    kind: str, narrowed: Mapping[str, object], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for directory in (whole, killed):
        directory.mkdir()
        oracle = oracle_of(kind, directory, narrowed)
        for score in (0.5, 0.6, 0.7, 0.8):
            trial = oracle.create_trial("tuner0")
            assert trial.status == TrialStatus.RUNNING
            end(oracle, trial, score)
            tried = json.loads((directory / ORACLE_NAME).read_text())["tried_so_far"]
            assert tried == sorted(tried)  # by no order of this process's hashes
            if directory == killed:  # right behind its end
                oracle = oracle_of(kind, directory, narrowed)
                assert oracle.trials[trial.trial_id].status == TrialStatus.COMPLETED
    assert (whole / ORACLE_NAME).read_bytes() == (killed / ORACLE_NAME).read_bytes()
