"""What a task's answers are worth in one number, and what they cost: for epochs and searches.

Answers are what the networks give: a logit (n,) of a binary, a logit a class (n, classes), a logit
a label (n, labels), or a value (n,) in the label's unit; truth is as `data.targets.truth_of` has
it. Intervals and claims are not made here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.target import Target
from trainer.metrics.auc import Floats, auc, midranks
from trainer.metrics.logits import log_loss

_DIGITS = 9  # of log odds: what rounding leaves apart is tied

Score = Callable[[npt.NDArray[Any], Floats], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """How a task's answers are scored.

    Attributes:
      task: one of `target.TASKS`.
      name: as a column or a member of JSON has it: "auc", "macro_auc", "mean_auc", "spearman".
      title: for people.
      chance: the score without signal; 1 is the best of all.
      least: the worst score.
      score: (truth, answers) → the score. Raises ValueError where it cannot be measured.
      loss: (truth, answers) → mean loss of a patient: log loss, of regression the mean absolute
        error in the label's unit.
    """

    task: str
    name: str
    title: str
    chance: float
    least: float
    score: Score
    loss: Score

    @property
    def key(self) -> str:
        """Where a score by it stands in JSON and in tables: "auc" of a binary, else "score"."""
        return "auc" if self.task == "binary" else "score"


def macro_auc(truth: npt.NDArray[Any], logits: Floats) -> float:
    """Mean over the classes of the AUC of one class against the rest, by its `log_odds`.

    Raises:
      ValueError: a class is absent.
    """
    odds = log_odds(logits)
    return float(np.mean([auc(truth == one, odds[:, one]) for one in range(odds.shape[1])]))


def mean_auc(truth: npt.NDArray[Any], logits: Floats) -> float:
    """Mean over the labels of their AUCs, each over the patients of whom it is known.

    Raises:
      ValueError: of a label all known patients are of one kind.
    """
    areas = []
    for known, column, values in zip(~np.isnan(truth.T), truth.T, logits.T, strict=True):
        areas.append(auc(column[known].astype(np.int64), values[known]))
    return float(np.mean(areas))


def spearman(truth: npt.NDArray[Any], values: Floats) -> float:
    """Spearman's rank correlation; 0 where all values are the same, as of an AUC ties count half.

    Raises:
      ValueError: fewer than two patients, or all labels are the same.
    """
    if len(truth) < 2 or np.ptp(truth) == 0:
        raise ValueError("a rank correlation needs two patients whose labels differ")
    if np.ptp(values) == 0:
        return 0.0
    return float(np.corrcoef(midranks(truth), midranks(values))[0, 1])


def softmax(logits: Floats) -> Floats:
    """Probabilities of the classes, (n, classes) float64, without overflow."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    found: Floats = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
    return found


def log_odds(logits: npt.ArrayLike) -> Floats:
    """Of each class its logit against all others together, (..., classes) float64.

    Patients rank by it as by the class's probability, and still do where that rounds to 1. Finite
    for finite logits; of NaN NaN.
    """
    wide = np.asarray(logits, np.float64)
    top = wide.argmax(axis=-1)[..., np.newaxis]
    best, others = np.take_along_axis(wide, top, axis=-1), wide.copy()
    np.put_along_axis(others, top, -np.inf, axis=-1)
    with np.errstate(invalid="ignore"):  # a repeat may lack patients
        below = np.logaddexp.reduce(others, axis=-1, keepdims=True)
        logs = wide - np.logaddexp(below, best)
    np.put_along_axis(logs, top, -1.0, axis=-1)
    found = logs - np.log1p(-np.exp(logs))  # of probabilities up to a half
    np.put_along_axis(found, top, best - below, axis=-1)
    rounded: Floats = np.round(found, _DIGITS)
    return rounded


def softmax_log_loss(truth: npt.NDArray[Any], logits: Floats) -> float:
    """Mean of `softmax_log_losses`."""
    return float(np.mean(softmax_log_losses(truth, logits)))


def softmax_log_losses(truth: npt.NDArray[Any], logits: Floats) -> Floats:
    """Negative log likelihood of each true class in nats, (n,), finite for finite (n, classes)."""
    wide = np.asarray(logits, np.float64)
    found: Floats = np.logaddexp.reduce(wide, axis=1) - wide[np.arange(len(truth)), truth]
    return found


def labels_log_loss(truth: npt.NDArray[Any], logits: Floats) -> float:
    """Mean over labels of their log loss, each over the patients of whom it is known."""
    losses = []
    for known, column, values in zip(~np.isnan(truth.T), truth.T, logits.T, strict=True):
        if known.any():
            losses.append(log_loss(column[known].astype(np.int64), values[known]))
    return float(np.mean(losses))


def absolute_error(truth: npt.NDArray[Any], values: Floats) -> float:
    """Mean absolute error in the label's unit."""
    return float(np.mean(np.abs(np.asarray(values, np.float64) - truth)))


_MEASURES = {
    "binary": Measure(
        task="binary",
        name="auc",
        title="AUC",
        chance=0.5,
        least=0.0,
        score=auc,
        loss=log_loss,
    ),
    "multiclass": Measure(
        task="multiclass",
        name="macro_auc",
        title="macro AUC",
        chance=0.5,
        least=0.0,
        score=macro_auc,
        loss=softmax_log_loss,
    ),
    "multilabel": Measure(
        task="multilabel",
        name="mean_auc",
        title="mean AUC",
        chance=0.5,
        least=0.0,
        score=mean_auc,
        loss=labels_log_loss,
    ),
    "regression": Measure(
        task="regression",
        name="spearman",
        title="Spearman correlation",
        chance=0.0,
        least=-1.0,
        score=spearman,
        loss=absolute_error,
    ),
}


def measure_of(target: Target) -> Measure:
    """How answers of this target are scored."""
    return _MEASURES[target.task]


# Names of the measures of tasks other than the binary.
TASK_MEASURES = tuple(one.name for one in _MEASURES.values() if one.task != "binary")


def measure_named(name: str) -> Measure:
    """The measure that columns and JSON call so: "macro_auc"."""
    (found,) = (one for one in _MEASURES.values() if one.name == name)
    return found
