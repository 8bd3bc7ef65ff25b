"""One trial of a search: what is requested of it, what it gave, and the files that say so.

trials/07/
  request.json       the hyperparameters, and the settings they stand for
  result.json        what the trial gave; its presence marks a trial that is finished
  log.txt            what the trial's processes wrote
  batch-8/           the run, as `trainer.task` leaves it; one a batch size that was tried
  attempt.json       what the process has to say when it ends before there is a result
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    OneOf,
    Within,
    require_kinds,
    require_known,
)
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json, write_json
from trainer.config.run_layout import RUN_NAME, is_run_file
from trainer.metrics.stored import MOST

REQUEST_NAME, RESULT_NAME, ATTEMPT_NAME = "request.json", "result.json", "attempt.json"
LOG_NAME = "log.txt"
_BATCH = re.compile(r"batch-[0-9]+/")
COMPLETED, FAILED = "completed", "failed"
# Why an attempt ended without a result.
MEMORY, DIVERGED, REFUSED, BROKEN = "memory", "diverged", "refused", "broken"
# Exit code of a trial's process for the first of `files.REFUSALS`; the others' follow.
FIRST_REFUSAL = 80
_NUMBER = Within(int, 0, MOST)
_REQUEST: dict[str, Kind] = {
    **dict.fromkeys(("trial", "data", "dataset_fingerprint", "cache", "logs"), str),
    **dict.fromkeys(("values", "config", "round"), dict),
    "folds": ListOf(_NUMBER, least=1),
    "memory": Within(int, 0, null=True),
}
_ROUND: dict[str, Kind] = {
    **{"bracket": str, "from": str},
    **dict.fromkeys(("round", "epochs", "next"), _NUMBER),
}
_RESULT: dict[str, Kind] = {
    "status": OneOf((COMPLETED, FAILED)),
    "batch_size": Within(int, 1, MOST),
    "seconds": Within(float, 0, MOST),
}
_OF_STATUS: dict[str, dict[str, Kind]] = {
    COMPLETED: {"objective": Within(float, -1, 1), "epochs": Within(int, 1, MOST)},
    FAILED: {"reason": str},
}
_OPTIONAL: dict[str, Kind] = {
    "reason": str,
    "parameters": Within(int, 0),
    "batch_sizes": ListOf(str),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is requested of a trial.

    Attributes:
      trial: its id.
      values: hyperparameters, complete.
      config: settings of its runs, resolved, as `TrainConfig` writes them, and their provenance.
      data: the dataset's address.
      dataset_fingerprint: of the dataset the study was begun on.
      folds: held out in turn; the manifest's.
      cache: how records are kept between epochs.
      memory: bytes a trial may take on a device; None is what the machine has.
      logs: where TensorBoard's files go.
      round: of a search in rounds: bracket, round and what it was promoted from; else empty.
    """

    trial: str
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    data: str
    dataset_fingerprint: str
    folds: tuple[int, ...]
    cache: str
    memory: int | None
    logs: str
    round: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, directory: Path) -> Path:
        """Writes request.json and gives its path."""
        write_json(directory / REQUEST_NAME, dataclasses.asdict(self))
        return directory / REQUEST_NAME

    @classmethod
    def load(cls, file: files.StrPath) -> Request:
        """Reads request.json.

        Raises:
          ContractError: it is not a trial's request.
        """
        data = read_json(file)
        try:
            require_kinds(data, _REQUEST)
            require_known(data, _REQUEST)
            require_kinds(data["config"], {"batch_size": Within(int, 1, MOST)}, where="config.")
            if data["round"]:
                require_kinds(data["round"], _ROUND, where="round.")
        except ContractError as error:
            raise ContractError(f"{file}: {error}") from error
        return cls(**{**data, "folds": tuple(data["folds"])})


def read_result(file: files.StrPath) -> dict[str, Any] | None:
    """A trial's result.json; None where it is not finished.

    Raises:
      ContractError: it is not a trial's result; the message names file and member.
    """
    found = read_if_there(file)
    if found is not None:
        try:
            require_kinds(found, _RESULT)
            require_kinds(found, _OF_STATUS[found["status"]])
            require_kinds(found, {name: _OPTIONAL[name] for name in _OPTIONAL.keys() & found})
        except ContractError as error:
            raise ContractError(f"{file}: {error}; delete it to run the trial again") from error
    return found


def read_if_there(file: files.StrPath) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file.

    Raises:
      ContractError: not a JSON object; the message names the file.
    """
    try:
        return read_json(file)
    except FileNotFoundError:
        return None


def disposable(names: Iterable[str]) -> list[str]:
    """Of a finished trial's files: its networks, and all of the runs that were broken off.

    Args:
      names: paths below the trial's directory.
    """
    every = [name for name in names if _BATCH.match(name) and is_run_file(name.partition("/")[2])]
    finished = {name.partition("/")[0] for name in every if name.endswith(f"/{RUN_NAME}")}
    return [
        name
        for name in every
        if name.endswith((".keras", ".h5")) or name.partition("/")[0] not in finished
    ]
