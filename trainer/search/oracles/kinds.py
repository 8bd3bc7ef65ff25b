"""Random, Bayesian and grid search, as durable oracles.

What is mended, of KerasTuner 1.4: a grid forgets where it was; a Bayesian search proposes what it
has tried, and takes seconds for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras_tuner.engine.trial import TrialStatus
from keras_tuner.oracles import BayesianOptimizationOracle, RandomSearchOracle

from trainer.search.oracles.durable import DRAWN, ENUMERATED, Durable


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
        mean, deviation = self.gpr.predict(
            np.array([self._vector(values) for values in candidates]), return_std=True
        )
        best = candidates[int(np.argmin(mean - self.beta * deviation))]
        return {"status": TrialStatus.RUNNING, "values": best}

    def _untried(self) -> list[dict[str, Any]]:
        if self.space.count() <= ENUMERATED:
            return self._left()
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
