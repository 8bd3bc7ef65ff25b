"""Random, Bayesian and grid search, as durable oracles.

What is mended, of KerasTuner 1.4: a grid forgets where it was; a Bayesian search proposes what it
has tried, and takes seconds for it.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras_tuner.engine.trial import TrialStatus
from keras_tuner.oracles import BayesianOptimizationOracle, RandomSearchOracle

from trainer.search.oracles.durable import DRAWN, ENUMERATED, Durable

# Of a space with ranges the neighbours of the most promising combination are looked at, then those
# of the best of these: how many, and how far away on a range's scale.
_NEIGHBOURS, _WIDTHS = 400, (0.1, 0.03, 0.01)


class RandomOracle(Durable, RandomSearchOracle):
    """Random search."""


class BayesianOracle(Durable, BayesianOptimizationOracle):
    """Gaussian process with an upper confidence bound, after a few random trials.

    The bound is looked up at combinations not tried yet, all of them or many: KerasTuner's climbs
    it as if the space were continuous, which takes seconds and ends at what was tried before.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        done = sum(trial.status == TrialStatus.COMPLETED for trial in self.trials.values())
        if done < self.num_initial_points:
            found: dict[str, Any] = self._random_populate_space()
            return found
        candidates = self._untried()
        if not candidates:
            return {"status": TrialStatus.STOPPED, "values": None}
        x, y = self._vectorize_trials()
        with warnings.catch_warnings():  # a length at its bound is no news with so few trials
            warnings.simplefilter("ignore")
            self.gpr.fit(x, y)
        best = self._most_promising(candidates)
        for width in _WIDTHS if self.space.has_ranges else ():
            self._seed_state += 1
            rng, middle = random.Random(self._seed_state), self.space.complete(best)
            near = [self.space.near(middle, rng, width) for _ in range(_NEIGHBOURS)]
            chosen = [self.space.chosen(values) for values in near]
            best = self._most_promising([best, *(v for v in chosen if not self._duplicate(v))])
        return {"status": TrialStatus.RUNNING, "values": best}

    def _most_promising(self, candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The candidate with the lowest bound of what is minimised."""
        vectors = np.array([self._vector(values) for values in candidates])
        mean, deviation = self.gpr.predict(vectors, return_std=True)
        return candidates[int(np.argmin(mean - self.beta * deviation))]

    def _untried(self) -> list[dict[str, Any]]:
        if self.space.count() <= ENUMERATED:
            return self._left()
        if self.space.has_ranges:
            drawn = list(itertools.takewhile(bool, (self._drawn() for _ in range(DRAWN))))
        else:
            drawn = [super(Durable, self)._random_values() for _ in range(DRAWN)]
        return [values for values in drawn if values is not None]

    def _vector(self, values: Mapping[str, Any]) -> list[float]:
        """As `_vectorize_trials`: what has no use is at its default."""
        return [
            hp.value_to_prob(
                values[hp.name]
                if hp.name in values and all(one.is_active(values) for one in hp.conditions)
                else hp.default
            )
            for hp in self.hyperparameters.space
        ]


class GridOracle(Durable):
    """Every combination, in the space's order."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        for number, combination in enumerate(self.space.combinations(grid=True)):
            if number == len(self.start_order):
                values = self.space.chosen(combination)
                return {"status": TrialStatus.RUNNING, "values": values}
        return {"status": TrialStatus.STOPPED, "values": None}
