"""What an oracle's saved state must be before KerasTuner takes it up. No TensorFlow.

KerasTuner believes its own file: a trial that is not there, a status nobody has or a choice that
is none of the space's comes out as a traceback, now or some trials later. Of the file only what the
search has done is taken; what follows from the request (space, seed, epochs) is the search's own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    OneOf,
    Within,
    objects_of,
    require_kinds,
    require_that,
)
from beam_jobs.common.files import interface as files
from trainer.config.search_space import Space
from trainer.metrics.stored import MOST
from trainer.search.study import TRIALS
from trainer.search.trial import REQUEST_NAME, RESULT_NAME

_NUMBER = Within(int, 0, MOST)
_NAME = re.compile("[0-9]{1,10}")
_COMPLETED = "COMPLETED"
_STATE: dict[str, Kind] = {
    **dict.fromkeys(("start_order", "end_order", "retry_queue", "tried_so_far"), ListOf(str)),
    **dict.fromkeys(("ongoing_trials", "run_times", "id_to_hash", "trials"), dict),
    "hyperparameters": dict,
    "seed_state": Within(int, 0, 2**53),
}
_TRIAL: dict[str, Kind] = {
    **{"trial_id": str, "hyperparameters": dict, "metrics": dict, "best_step": _NUMBER},
    "score": Within(float, 0, 1, null=True),
    "status": OneOf(("RUNNING", _COMPLETED, "FAILED", "INVALID")),
    "message": str | None,
}
# What a search in rounds writes among a trial's values.
_ROUND: dict[str, Kind] = {
    **dict.fromkeys(("tuner/bracket", "tuner/round", "tuner/next", "tuner/initial_epoch"), _NUMBER),
    "tuner/place": str,
}
# Of a request, and of this code: what the file says of these is not asked.
_OWN = (
    *("hyperparameters", "seed", "display"),
    *("hyperband_iterations", "max_epochs", "min_epochs", "factor", "alpha", "beta"),
)


def required_state(
    data: Mapping[str, Any],
    own: Mapping[str, Any],
    space: Space,
    rounds: Sequence[int] = (),
) -> dict[str, Any]:
    """A saved state that can be taken up.

    Args:
      data: as the file has it.
      own: state of the oracle that takes it up.
      space: what may be chosen.
      rounds: of a search in rounds: how many each of its brackets has.

    Raises:
      ContractError: names the member that does not fit.
    """
    require_kinds(data, _STATE)
    trials = data["trials"]
    for name, trial in trials.items():
        _require_trial(name, trial, trials, space, epochs=own["max_epochs"] if rounds else 0)
    numbers = sorted(int(name) for name in trials)
    require_that(numbers == list(range(len(trials))), data, "trials", "numbers from 0 on")
    for name in ("end_order", "retry_queue"):
        _require_names(data, name, data[name], trials)
    every = sorted(data["start_order"]) == sorted(trials)
    require_that(every, data, "start_order", "each trial's name once")
    _require_names(
        data, "ongoing_trials", list(data["ongoing_trials"].values()), trials, once=False
    )
    for name, kind in (("run_times", _NUMBER), ("id_to_hash", str | None)):
        _require_names(data, name, list(data[name]), trials)
        require_kinds(data[name], dict.fromkeys(data[name], kind), where=f"{name}.")
    if "num_initial_points" in own:
        require_kinds(data, {"num_initial_points": _NUMBER})
    if rounds:
        _require_rounds(data, rounds)
    # Each its own: KerasTuner changes the conditions in what it reads.
    kept = {name: copy.deepcopy(own[name]) for name in _OWN if name in own}
    for trial in trials.values():
        values = trial["hyperparameters"]["values"]
        trial["hyperparameters"] = {**copy.deepcopy(own["hyperparameters"]), "values": values}
    return {**data, **kept}


def has_result(directory: str, trial: str) -> bool:
    """Whether a trial of a study, by its name, is finished: what it gave is there, and of what."""
    place = files.join(directory, TRIALS, trial)
    return all(
        files.stat(files.join(place, name)) is not None for name in (REQUEST_NAME, RESULT_NAME)
    )


def _require_names(
    data: Mapping[str, Any],
    member: str,
    names: Sequence[Any],
    trials: Mapping[str, Any],
    *,
    once: bool = True,
) -> None:
    known = all(isinstance(name, str) and name in trials for name in names)
    single = not once or len(set(map(str, names))) == len(names)
    require_that(known and single, data, member, "its trials' names")


def _require_trial(
    name: str, trial: Any, trials: Mapping[str, Any], space: Space, *, epochs: int
) -> None:
    where = f"trials.{name[:20]}."
    if not _NAME.fullmatch(name) or not isinstance(trial, dict):
        raise ContractError(f"{where[:-1]}: no trial of a number")
    require_kinds(trial, _TRIAL, where=where)
    require_that(trial["trial_id"] == name, trial, "trial_id", name, where=where)
    scored = trial["score"] is not None or trial["status"] != _COMPLETED
    require_that(scored, trial, "score", "a number", where=where)
    require_kinds(trial["hyperparameters"], {"values": dict}, where=f"{where}hyperparameters.")
    values, where = trial["hyperparameters"]["values"], f"{where}hyperparameters.values."
    if epochs:
        require_kinds(values, {**_ROUND, "tuner/epochs": Within(int, 1, epochs)}, where=where)
        before = values.get("tuner/trial_id")
        known = before is None or (isinstance(before, str) and before in trials)
        require_that(known, values, "tuner/trial_id", "a trial's name", where=where)
    rounds = {*_ROUND, "tuner/epochs", "tuner/trial_id"} if epochs else set()
    for key in values.keys() - rounds:
        require_that(space.has(key, values[key]), values, key, "a choice of the space", where=where)
    try:
        space.complete(values)
    except KeyError as error:
        raise ContractError(f"{where}{error.args[0]} is missing") from error


def _require_rounds(data: Mapping[str, Any], rounds: Sequence[int]) -> None:
    number = Within(int, 0, len(rounds) - 1)
    require_kinds(data, {"current_bracket": number, "current_iteration": _NUMBER})
    for place, bracket in enumerate(objects_of(data, "brackets")):
        where = f"brackets[{place}]."
        require_kinds(
            bracket, {"bracket_num": number, "number": str, "rounds": ListOf(list)}, where=where
        )
        fits = len(bracket["rounds"]) == rounds[bracket["bracket_num"]]
        require_that(
            fits, bracket, "rounds", f"{rounds[bracket['bracket_num']]} rounds", where=where
        )
        for infos in bracket["rounds"]:
            for info in objects_of({"rounds": infos}, "rounds", where=where):
                require_kinds(info, {"id": str, "past_id": str | None}, where=f"{where}rounds.")
                for key in ("id", "past_id"):
                    known = info[key] is None or info[key] in data["trials"]
                    require_that(known, info, key, "a trial's name", where=f"{where}rounds.")
