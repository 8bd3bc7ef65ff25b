"""One trial of a search: what is requested of it, what it gave, and the files that say so.

trials/07/
  request.json       the hyperparameters, and the settings they stand for
  result.json        what the trial gave; its presence marks a trial that is finished
  log.txt            what the trial's processes wrote
  batch-8/           the run, as `trainer.task` leaves it; one a batch size that was tried
  attempt.json       what the process has to say when it ends before there is a result
"""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.json_file import read_json, write_json
from trainer.config.run_layout import OOF_NAME, RUN_NAME
from trainer.metrics.auc import auc, auc_interval
from trainer.training.run_files import LOCK_NAME, Run

REQUEST_NAME, RESULT_NAME, ATTEMPT_NAME = "request.json", "result.json", "attempt.json"
LOG_NAME = "log.txt"
COMPLETED, FAILED = "completed", "failed"
# Why an attempt ended without a result.
MEMORY, DIVERGED, REFUSED, BROKEN = "memory", "diverged", "refused", "broken"
INTERVAL_METHOD = (
    "mean of the folds' AUCs, their Newcombe intervals joined by variance recovery "
    "(Zou and Donner 2008)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a trial is asked for.

    Attributes:
      trial: its id.
      values: hyperparameters, complete.
      config: settings of its runs, resolved, as `TrainConfig` writes them.
      data: the dataset's address.
      dataset_fingerprint: of the dataset the study was begun on.
      folds: held out in turn; the manifest's.
      cache: how records are kept between epochs.
      memory: bytes a trial may take on a device; None is what the machine has.
      logs: where TensorBoard's files go.
      round: of a search in rounds: bracket, round and what it goes on from; else empty.
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
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / REQUEST_NAME, dataclasses.asdict(self))
        return directory / REQUEST_NAME

    @classmethod
    def load(cls, file: Path) -> Request:
        data = read_json(file)
        try:
            return cls(**{**data, "folds": tuple(data["folds"])})
        except (TypeError, KeyError) as error:
            raise ContractError(f"{file}: not a trial's request: {error}") from error


def mean_auc(
    members: Sequence[tuple[int, Sequence[int], Sequence[float]]], level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean over members of the exact AUC, and its confidence interval.

    Folds have different patients, so their estimates are independent: their own intervals are
    joined by variance recovery. Seeds of a fold share its patients: their limits are averaged, as
    if the second seed told nothing about the patients that the first had not.

    Args:
      members: (fold, labels, scores) of each network's held-out patients.
      level: of the interval.

    Source: G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008) 1693-1702.
    """
    by_fold: dict[int, list[tuple[float, float, float]]] = {}
    for fold, labels, scores in members:
        low, high = auc_interval(labels, scores, level)
        by_fold.setdefault(fold, []).append((auc(labels, scores), low, high))
    folds = [
        [sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in by_fold.values()
    ]
    mean = sum(value for value, _, _ in folds) / len(folds)
    below = math.sqrt(sum((value - low) ** 2 for value, low, _ in folds)) / len(folds)
    above = math.sqrt(sum((high - value) ** 2 for value, _, high in folds)) / len(folds)
    return mean, (max(0.0, mean - below), min(1.0, mean + above))


def result_of(run_: Run) -> dict[str, Any]:
    """result.json of a finished run."""
    members: dict[tuple[int, int], tuple[list[int], list[float]]] = {}
    with (run_.directory / OOF_NAME).open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            labels, logits = members.setdefault((int(row["fold"]), int(row["seed"])), ([], []))
            labels.append(int(row["label"]))
            logits.append(float(row["logit"]))
    objective, interval = mean_auc([(fold, *rows) for (fold, _), rows in members.items()])
    folds = run_.metrics["folds"]
    return {
        "status": COMPLETED,
        "objective": objective,
        "interval": list(interval),
        "n": run_.metrics["n"],
        "folds": [
            {name: one[name] for name in ("fold", "seed", "auc", "best_epoch", "epochs")}
            for one in folds
        ],
        "last_epoch": run_.metrics["last_epoch"]["auc"],
        "epochs": max(one["epochs"] for one in folds),
        "batch_size": run_.config["batch_size"],
        "precision": run_.precision,
        "seconds": run_.wall_seconds,
        "config": run_.config,
    }


def forget_networks(directory: Path) -> None:
    """Removes a trial's networks and caches; its predictions, histories and metrics stay."""
    for place in directory.glob("batch-*"):
        if (place / RUN_NAME).is_file():
            for file in [*place.rglob("*.keras"), *place.rglob(LOCK_NAME)]:
                file.unlink(missing_ok=True)
        else:
            shutil.rmtree(place, ignore_errors=True)
