"""A study's directory: what was requested, every finished trial once, and the best. No TensorFlow.

study/
  study.json                  what was requested, of which dataset; written first
  oracle.json                 KerasTuner's state, what a restart resumes from
  trials/07/                  a trial (`trainer.search.trial`); its result.json marks it finished
  trials.csv                  a row a finished trial, written anew after each
  best_hyperparameters.json   settings of the best trial: `trainer.task --hyperparameters` takes it;
                              their provenance says whose patients the trials have seen
  outer/                      with an outer fold: the run that scores it (`trainer.search.outer`)
  report.html                 the search's picture
  logs/07/                    TensorBoard: HParams, and the curves of every trial
  workers/                    heartbeats of the processes that share the study

It may lie in a store; a trial is then made on a disk and arrives whole. What is said of trials is
read from their result.json: a search that is killed loses what was not finished, nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from beam_jobs.common.contract_json import ContractError, Kind, OneOf, Within, require_kinds
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json, write_json
from trainer.config.provenance import PROVENANCE, SEARCHED
from trainer.config.stack import TENSORFLOW, noted_stack, require_same_stack
from trainer.metrics.stored import MOST
from trainer.search.trial import (
    COMPLETED,
    REQUEST_NAME,
    RESULT_NAME,
    Request,
    disposable,
    read_if_there,
    read_result,
)
from trainer.training.claim import LOCK_NAME, differences, marker_of, require_no_links

FORMAT = "voxelbeam-study"
STUDY_NAME, TRIALS_NAME = "study.json", "trials.csv"
SETTINGS_NAME = "best_hyperparameters.json"
WORKERS = "workers"
OUTER = "outer"
TRIALS, LOGS = "trials", "logs"
_OWN_FOLDER = re.compile(rf"(?:{TRIALS}|{LOGS}|{WORKERS}|{OUTER}(?:-[0-9]+)?)/")
PRUNED = "pruned"
_KINDS: dict[str, Kind] = {
    **{"format": OneOf((FORMAT,)), "asked": dict, "finished": bool},
    "max_trials": Within(int, 1, MOST),
}
_COLUMNS = ("trial", "status", "reason", "objective", "no_claim")
_SCORE = (
    *("auc", "auc_interval", "level", "n", "positive", "p_value"),
    *("better_than_chance", "worse_than_chance"),
)
_SCORE_OF_TASK = (
    *("score", "interval", "level", "n", "counts", "p_value"),
    *("better_than_chance", "worse_than_chance"),
)
_ELSEWHERE = "choose another --output_dir"
_AFTER = ("epochs", "batch_size_used", "seconds", "parameters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A finished trial.

    Attributes:
      trial: its id.
      status: "completed"; "pruned", where a search in rounds did not promote it; "failed".
      reason: why it was pruned or failed or took a smaller batch; else empty.
      objective: mean AUC, or another task's score; None where it failed.
      values: hyperparameters.
      config: settings, as `TrainConfig` writes them.
      result: result.json.
    """

    trial: str
    status: str
    reason: str
    objective: float | None
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def order(self) -> tuple[float, int]:
        """Greater is better: the objective; of equal ones the earlier."""
        assert self.objective is not None
        return self.objective, -int(self.trial)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's directory.

    Attributes:
      directory: where it lies.
      require: refuses to work on where another search has taken the study over.
    """

    directory: str
    require: Callable[[], None] = lambda: None

    def trial(self, name: str) -> str:
        """Directory of a trial.

        Raises:
          ContractError: no name of a directory, where it was read from a file.
        """
        return files.member(files.join(self.directory, TRIALS), name)

    def logs(self, name: str) -> str:
        """Directory of a trial's TensorBoard files; raises as `trial`."""
        return files.member(files.join(self.directory, LOGS), name)

    @property
    def is_over(self) -> bool:
        """Whether no trial is left, as its chief has said."""
        found = _read(files.join(self.directory, STUDY_NAME))
        return found is not None and bool(found["finished"])

    def finish(self) -> None:
        """Says that no trial is left."""
        file = files.join(self.directory, STUDY_NAME)
        write_json(file, {**read_json(file), "finished": True})

    def keep_outer(self, metrics: Mapping[str, Any], **more: Any) -> None:
        """Puts the score of patients that stand in no trial into study.json.

        Args:
          metrics: `estimate_of`'s object.
          more: what else is said of it.
        """
        file = files.join(self.directory, STUDY_NAME)
        names = (*(_SCORE if "auc" in metrics else _SCORE_OF_TASK), *more)
        score = {name: {**metrics, **more}[name] for name in names}
        write_json(file, {**read_json(file), OUTER: score})

    def rows(self, *, finished: bool = False) -> list[FinishedTrial]:
        """Every finished trial once, in order.

        Args:
          finished: the search is over: what was not promoted to a next round never will be.
        """
        return self._rows(self.trial_files(), finished=finished)

    def trial_files(self) -> dict[str, list[str]]:
        """Trial → the paths of its files below its directory; trials in their order."""
        found: dict[str, list[str]] = {}
        root = files.join(self.directory, TRIALS, "")
        if files.is_dir(root):
            for entry in files.entries(root):
                name, _, path = entry.path.removeprefix(root).partition("/")
                found.setdefault(name, []).append(path)
        names = sorted((name for name in found if name.isascii() and name.isdigit()), key=int)
        return {name: found[name] for name in names}

    def _rows(self, trials: Mapping[str, list[str]], *, finished: bool) -> list[FinishedTrial]:
        requests = {
            name: self._request(name, there)
            for name, there in trials.items()
            if REQUEST_NAME in there or RESULT_NAME in there
        }
        found = {
            name: read_result(files.join(self.trial(name), RESULT_NAME))
            for name in requests
            if RESULT_NAME in trials[name]
        }
        results = {name: result for name, result in found.items() if result is not None}
        rows = []
        for name, result in results.items():
            request = requests[name]
            status, reason = result["status"], result.get("reason", "")
            if status == COMPLETED:
                pruned = _pruned(name, requests, results, finished=finished)
                status = PRUNED if pruned else COMPLETED
                reason = "; ".join(filter(None, [reason, pruned]))
            rows.append(
                FinishedTrial(
                    trial=name,
                    status=status,
                    reason=reason,
                    objective=result.get("objective"),
                    values=request.values,
                    config=request.config,
                    result=result,
                )
            )
        return rows

    def _request(self, name: str, there: Sequence[str]) -> Request:
        try:
            return Request.load(files.join(self.trial(name), REQUEST_NAME))
        except (ContractError, FileNotFoundError) as error:
            if not isinstance(error, ContractError):
                error = ContractError(f"{files.join(self.trial(name), REQUEST_NAME)}: no such file")
            finished = "put it back: the trial's result is nobody's without it"
            hint = finished if RESULT_NAME in there else "delete it, the trial is run again"
            raise ContractError(f"{error}; {hint}") from error

    def write(
        self, names: Sequence[str], provenance: Mapping[str, Any], *, finished: bool = False
    ) -> list[FinishedTrial]:
        """Writes trials.csv and best_hyperparameters.json; gives the rows.

        Networks of trials that are not the best so far are removed: they are many and large.

        Args:
          names: of the hyperparameters, the columns.
          provenance: what best_hyperparameters.json says of the study beside trials and best score.
          finished: the search is over.
        """
        self.require()
        trials = self.trial_files()
        rows = self._rows(trials, finished=finished)
        table = []
        scored = len(ranking(rows))
        after = [name for name in _AFTER if name not in names]
        for row in rows:
            result = row.result
            table.append(
                [row.trial, row.status, row.reason, row.objective]
                + ["" if row.objective is None or scored < 2 else SEARCHED]
                + [row.values.get(name) for name in names]
                + [result.get(name.removesuffix("_used")) for name in after]
            )
        file = files.join(self.directory, TRIALS_NAME)
        write_table(file, [*_COLUMNS, *names, *after], table)
        best = best_of(rows)
        if best is not None:
            # `fold` and `outer_fold` are the search's, not of what it found.
            settings = {k: v for k, v in best.config.items() if k not in ("fold", "outer_fold")}
            score = "auc" if provenance.get("objective", "val_auc") == "val_auc" else "score"
            told = {**provenance, "trials": scored, score: best.objective}
            file = files.join(self.directory, SETTINGS_NAME)
            write_json(file, {**settings, PROVENANCE: told})
            files.delete(
                files.join(self.trial(row.trial), name)
                for row in rows
                if row is not best
                for name in disposable(trials[row.trial])
            )
        return rows


def best_of(rows: Sequence[FinishedTrial]) -> FinishedTrial | None:
    """The trial with the greatest objective; None where none has one."""
    ranked = ranking(rows)
    return ranked[0] if ranked else None


def ranking(rows: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Trials that have an objective, the best first."""
    return sorted((r for r in rows if r.objective is not None), key=lambda r: r.order, reverse=True)


def caveat(rows: Sequence[FinishedTrial], title: str = "AUC") -> str:
    """What must be said beside the best trial's objective, which is called so."""
    n = len(ranking(rows))
    if n < 2:
        return (
            f"The best trial's {title} is of the only one that has any: nothing was chosen by it."
        )
    return (
        f"The best trial's {title} is the best of {n}, chosen on the same folds that measured it: "
        "it is optimistic. Expect less on new patients."
    )


def optimistic(rows: Sequence[FinishedTrial]) -> str:
    """What follows the best trial's objective wherever it stands; nothing where none was chosen."""
    return ", optimistic" if len(ranking(rows)) > 1 else ""


@contextlib.contextmanager
def claimed(directory: str, request: Mapping[str, Any], max_trials: int) -> Iterator[Study]:
    """Takes a directory for a study, or resumes the same study, and keeps others out.

    More trials may be requested than before; all else must be the same.

    Args:
      directory: local or in a store; made when it does not exist.
      request: what tells this study from another, as JSON.
      max_trials: at most so many.

    Raises:
      UsageError: the directory holds something that is not a study, or cannot be written to.
      ContractError: it holds a study of other settings, or one whose outer fold has been scored
        after fewer trials, or one that is not done and that another TensorFlow has begun.
      LockedError: another search works there.
    """
    # Before a lock is put there.
    marker_of(directory, STUDY_NAME, kind="study", spared=WORKERS)
    require_no_links(directory, lambda name: _OWN_FOLDER.match(name) is not None, address=directory)
    file = files.join(directory, STUDY_NAME)
    message = f"{directory}: another search works on this study"
    with files.lock(files.join(directory, LOCK_NAME), message, wait=True) as lock:
        over, kept, stack = False, {}, noted_stack()
        before = _read(file)
        if before is not None:
            more = max_trials > before["max_trials"]
            # A trial whose result was deleted is to be run again, a search that is over or not.
            over = bool(before["finished"]) and not more and not _unfinished(directory)
            if differing := differences(before["asked"], request):
                raise ContractError(f"{directory} holds another study ({differing}); {_ELSEWHERE}")
            if before["finished"] and more and request.get("outer_fold") is not None:
                raise ContractError(
                    f"{directory}: the outer fold was scored after {before['max_trials']} trials; "
                    f"more would be chosen by who knows its score: {_ELSEWHERE}"
                )
            if before["finished"] and not more and OUTER in before:
                kept = {OUTER: before[OUTER]}
            begun = (f"{TRIALS}/", f"{OUTER}-")
            if any(name.startswith(begun) for name in files.tree(directory)):
                if not over or (request.get("outer_fold") is not None and not kept):
                    require_same_stack(before, directory, otherwise=_ELSEWHERE)
                stack = {TENSORFLOW: before[TENSORFLOW]} if TENSORFLOW in before else {}
        state = {"asked": request, "max_trials": max_trials, "finished": over, **stack}
        write_json(file, {"format": FORMAT, **state, **kept})
        yield Study(directory, lock.require)


def _unfinished(directory: str) -> bool:
    """Whether a trial has no result."""
    return any(RESULT_NAME not in there for there in Study(directory).trial_files().values())


def settings_of(directory: str) -> dict[str, Any]:
    """The request of a study, for who is to work on it.

    Raises:
      ContractError: study.json is not ours, or another TensorFlow has begun it.
    """
    file = files.join(directory, STUDY_NAME)
    if (found := _read(file)) is None:
        raise ContractError(f"{file}: no such file")
    require_same_stack(found, directory, otherwise=_ELSEWHERE)
    request: dict[str, Any] = found["asked"]
    return request


def _read(file: str) -> dict[str, Any] | None:
    """study.json; None where there is none.

    Raises:
      ContractError: it is not ours; the message names the member.
    """
    found = read_if_there(file)
    if found is not None:
        try:
            require_kinds(found, _KINDS)
            require_kinds(found, {OUTER: dict} if OUTER in found else {})
        except ContractError as error:
            raise ContractError(f"{file}: not a study's settings: {error}") from error
    return found


def _pruned(
    name: str,
    requests: Mapping[str, Request],
    results: Mapping[str, Mapping[str, Any]],
    *,
    finished: bool,
) -> str:
    """Why a search in rounds did not promote a trial; empty where it did, or may still do."""
    own = requests[name].round
    if not own or not own["next"] or any(r.round.get("from") == name for r in requests.values()):
        return ""
    same = {
        other
        for other, request in requests.items()
        if request.round and all(request.round[k] == own[k] for k in ("bracket", "round"))
    }
    promoted = {o for o in same if any(r.round.get("from") == o for r in requests.values())}
    if not finished and len(promoted) < own["next"]:
        return ""

    def score(other: str) -> float:
        found = results.get(other, {}).get("objective")
        return -math.inf if found is None else float(found)

    # Of equal ones those that were promoted come first: some had to be.
    before = {o for o in same if score(o) > score(name)}
    before |= {o for o in promoted if score(o) == score(name)}
    why = f"{len(promoted)} promoted" if promoted else "the search ended before its next round"
    epochs = f"{own['epochs']} epoch{'' if own['epochs'] == 1 else 's'}"
    return (
        f"pruned after {epochs}: rank {len(before) + 1} of {len(same & results.keys())} "
        f"in its round, {why}"
    )
