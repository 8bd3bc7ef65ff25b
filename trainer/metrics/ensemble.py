"""Members' held-out predictions taken together: patients count once, so that n is honest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.estimate import estimate_of
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


def pooled(members: Sequence[Scored], *, no_claim: Sequence[str] = ()) -> dict[str, Any]:
    """`estimate_of` over all patients, each seed a repeat."""
    labels: dict[Any, int] = {}
    folds: dict[Any, int] = {}
    logits: dict[int, dict[Any, float]] = {}
    for member in members:
        columns = (member.patients, member.labels.tolist(), member.logits.tolist())
        for patient, label, logit in zip(*columns, strict=True):
            labels[patient], folds[patient] = label, member.fold
            logits.setdefault(member.seed, {})[patient] = logit
    return estimate_of(
        np.array(list(labels.values())),
        np.array([[of.get(patient, np.nan) for patient in labels] for of in logits.values()]),
        folds=np.array([folds[patient] for patient in labels]),
        no_claim=no_claim,
    )


def metrics_of_members(
    members: Sequence[Scored], *, no_claim: Sequence[str] = ()
) -> dict[str, Any]:
    """`estimate_of` all patients; of each fold's members alone; and of each seed.

    Args:
      members: all of a run.
      no_claim: reasons why the scores allow no claim (`wording.REASONS`).

    Raises:
      ValueError: as `estimate_of`.
    """
    return {
        **pooled(members, no_claim=no_claim),
        "folds": [
            {
                "fold": member.fold,
                "seed": member.seed,
                **member.details,
                **estimate_of(member.labels, member.logits, no_claim=no_claim),
            }
            for member in members
        ],
        "seeds": [
            {
                "seed": seed,
                **pooled([one for one in members if one.seed == seed], no_claim=no_claim),
            }
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
        epoch = f", epoch {fold['epoch']} of {fold['epochs']}" if "epoch" in fold else ""
        yield f"fold {fold['fold']}", f"{summary_line(fold)}{seed}{epoch}"
    if several:
        each = [seed["auc"] for seed in metrics["seeds"]]
        alone = f"alone: AUC {min(each):.2f} to {max(each):.2f}"
        yield "seeds", f"{alone}; below, their mean"
    yield "out of fold", summary_line(metrics)
