"""A study's directory: what was asked, every finished trial once, and the best one. No TensorFlow.

study/
  study.json                  what was asked, of which dataset; written first
  oracle.json                 KerasTuner's state, what a restart goes on from
  trials/07/                  a trial (`trainer.search.trial`); its result.json marks it finished
  trials.csv                  a row a finished trial, written anew after each
  best_hyperparameters.json   settings of the best trial: `trainer.task --hyperparameters` takes it
  report.html                 the search's picture
  logs/07/                    TensorBoard: HParams, and the curves of every trial
  workers/                    signs of life of the processes that share the study

Everything that is told of trials is read from their result.json: a search that is killed loses what
was not finished, and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.json_file import read_json, write_json
from trainer.search.trial import (
    COMPLETED,
    FAILED,
    REQUEST_NAME,
    RESULT_NAME,
    Request,
    forget_networks,
)
from trainer.training.run_files import differences, locked

FORMAT = "voxelbeam-study"
STUDY_NAME, TRIALS_NAME, BEST_NAME = "study.json", "trials.csv", "best_hyperparameters.json"
REPORT_NAME = "report.html"
PRUNED = "pruned"
_COLUMNS = ("trial", "status", "reason", "objective", "interval_low", "interval_high")
_AFTER = ("epochs", "batch_size_used", "seconds", "parameters")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A finished trial.

    Attributes:
      trial: its id.
      status: "completed"; "pruned", where a search in rounds did not go on with it; "failed".
      reason: why it was pruned or failed, stopped early or took a smaller batch; else empty.
      objective: mean AUC; None where it failed.
      interval: its confidence interval.
      values: hyperparameters.
      config: settings, as `TrainConfig` writes them.
      result: result.json.
    """

    trial: str
    status: str
    reason: str
    objective: float | None
    interval: tuple[float, float] | None
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def order(self) -> tuple[float, float, int]:
        """Greater is better: the objective; of equal ones the last epochs'; then the earlier."""
        assert self.objective is not None
        return self.objective, self.result.get("last_epoch") or 0.0, -int(self.trial)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's directory.

    Attributes:
      directory: where it lies.
    """

    directory: Path

    def trial(self, name: str) -> Path:
        """Directory of a trial."""
        return self.directory / "trials" / name

    @property
    def is_over(self) -> bool:
        """Whether no trial is left, as its chief has said."""
        file = self.directory / STUDY_NAME
        return file.is_file() and bool(read_json(file).get("finished"))

    def finish(self) -> None:
        """Says that no trial is left."""
        file = self.directory / STUDY_NAME
        write_json(file, {**read_json(file), "finished": True})

    def rows(self, *, finished: bool = False) -> list[FinishedTrial]:
        """Every finished trial once, in order.

        Args:
          finished: the search is over: what has not gone on to a next round never will.
        """
        requests: dict[str, Request] = {}
        for file in sorted(self.directory.glob(f"trials/*/{REQUEST_NAME}")):
            request = Request.load(file)
            requests[request.trial] = request
        results = {
            name: read_json(self.trial(name) / RESULT_NAME)
            for name in sorted(requests, key=int)
            if (self.trial(name) / RESULT_NAME).is_file()
        }
        rows = []
        for name, result in results.items():
            request = requests[name]
            status, reason = result["status"], result.get("reason", "")
            if status == COMPLETED:
                pruned = _pruned(name, requests, results, finished=finished)
                status = PRUNED if pruned else COMPLETED
                reason = "; ".join(filter(None, [reason, pruned or _early(request, result)]))
            interval = result.get("interval")
            rows.append(
                FinishedTrial(
                    trial=name,
                    status=status,
                    reason=reason,
                    objective=result.get("objective"),
                    interval=None if interval is None else (interval[0], interval[1]),
                    values=request.values,
                    config=request.config,
                    result=result,
                )
            )
        return rows

    def write(self, names: Sequence[str], *, finished: bool = False) -> list[FinishedTrial]:
        """Writes trials.csv and best_hyperparameters.json; gives the rows.

        Networks of trials that are not the best so far are removed: they are many and large.

        Args:
          names: of the hyperparameters, the columns.
          finished: the search is over.
        """
        rows = self.rows(finished=finished)
        table = []
        for row in rows:
            told, (low, high) = row.result, row.interval or (None, None)
            table.append(
                [row.trial, row.status, row.reason, row.objective, low, high]
                + [row.values.get(name) for name in names]
                + [told.get("epochs"), told.get("batch_size")]
                + [told.get("seconds"), told.get("parameters")]
            )
        write_table(self.directory / TRIALS_NAME, [*_COLUMNS, *names, *_AFTER], table)
        best = best_of(rows)
        if best is not None:
            write_json(self.directory / BEST_NAME, best.config)
            for row in rows:
                if row is not best:
                    forget_networks(self.trial(row.trial))
        return rows


def best_of(rows: Sequence[FinishedTrial]) -> FinishedTrial | None:
    """The trial with the greatest objective; None where none has one."""
    ranked = ranking(rows)
    return ranked[0] if ranked else None


def ranking(rows: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Trials that have an objective, the best first."""
    return sorted((r for r in rows if r.objective is not None), key=lambda r: r.order, reverse=True)


def caveat(rows: Sequence[FinishedTrial]) -> str:
    """What must be said beside the best trial's AUC."""
    n = len(ranking(rows))
    chosen = f"the best of {n} trials" if n > 1 else "of the only trial that has one"
    return (
        f"This AUC is {chosen}, chosen on the same folds that measured it, and its epochs were "
        "chosen on them too: it is optimistic. Expect less on new patients; the interval knows "
        "nothing of this choice."
        if n > 1
        else f"This AUC is {chosen}; its epochs were chosen on the same patients that measured "
        "it: it is optimistic."
    )


@contextlib.contextmanager
def claimed(directory: Path, asked: Mapping[str, Any], max_trials: int) -> Iterator[Study]:
    """Takes a directory for a study, or goes on with the same study, and keeps others out.

    More trials may be asked for than before; all else must be the same.

    Args:
      directory: made when it does not exist.
      asked: what tells this study from another, as JSON.
      max_trials: at most so many.

    Raises:
      UsageError: the directory holds something that is not a study.
      ContractError: it holds a study of other settings, or another search works there.
    """
    file = directory / STUDY_NAME
    if directory.exists():
        found = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
        if found and not file.is_file() and found != ["workers"]:
            raise UsageError(f"{directory}: not empty and not a study; choose another --output_dir")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(directory))
        except ContractError as error:
            raise ContractError(f"{directory}: another search works on this study") from error
        over = False
        if file.is_file():
            before = read_json(file)
            over = bool(before.get("finished")) and max_trials <= before.get("max_trials", 0)
            if differing := differences(settings_of(directory), asked):
                raise ContractError(
                    f"{directory} holds another study ({differing}); choose another --output_dir"
                )
        write_json(
            file, {"format": FORMAT, "asked": asked, "max_trials": max_trials, "finished": over}
        )
        yield Study(directory)


def settings_of(directory: Path) -> dict[str, Any]:
    """What a study was asked for.

    Raises:
      ContractError: study.json is not ours.
    """
    data = read_json(directory / STUDY_NAME)
    if data.get("format") != FORMAT or not isinstance(data.get("asked"), dict):
        raise ContractError(f"{directory / STUDY_NAME}: not a study's settings")
    asked: dict[str, Any] = data["asked"]
    return asked


def _pruned(
    name: str,
    requests: Mapping[str, Request],
    results: Mapping[str, Mapping[str, Any]],
    *,
    finished: bool,
) -> str:
    """Why a search in rounds did not go on with a trial; empty where it did, or may still do."""
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
        return results.get(other, {}).get("objective") or 0.0

    # Of equal ones those that went on come first: some had to.
    before = {o for o in same if score(o) > score(name)}
    before |= {o for o in promoted if score(o) == score(name)}
    why = f"{len(promoted)} went on" if promoted else "the search ended before its next round"
    epochs = f"{own['epochs']} epoch{'' if own['epochs'] == 1 else 's'}"
    return (
        f"pruned after {epochs}: rank {len(before) + 1} of {len(same & results.keys())} "
        f"in its round, {why}"
    )


def _early(request: Request, result: Mapping[str, Any]) -> str:
    """Says that every network stopped before its last epoch."""
    epochs, asked = result.get("epochs"), request.config["epochs"]
    if epochs is None or epochs >= asked:
        return ""
    return (
        f"early stop after {epochs} of {asked} epochs: no better validation AUC in "
        f"{request.config['patience']}"
    )


__all__ = ["FAILED", "PRUNED", "FinishedTrial", "Study", "best_of", "caveat", "claimed", "ranking"]
