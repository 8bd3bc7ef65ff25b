"""Hyperband, as a durable oracle.

What is mended, of KerasTuner 1.4: a round in which trials failed is never filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tuner.engine.trial import TrialStatus
from keras_tuner.oracles import HyperbandOracle

from trainer.search.oracles.durable import ENDED, Durable


class RoundsOracle(Durable, HyperbandOracle):
    """Hyperband that begins with the largest bracket the number of trials allows."""

    def begin(self, max_trials: int) -> None:
        """Chooses the first bracket; KerasTuner's would be the largest, filled or not."""
        self.max_trials = max_trials
        self.hyperband_iterations = 10**6  # the trials are counted instead
        bracket = self._get_num_brackets() - 1
        while bracket and (
            sum(size for size, _ in self.plan(bracket)) > max_trials
            or self.plan(bracket)[0][0] > self.space.count()
        ):
            bracket -= 1
        self._current_bracket = bracket
        self._brackets: list[dict[str, Any]] = []
        self._start_new_bracket()

    def rounds(self) -> list[int]:
        return [self._get_num_rounds(bracket) for bracket in range(self._get_num_brackets())]

    def first_plan(self) -> list[tuple[int, int]]:
        """(trials, epochs) of each round of the bracket it is at."""
        return self.plan(self._current_bracket)

    def plan(self, bracket: int) -> list[tuple[int, int]]:
        """(trials, epochs) of each round of a bracket."""
        return [
            (self._get_size(bracket, number), self._get_epochs(bracket, number))
            for number in range(self._get_num_rounds(bracket))
        ]

    def _start_new_bracket(self) -> None:
        super()._start_new_bracket()
        self._brackets[-1]["number"] = f"{self._current_iteration}.{self._current_bracket}"

    def _random_trial(self, trial_id: str, bracket: Any) -> dict[str, Any]:
        response: dict[str, Any] = super()._random_trial(trial_id, bracket)
        if response.get("values"):
            response["values"].update(self._place(bracket, 0))
        return response

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """As KerasTuner's, but a failed trial counts as one that lost, not as one still to come."""
        for bracket in self._brackets:
            for number in range(1, len(bracket["rounds"])):
                promoted = self._promote(trial_id, bracket, number)
                if promoted is not None:
                    return {"status": TrialStatus.RUNNING, "values": promoted}
        response: dict[str, Any] = super().populate_space(trial_id)
        return response

    def _promote(self, trial_id: str, bracket: Any, number: int) -> dict[str, Any] | None:
        """Values of the best trial of the round before, where enough of them have ended."""
        own, before = bracket["rounds"][number], bracket["rounds"][number - 1]
        size = self._get_size(bracket["bracket_num"], number)
        size_before = self._get_size(bracket["bracket_num"], number - 1)
        promoted_ids = {info["past_id"] for info in own}
        waiting = [self.trials[info["id"]] for info in before if info["id"] not in promoted_ids]
        ended = [trial for trial in waiting if trial.status in ENDED]
        scored = [trial for trial in ended if trial.status == TrialStatus.COMPLETED]
        if len(own) >= size or len(ended) <= size_before - size or not scored:
            return None
        best = max(scored, key=lambda trial: trial.score)
        own.append({"past_id": best.trial_id, "id": trial_id})
        return {
            **best.hyperparameters.values,
            "tuner/trial_id": best.trial_id,
            "tuner/initial_epoch": 0,  # trained anew
            "tuner/epochs": self._get_epochs(bracket["bracket_num"], number),
            **self._place(bracket, number),
        }

    def _place(self, bracket: Any, number: int) -> dict[str, Any]:
        last = number + 1 == len(bracket["rounds"])
        promotions = 0 if last else self._get_size(bracket["bracket_num"], number + 1)
        return {
            "tuner/bracket": bracket["bracket_num"],
            "tuner/round": number,
            "tuner/place": bracket["number"],
            "tuner/next": promotions,
        }

    def _compute_values_hash(self, values: Mapping[str, Any]) -> str:
        kept = {name: v for name, v in values.items() if name not in ("tuner/place", "tuner/next")}
        found: str = super()._compute_values_hash(kept)
        return found
