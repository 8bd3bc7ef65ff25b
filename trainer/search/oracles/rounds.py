"""Hyperband, as a durable oracle.

What is mended, of KerasTuner 1.4: a round in which trials failed is never filled; a bracket is
begun whether or not the trials are there to finish it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from keras_tuner.engine.trial import TrialStatus
from keras_tuner.oracles import HyperbandOracle

from trainer.search.oracles.durable import ENDED, Durable

Rounds = list[tuple[int, int]]


class RoundsOracle(Durable, HyperbandOracle):
    """Hyperband of brackets that the number of trials can finish.

    It begins with the largest such bracket; after each comes the next smaller one that still fits,
    after the smallest the largest again. Too few trials for any become those of the smallest one,
    which trains all epochs and throws nothing away, so that it may end anywhere.

    Source: L. Li et al., JMLR 18 (2018) 185: 1-52, of which KerasTuner takes the brackets' sizes.
    """

    def begin(self, max_trials: int) -> None:
        """Chooses the first bracket; KerasTuner's would be the largest, filled or not."""
        self.max_trials = max_trials
        self.hyperband_iterations = 10**6  # the trials are counted instead
        every = range(self._get_num_brackets())
        self._plans: list[Rounds] = [self._plan(bracket) for bracket in every]
        self._current_bracket = self._fitting(len(self._plans), max_trials, self.space.count())
        self._brackets: list[dict[str, Any]] = []
        self._start_new_bracket()

    def rounds(self) -> list[int]:
        return [self._get_num_rounds(bracket) for bracket in range(self._get_num_brackets())]

    def to_come(self) -> Iterator[Rounds]:
        """(trials, epochs) of the rounds of each bracket that is open or still to be begun."""
        number, (trials, untried) = self._current_bracket, self._room()
        over = max(0.0, -trials)  # of the smallest bracket, or of one that an earlier version began
        for bracket in self._brackets:
            rounds: Rounds = []
            plan = self._plans[bracket["bracket_num"]]
            for missing, (_, epochs) in list(zip(self._missing(bracket), plan, strict=True))[::-1]:
                cut = int(min(over, missing))
                rounds.insert(0, (missing - cut, epochs))
                over -= cut
            if any(size for size, _ in rounds):
                yield rounds
        while trials > 0 and untried > 0:
            number = self._fitting(number, trials, untried)
            plan = self._plans[number]
            if not number:  # it may end anywhere
                plan = [(int(min(plan[0][0], trials, untried)), plan[0][1])]
            yield plan
            trials -= sum(size for size, _ in plan)
            untried -= plan[0][0]

    def _plan(self, bracket: int) -> Rounds:
        return [
            (self._get_size(bracket, number), self._get_epochs(bracket, number))
            for number in range(self._get_num_rounds(bracket))
        ]

    def _fitting(self, before: int, trials: float, untried: float) -> int:
        """The bracket after one that so many trials and combinations suffice for."""
        smaller, others = range(before - 1, -1, -1), range(len(self._plans) - 1, before - 1, -1)
        for bracket in itertools.chain(smaller, others):
            plan = self._plans[bracket]
            if sum(size for size, _ in plan) <= trials and plan[0][0] <= untried:
                return bracket
        return 0

    def _missing(self, bracket: Mapping[str, Any]) -> list[int]:
        """Trials that each round of a bracket still gets; where all have failed it gets none."""
        missing: list[int] = []
        for number, own in enumerate(bracket["rounds"]):
            most = self._get_size(bracket["bracket_num"], number) - len(own)
            if number:
                promoted = {info["past_id"] for info in own}
                others = {info["id"] for info in bracket["rounds"][number - 1]} - promoted
                failed = {name for name in others if self._has_failed(name)}
                most = min(most, missing[-1] + len(others - failed))
            missing.append(most)
        return missing

    def _has_failed(self, name: str) -> bool:
        return self.trials[name].status in (TrialStatus.FAILED, TrialStatus.INVALID)

    def _room(self) -> tuple[float, float]:
        """Trials that no open bracket needs, and combinations that none tries."""
        missing = [self._missing(bracket) for bracket in self._brackets]
        begun = sum("tuner/trial_id" not in t.hyperparameters.values for t in self.trials.values())
        return (
            self.max_trials - len(self.trials) - sum(map(sum, missing)),
            self.space.count() - begun - sum(rounds[0] for rounds in missing),
        )

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
        self._remove_completed_brackets()
        for bracket in self._brackets:
            for number in range(1, len(bracket["rounds"])):
                promoted = self._promote(trial_id, bracket, number)
                if promoted is not None:
                    return {"status": TrialStatus.RUNNING, "values": promoted}
        for bracket in self._brackets:
            if self._missing(bracket)[0]:
                return self._random_trial(trial_id, bracket)
        trials, untried = self._room()
        if trials <= 0 or untried <= 0:
            over = TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED
            return {"status": over, "values": None}
        number = self._fitting(self._current_bracket, trials, untried)
        self._current_iteration += number >= self._current_bracket
        self._current_bracket = number
        self._start_new_bracket()
        return self._random_trial(trial_id, self._brackets[-1])

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
