"""An oracle of KerasTuner's that is saved whole, and takes up its trials wherever it was killed.

What is mended, of KerasTuner 1.4: its state is written in place and over several files, so that a
kill in between leaves one that cannot be read or loses a trial; a worker that is gone keeps its
trial for ever, and the last workers leave while it may still come back; a finite space is given up
after 20 draws that were there before.
"""

from __future__ import annotations

import json
import random
from typing import Any

import keras_tuner as kt
import numpy as np
from keras_tuner.engine.oracle import Oracle
from keras_tuner.engine.trial import Trial, TrialStatus

from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json
from trainer.config.search_space import Space
from trainer.search.oracle_state import has_result, required_state

ENUMERATED = 20_000  # combinations up to which an untried one is looked for among all
ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED, TrialStatus.INVALID)
_COLLISIONS = 100  # draws in a row that were tried before; KerasTuner gives up after 20
DRAWN = 2_000  # combinations of a larger space among which one is looked for
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
            said = str(error)
            if not isinstance(error, ContractError):  # KerasTuner's, of a value of any length
                said = f"{type(error).__name__}: {shown(said)}"
            about = "" if said.startswith(file) else f"{file}: "
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
            elif trial.status not in ENDED:  # taken up by an earlier version after its end
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
        if values is not None or self.space.count() > ENUMERATED:
            found: dict[str, Any] | None = values
            return found
        left = self._left()
        if not left:
            return None
        self._seed_state += 1
        return left[np.random.default_rng(self._seed_state).integers(len(left))]

    def _drawn(self) -> dict[str, Any] | None:
        """As KerasTuner's draws, to the digits that its messages carry and to the last step."""
        for _ in range(_COLLISIONS):
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
