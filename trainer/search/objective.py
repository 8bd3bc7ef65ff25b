"""What a search maximises: the mean AUC of a trial's networks, with its interval."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from beam_jobs.common.files import interface as files
from trainer.config.run_layout import OOF_NAME
from trainer.metrics.auc import auc, auc_interval
from trainer.search.trial import COMPLETED
from trainer.training.run_files import Run


def mean_auc(
    members: Sequence[tuple[int, ArrayLike, ArrayLike]], level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Mean over members of the exact AUC, and its confidence interval.

    Folds have different patients, so their estimates are independent: their own intervals are
    joined by variance recovery. Seeds of a fold share its patients: their limits are averaged, as
    if the second seed knew nothing of the patients that the first did not.

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
    oof = files.read(files.join(run_.directory, OOF_NAME))
    table = pd.read_csv(io.BytesIO(oof), float_precision="round_trip")
    members = [
        (int(rows["fold"].iloc[0]), rows["label"].to_list(), rows["logit"].to_list())
        for _, rows in table.groupby(["fold", "seed"], sort=False)
    ]
    objective, interval = mean_auc(members)
    folds = run_.metrics["folds"]
    return {
        "status": COMPLETED,
        "objective": objective,
        "interval": list(interval),
        "n": run_.metrics["n"],
        "folds": [{name: one[name] for name in ("fold", "seed", "auc", "epoch")} for one in folds],
        "epochs": run_.config["epochs"],
        "batch_size": run_.config["batch_size"],
        "precision": run_.precision,
        "seconds": run_.wall_seconds,
        "config": run_.config,
    }
