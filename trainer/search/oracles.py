"""KerasTuner's search, made to survive: oracles that are saved whole, and rounds that get filled.

The only module that touches KerasTuner's private members (a test holds their signatures). Imports
KerasTuner, and with it TensorFlow, which touches no device here: trials train elsewhere.

What is mended, of KerasTuner 1.4: its state is written in place and over several files, so that a
kill in between leaves one that cannot be read or loses a trial; a grid forgets where it was; a
round of Hyperband in which trials failed is never filled; a worker that is gone keeps its trial
for ever, and the last workers leave while it may still come back; a finite space is given up after
20 draws that were there before; a Bayesian search proposes what it has tried; an exception of any
kind counts as a trial's.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import grpc
import keras_tuner as kt
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.oracle import Oracle
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.oracles import (
    BayesianOptimizationOracle,
    HyperbandOracle,
    RandomSearchOracle,
)
from keras_tuner.src import protos  # the wire format has no public name
from keras_tuner.src.distribute import oracle_client
from keras_tuner.src.distribute.oracle_chief import OracleServicer

from beam_jobs.common.cli import CommandError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json
from trainer.config.search_space import Space
from trainer.search.oracle_state import has_result, required_state

_ENUMERATED = 20_000  # combinations up to which an untried one is looked for among all
_ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED, TrialStatus.INVALID)
_DRAWN = 2_000  # combinations of a larger space of which the most promising is tried
ORACLE_NAME = "oracle.json"


class Durable(Oracle):
    """An oracle whose whole state is one file, replaced in one step. Stands before KerasTuner's.

    Attributes:
      space: what may be chosen; set by `make_oracle`.
      directory: of the study, where the file goes; set by the tuner.
    """

    space: Space
    directory: str
    trials: dict[str, Trial]
    ongoing_trials: dict[str, Trial]
    end_order: list[str]
    _retry_queue: list[str]

    def save(self) -> None:
        """The state and all trials, all or nothing."""
        state = self.get_state()
        data = {
            **state,
            "tried_so_far": sorted(state["tried_so_far"]),  # a set's, in the order of hashes
            "trials": {name: trial.get_state() for name, trial in self.trials.items()},
        }
        files.write_text(files.join(self.directory, ORACLE_NAME), json.dumps(data))

    def reload(self) -> None:
        """Takes up the saved state; trials that were running, or lost their result, run again.

        Raises:
          ContractError: it is none of this search; the message names file and member.
        """
        file = files.join(self.directory, ORACLE_NAME)
        if files.stat(file) is None:
            return
        try:
            data = required_state(read_json(file), self.get_state(), self.space, self.rounds())
            self.trials = {name: Trial.from_state(state) for name, state in data["trials"].items()}
            self.set_state(data)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            said = error if isinstance(error, ContractError) else f"{type(error).__name__}: {error}"
            about = "" if str(said).startswith(file) else f"{file}: "
            raise ContractError(
                f"{about}{said}; delete it to go on from the results of the trials"
            ) from error
        self._begin_again()

    def _begin_again(self) -> None:
        """Queues what was running, and what has ended and has no result any more."""
        ended = [t for t in self.end_order if has_result(self.directory, t)]
        for name in self.start_order:
            trial = self.trials[name]
            if name not in ended:
                # Anew: what is known of it would count beside what it is going to give.
                self.trials[name] = Trial(trial.hyperparameters, trial_id=name)
            elif trial.status not in _ENDED:  # taken up by an earlier version after its end
                trial.status = TrialStatus.FAILED if trial.score is None else TrialStatus.COMPLETED
        self.end_order = ended
        self._retry_queue = [name for name in self.start_order[::-1] if name not in ended]
        self.ongoing_trials = {}

    def rounds(self) -> list[int]:
        """How many rounds each bracket has; empty where the search has none."""
        return []

    def _save_trial(self, trial: Trial) -> None:
        """Nothing: `save` writes the trials too."""

    @kt.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
            # Its worker may be lost, and then another must be there to take it over.
            self.tuner_ids.add(tuner_id)
            trial.status = TrialStatus.IDLE
        return trial

    @kt.synchronized
    def end_trial(self, trial: Trial) -> None:
        if trial.trial_id in self._retry_queue:  # given up too early
            self._retry_queue.remove(trial.trial_id)
        if trial.trial_id in self.end_order:  # finished by another worker meanwhile
            self.release(trial.trial_id)
            return
        # Those that came over the network are in single precision, and not among the choices.
        trial.hyperparameters = self.trials[trial.trial_id].hyperparameters
        super().end_trial(trial)
        # Run twice at once, by a worker that was given up and its successor.
        self.release(trial.trial_id)

    @kt.synchronized
    def give_up(self, tuner_id: str) -> str | None:
        """Takes a lost worker's trial back, to be run by the next free worker; its id."""
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is None:
            return None
        others = {other.trial_id for other in self.ongoing_trials.values()}
        if trial.trial_id not in self.end_order and trial.trial_id not in others:
            self._retry_queue.append(trial.trial_id)
        self.save()
        name: str = trial.trial_id
        return name

    def release(self, trial_id: str) -> None:
        for tuner_id, ongoing in list(self.ongoing_trials.items()):
            if ongoing.trial_id == trial_id:
                del self.ongoing_trials[tuner_id]

    @property
    def is_over(self) -> bool:
        """Whether nothing runs or waits, and no further trial would be given."""
        return not (self.ongoing_trials or self._retry_queue) and (
            len(self.trials) >= self.max_trials
        )

    def _random_values(self) -> dict[str, Any] | None:
        """Values not tried yet; None only where there are none."""
        values = self._drawn() if self.space.has_ranges else super()._random_values()
        if values is not None or self.space.count() > _ENUMERATED:
            found: dict[str, Any] | None = values
            return found
        left = self._left()
        if not left:
            return None
        self._seed_state += 1
        return left[np.random.default_rng(self._seed_state).integers(len(left))]

    def _drawn(self) -> dict[str, Any] | None:
        """As KerasTuner's draws, to the digits that its messages carry and to the last step."""
        for _ in range(_DRAWN):
            self._seed_state += 1
            values = self.space.chosen(self.space.drawn(random.Random(self._seed_state)))
            if not self._duplicate(values):
                return values
        return None

    def _left(self) -> list[dict[str, Any]]:
        """Every combination not tried yet, without the fixed choices."""
        return [
            chosen
            for combination in self.space.combinations()
            if not self._duplicate(chosen := self.space.chosen(combination))
        ]


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
        if self.space.count() <= _ENUMERATED:
            return self._left()
        drawn = [super(Durable, self)._random_values() for _ in range(_DRAWN)]
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
        ended = [trial for trial in waiting if trial.status in _ENDED]
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


class TrialLoop(BaseTuner):
    """KerasTuner's loop, in which a trial may fail and whatever else is wrong is raised.

    Args:
      oracle: what is tried next; it has a place of its own to be saved in.
    """

    def __init__(self, oracle: Durable) -> None:
        # KerasTuner makes a directory where it is begun; nothing is ever written there.
        with files.scratch("tune") as unused:
            super().__init__(oracle, directory=str(unused), project_name="unused")

    def _try_run_and_update_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> None:
        # KerasTuner's catches whatever there is, prints a traceback, and counts it as a trial's.
        try:
            metrics = self.run_trial(trial)
        except kt.errors.FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)
            return
        self.oracle.update_trial(trial.trial_id, metrics)
        trial.status = TrialStatus.COMPLETED


class ChiefClient(oracle_client.OracleClient):
    """A worker's line to the chief.

    Args:
      oracle: what is known of it without a call.
      timeout: seconds that a call may take; KerasTuner's is an hour.
    """

    def __init__(self, oracle: Durable, timeout: float) -> None:
        super().__init__(oracle)
        oracle_client.TIMEOUT = timeout


class ChiefServer:
    """Answers workers' calls with an oracle, one at a time.

    Raises:
      CommandError: the address is not this machine's, or taken.
    """

    def __init__(self, oracle: Durable, address: str) -> None:
        self._servicer = OracleServicer(oracle)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=1), options=(("grpc.so_reuseport", 0),)
        )
        protos.get_service_grpc().add_OracleServicer_to_server(self._servicer, self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise CommandError(f"the chief cannot listen on {address}")
        self._server.start()

    @property
    def has_stopped_a_worker(self) -> bool:
        """Whether a worker got the answer that no trial is left."""
        return bool(self._servicer.stop_triggered)

    def close(self) -> None:
        """Ends it, calls under way within a second."""
        self._server.stop(grace=1).wait()
