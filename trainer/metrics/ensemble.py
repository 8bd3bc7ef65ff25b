"""Members' held-out predictions taken together: patients count once, so that n is honest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.wording import score_of, summary_line, title_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What one member predicts for the fold it did not see, in one order (n,).

    Attributes:
      fold: held out.
      seed: of the member.
      patients: ids, or whatever tells patients apart.
      labels: as `data.targets.truth_of` has them: 0 or 1, or (n, labels) of several.
      logits: the scores; (n, outputs) of classes and findings, and values (n,) of a regression.
      details: what else is reported of the member.
    """

    fold: int
    seed: int
    patients: Sequence[Any]
    labels: npt.NDArray[Any]
    logits: npt.NDArray[np.float64]
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def pooled(
    members: Sequence[Scored], target: Target = PLAIN, *, no_claim: Sequence[str] = ()
) -> dict[str, Any]:
    """`estimate_of_task` over all patients, each seed a repeat."""
    labels: dict[Any, Any] = {}
    folds: dict[Any, int] = {}
    logits: dict[int, dict[Any, Any]] = {}
    for member in members:
        columns = (member.patients, member.labels.tolist(), member.logits.tolist())
        for patient, label, logit in zip(*columns, strict=True):
            labels[patient], folds[patient] = label, member.fold
            logits.setdefault(member.seed, {})[patient] = logit
    one_each = target.task in ("binary", "regression")
    lacking = np.nan if one_each else [np.nan] * target.outputs
    return estimate_of_task(
        target,
        np.array(list(labels.values())),
        np.array([[of.get(patient, lacking) for patient in labels] for of in logits.values()]),
        folds=np.array([folds[patient] for patient in labels]),
        no_claim=no_claim,
    )


def metrics_of_members(
    members: Sequence[Scored], target: Target = PLAIN, *, no_claim: Sequence[str] = ()
) -> dict[str, Any]:
    """`estimate_of_task` all patients; of each fold's members alone; and of each seed.

    Args:
      members: all of a run.
      target: what labels say.
      no_claim: reasons why the scores allow no claim (`wording.REASONS`).

    Raises:
      ValueError: as `estimate_of_task`.
    """
    return {
        **pooled(members, target, no_claim=no_claim),
        "folds": [
            {
                "fold": member.fold,
                "seed": member.seed,
                **member.details,
                **estimate_of_task(target, member.labels, member.logits, no_claim=no_claim),
            }
            for member in members
        ],
        "seeds": [
            {
                "seed": seed,
                **pooled([one for one in members if one.seed == seed], target, no_claim=no_claim),
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
        each = [score_of(seed) for seed in metrics["seeds"]]
        alone = f"alone: {title_of(metrics)} {min(each):.2f} to {max(each):.2f}"
        yield "seeds", f"{alone}; below, their mean"
    yield "out of fold", summary_line(metrics)
