"""The oracle of each kind of search, in KerasTuner's terms and back."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner as kt

from trainer.config.hyperparameter import Hyperparameter, Range, Value
from trainer.config.search_space import Space
from trainer.search.oracles.durable import Durable
from trainer.search.oracles.kinds import BayesianOracle, GridOracle, RandomOracle
from trainer.search.oracles.rounds import RoundsOracle

_LOOKED_AT = 10_000  # combinations of a grid, to say what they vary


def hyperparameters_of(space: Space) -> kt.HyperParameters:
    """The choices that are left to make, as KerasTuner's, conditions and all."""
    found = kt.HyperParameters()
    searched = {choice.name for choice in space.searched}
    for choice in space.searched:
        with contextlib.ExitStack() as scopes:
            for condition in choice.conditions:
                if condition.parent in searched:  # a fixed one was looked at when it was made
                    scope = found.conditional_scope(condition.parent, list(condition.when))
                    scopes.enter_context(scope)
            _add(found, choice)
    return found


def _add(found: kt.HyperParameters, choice: Hyperparameter) -> None:
    if isinstance(choice, Range):
        options: dict[str, Any] = {"sampling": choice.scale}
        if choice.kind is int:
            found.Int(choice.name, choice.low, choice.high, step=choice.step, **options)
        else:
            # Steps are the space's: KerasTuner's miss the last one where it is 0.6 / 0.1.
            found.Float(choice.name, choice.low, choice.high, **options)
    elif choice.size == 2 and isinstance(choice.first, bool):
        found.Boolean(choice.name)
    else:
        found.Choice(choice.name, list(choice.every()))


def round_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """`Request.round` of KerasTuner's values; empty for a search without rounds."""
    if "tuner/epochs" not in values:
        return {}
    return {
        "bracket": values["tuner/place"],
        "round": values["tuner/round"],
        "epochs": values["tuner/epochs"],
        "next": values["tuner/next"],
        "from": values.get("tuner/trial_id", ""),
    }


def make_oracle(
    kind: str, space: Space, *, objective: str, max_trials: int, epochs: int, seed: int
) -> Durable:
    """The oracle of a study.

    Args:
      kind: "hyperband", "bayesian", "random" or "grid".
      space: what may be chosen.
      objective: name of what is maximised.
      max_trials: at most so many.
      epochs: the most a trial is trained.
      seed: of the search; KerasTuner takes 0 for none.
    """
    options: dict[str, Any] = {
        "objective": kt.Objective(objective, "max"),
        "hyperparameters": hyperparameters_of(space),
        "allow_new_entries": False,
        "tune_new_entries": False,
        "seed": seed + 1,
        "max_retries_per_trial": 0,
        "max_consecutive_failed_trials": 10**9,  # a failure ends its trial, not the study
    }
    oracle: Any
    if kind == "hyperband":
        oracle = RoundsOracle(max_epochs=epochs, factor=3, **options)
        oracle.space = space
        oracle.begin(max_trials)
    elif kind == "bayesian":
        oracle = BayesianOracle(
            max_trials=max_trials, num_initial_points=initial_points(space, max_trials), **options
        )
    else:
        oracle = {"random": RandomOracle, "grid": GridOracle}[kind](
            max_trials=max_trials, **options
        )
    oracle.space = space
    oracle.verbose = 0
    made: Durable = oracle
    return made


def initial_points(space: Space, max_trials: int) -> int:
    """Random trials before the first guided one: KerasTuner's 3 a dimension would be most of them.

    A third of all, between 3 and 3 a dimension.
    """
    return max(3, min(3 * len(space.searched), math.ceil(max_trials / 3)))


def plan_of(oracle: Durable) -> list[str]:
    """What the kind of search makes of the trials that are left, in lines; empty where nothing."""
    if isinstance(oracle, RoundsOracle):
        brackets = Counter(map(tuple, oracle.to_come()))
        lines = [_bracket_text(rounds, often) for rounds, often in brackets.items()]
        return [*lines, "each trained anew, with a schedule of its own"] if lines else []
    if isinstance(oracle, BayesianOracle):
        return [f"{oracle.num_initial_points} random trials, then guided ones"]
    if isinstance(oracle, GridOracle) and oracle.max_trials < oracle.space.count(grid=True):
        last = ", ".join(_varied(oracle.space, oracle.max_trials))
        return [f"the first {oracle.max_trials} combinations, which vary {last} alone"]
    return []


def epochs_of(oracle: Durable, epochs: int) -> list[int]:
    """Epochs of each trial that a search will run.

    Args:
      oracle: of a search that has not begun.
      epochs: of a trial, where there are no rounds.
    """
    if isinstance(oracle, RoundsOracle):
        return [n for rounds in oracle.to_come() for size, n in rounds for _ in range(size)]
    grid = isinstance(oracle, GridOracle)
    return [epochs] * int(min(oracle.max_trials, oracle.space.count(grid=grid)))


def _bracket_text(rounds: Sequence[tuple[int, int]], often: int) -> str:
    """ "2 times 12 trials of 3 epochs, the best 4 of 9, 2 of 27"."""
    (size, epochs), *later = [one for one in rounds if one[0]]
    text = f"{size} trial{'s' * (size > 1)} of {epochs} epoch{'s' * (epochs > 1)}"
    for number, (size, epochs) in enumerate(later):
        text += f", {'' if number else 'the best '}{size} of {epochs}"
    return text if often == 1 else f"{often} times {text}"


def _varied(space: Space, trials: int) -> list[str]:
    """Hyperparameters of which the first combinations of a grid try more than one value."""
    found: dict[str, set[Value]] = {choice.name: set() for choice in space.searched}
    for values in itertools.islice(space.combinations(grid=True), min(trials, _LOOKED_AT)):
        for name, value in space.chosen(values).items():
            found[name].add(value)
    return [name for name, values in found.items() if len(values) > 1]
