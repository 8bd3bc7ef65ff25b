"""Hyperband's brackets: begun only where the trials are there to finish them, and told before."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from keras_tuner.engine.trial import TrialStatus

from trainer.config.space_file import space_of
from trainer.search.oracles.make_oracle import make_oracle, plan_of
from trainer.search.oracles.rounds import RoundsOracle

RATE = {"learning_rate": {"min": 1e-5, "max": 1e-1, "log": True}}
EIGHT = {"width": [0.5, 1], "learning_rate": [1e-4, 1e-3], "batch_size": [4, 8]}
FIXED = {
    **dict.fromkeys(("dropout", "augment", "schedule", "pooling", "width", "batch_size"), None),
    **{"network": "seed_cnn", "fusion": "early"},
}


def _oracle(max_trials: int, epochs: int, directory: Path, **space: Any) -> RoundsOracle:
    oracle = make_oracle(
        "hyperband",
        space_of(("T1w",), {**FIXED, **(space or RATE)}),
        objective="val_auc",
        max_trials=max_trials,
        epochs=epochs,
        seed=3,
    )
    assert isinstance(oracle, RoundsOracle)
    oracle.directory = str(directory)
    oracle.save = lambda: None  # type: ignore[method-assign]
    return oracle


def _search(oracle: RoundsOracle, fails: Any = lambda number: False) -> Counter[tuple[Any, ...]]:
    """Runs all trials; (bracket, round, epochs) → how many."""
    found: Counter[tuple[Any, ...]] = Counter()
    while True:
        trial = oracle.create_trial("tuner0")
        if trial.status == TrialStatus.STOPPED:
            return found
        values = trial.hyperparameters.values
        found[values["tuner/place"], values["tuner/round"], values["tuner/epochs"]] += 1
        if fails(int(trial.trial_id)):
            trial.status = TrialStatus.FAILED
        else:
            oracle.update_trial(trial.trial_id, {"val_auc": values["learning_rate"]})
            trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)


@pytest.mark.parametrize("epochs", [1, 9, 27])
@pytest.mark.parametrize("max_trials", [1, 8, 14, 31, 50, 75])
def test_what_is_begun_is_finished_and_is_what_was_planned(
    tmp_path: Path, epochs: int, max_trials: int
) -> None:
    oracle = _oracle(max_trials, epochs, tmp_path)
    planned = list(oracle.to_come())
    found = _search(oracle)
    assert sum(found.values()) == max_trials
    done: dict[str, list[tuple[int, int]]] = {}
    for (bracket, _, own), often in sorted(found.items(), key=lambda one: one[0][:2]):
        done.setdefault(bracket, []).append((often, own))
    assert sorted(done.values()) == sorted(planned)
    for rounds in planned:
        assert rounds[-1][1] == epochs  # each bracket's last round trains all epochs
    assert not list(oracle.to_come())


def test_the_plan_is_printed_a_bracket_a_line(tmp_path: Path) -> None:
    assert plan_of(_oracle(50, 27, tmp_path)) == [
        "27 trials of 1 epoch, the best 9 of 3, 3 of 9, 1 of 27",
        "6 trials of 9 epochs, the best 2 of 27",
        "2 trials of 27 epochs",
        "each trained anew, with a schedule of its own",
    ]
    assert plan_of(_oracle(100, 9, tmp_path))[0].startswith("4 times 9 trials of 1 epoch")


def test_few_combinations_begin_no_bracket_that_they_cannot_fill(tmp_path: Path) -> None:
    oracle = _oracle(100, 27, tmp_path, **EIGHT)
    found = _search(oracle)
    assert found == {("0.1", 0, 9): 6, ("0.1", 1, 27): 2, ("0.0", 0, 27): 2}


def test_a_bracket_all_of_whose_trials_fail_gives_its_place_to_others(tmp_path: Path) -> None:
    oracle = _oracle(50, 27, tmp_path)
    found = _search(oracle, fails=lambda number: number < 27)
    # The 13 trials of its later rounds are there for others.
    assert found == {
        **{("0.3", 0, 1): 27},
        **{("0.2", 0, 3): 12, ("0.2", 1, 9): 4, ("0.2", 2, 27): 2},
        **{("0.0", 0, 27): 4, ("1.0", 0, 27): 1},
    }


def test_more_trials_go_on_where_the_search_was(tmp_path: Path) -> None:
    oracle = _oracle(30, 27, tmp_path)
    assert sum(_search(oracle).values()) == 30
    oracle.max_trials = 70
    assert plan_of(oracle)[0] == "27 trials of 1 epoch, the best 9 of 3, 3 of 9, 1 of 27"
    assert _search(oracle) == {
        **{("1.3", 0, 1): 27, ("1.3", 1, 3): 9, ("1.3", 2, 9): 3, ("1.3", 3, 27): 1},
    }


def test_a_worker_that_finds_no_trial_waits_for_the_others(tmp_path: Path) -> None:
    """What is left belongs to brackets under way: another one could not be finished."""
    oracle = _oracle(13, 9, tmp_path)
    trials = [oracle.create_trial(f"worker{number}") for number in range(9)]
    assert oracle.create_trial("worker9").status == TrialStatus.IDLE
    for number, trial in enumerate(trials):
        oracle.update_trial(trial.trial_id, {"val_auc": number / 10})
        trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)
    promoted = oracle.create_trial("worker9")
    assert promoted.hyperparameters.values["tuner/trial_id"] == trials[8].trial_id
