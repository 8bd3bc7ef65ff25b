"""Members' held-out predictions taken together: one score a patient, so that n is honest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import metrics_of
from trainer.metrics.wording import summary_line


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What one member predicts for the fold it did not see, in one order (n,).

    Attributes:
      fold: held out.
      seed: of the member.
      patients: ids, or whatever tells patients apart.
      labels: 0 or 1.
      logits: the scores.
      details: what else is reported of the member.
    """

    fold: int
    seed: int
    patients: Sequence[Any]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def pooled(members: Sequence[Scored]) -> dict[str, Any]:
    """Metrics over all patients; a patient's score is the mean logit over the members."""
    labels: dict[Any, int] = {}
    logits: dict[Any, list[float]] = {}
    for member in members:
        columns = (member.patients, member.labels.tolist(), member.logits.tolist())
        for patient, label, logit in zip(*columns, strict=True):
            labels[patient] = label
            logits.setdefault(patient, []).append(logit)
    return metrics_of(
        np.array(list(labels.values())), np.array([np.mean(logits[name]) for name in labels])
    )


def metrics_of_members(members: Sequence[Scored]) -> dict[str, Any]:
    """All patients together, each fold's members and each seed."""
    return {
        **pooled(members),
        "folds": [
            {
                "fold": member.fold,
                "seed": member.seed,
                **member.details,
                **metrics_of(member.labels, member.logits),
            }
            for member in members
        ],
        "seeds": [
            {"seed": seed, **pooled([member for member in members if member.seed == seed])}
            for seed in sorted({member.seed for member in members})
        ],
    }


def summary_rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`metrics_of_members`' object for the terminal: each fold, the seeds' spread, and all.

    Yields:
      (name, text) of a row.
    """
    several = len(metrics["seeds"]) > 1
    for fold in metrics["folds"]:
        seed = f", seed {fold['seed']}" if several else ""
        epoch = f", epoch {fold['best_epoch']} of {fold['epochs']}" if "epochs" in fold else ""
        yield f"fold {fold['fold']}", f"{summary_line(fold)}{seed}{epoch}"
    if several:
        each = [seed["auc"] for seed in metrics["seeds"]]
        alone = f"alone: AUC {min(each):.2f} to {max(each):.2f}"
        yield "seeds", f"{alone}; below, a patient's score is the mean over seeds"
    yield "out of fold", summary_line(metrics)
