"""What is measured of several findings beside the headline: calls and probabilities of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats
from trainer.metrics.logits import log_losses, sigmoid
from trainer.metrics.roc_and_calibration import wilson_interval
from trainer.metrics.tasks import evaluation_parts as parts
from trainer.metrics.tasks.spread import Figure, figure, mean_interval, set_by_chance

CALLED = 0  # the logit from which a finding is called present: a probability of 0.5


def findings_figures(
    truth: Floats,
    logits: Floats,
    *,
    folds: npt.ArrayLike | None = None,
    level: float = 0.95,
    factor: float = 1.0,
    seed: int = 0,
) -> dict[str, Figure]:
    """Patients of whom every known finding is called right, and means over the findings.

    Args:
      truth: 0, 1 or NaN (unknown), (n, findings), one known a patient at least.
      logits: (n, findings).
      folds, level, factor, seed: as `evaluation_classes.class_figures`.

    Returns:
      Name → `spread.figure`: all_right (its reference: calling the more frequent state of each
      finding), log_loss and brier (means over the findings; references: the findings' shares).
    """
    known = ~np.isnan(truth)
    called = logits >= CALLED

    def all_right(labels: Floats, said: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        right: npt.NDArray[np.bool_] = ((labels == said) | np.isnan(labels)).all(axis=1)
        return right

    right = all_right(truth, called)
    shares = np.array([column[of].mean() if of.any() else 0.0
                       for column, of in zip(truth.T, known.T, strict=True)])  # fmt: skip
    usual = np.broadcast_to(shares > 0.5, truth.shape)
    figures = {
        "all_right": figure(
            float(right.mean()),
            wilson_interval(int(right.sum()), len(truth), level, factor),
            reference=float(all_right(truth, usual).mean()),
        )
    }
    set_by_chance(
        figures,
        lambda labels: {"all_right": float(all_right(labels, called).mean())},
        truth,
        folds=folds,
        level=level,
        factor=factor,
        seed=seed,
    )
    # A finding's mean over its known patients, the findings' mean of these: a patient's part in it.
    weight = np.where(known, len(truth) / np.maximum(known.sum(axis=0), 1), 0.0)
    weight = weight / max(1, int(known.any(axis=0).sum()))
    present = np.where(known, truth, 0.0)
    losses = log_losses(present == 1, logits)
    squares = (sigmoid(logits) - present) ** 2
    inner = np.clip(shares[known.any(axis=0)], 1e-300, 1 - 1e-16)
    entropy = -(inner * np.log(inner) + (1 - inner) * np.log1p(-inner))
    for name, values, reference in (
        ("log_loss", losses, float(entropy.mean())),
        ("brier", squares, float((inner * (1 - inner)).mean())),
    ):
        each = (weight * values).sum(axis=1)
        figures[name] = figure(
            float(each.mean()), mean_interval(each, level, factor), reference=reference
        )
    return figures


def findings_parts(
    truth: Floats,
    answers: Floats,
    names: tuple[str, ...],
    *,
    folds: npt.NDArray[Any] | None,
    level: float,
    factor: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Each finding by itself, of the patients of whom it is known.

    Args:
      truth: 0, 1 or NaN (unknown), (n, findings).
      answers: logits, (repeats, n, findings), NaN where a repeat lacks a patient.
      names: of the findings.
      folds: (n,) where curves are within folds; else None.
      level, factor, seed: as `findings_figures`.

    Returns:
      A JSON object a finding: name, n (patients of whom it is known), share (of these that have
      it; null of none), `evaluation_parts.calls`, figures (log_loss, brier; null of none),
      average_precision, calibration and roc (null of none, and beyond
      `evaluation_parts.CURVES_MOST`).
    """
    mean = np.nanmean(answers, axis=0)
    found: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        known = ~np.isnan(truth[:, place])
        own, logits = truth[known, place] == 1, mean[known, place]
        any_known = bool(known.any())
        drawn = place < parts.CURVES_MOST and any_known
        inside = folds[known] if folds is not None else None
        found.append(
            {
                "name": name,
                "n": int(known.sum()),
                "share": float(own.mean()) if any_known else None,
                **parts.calls(own, logits >= CALLED, level, factor),
                "average_precision": parts.precision(
                    own, logits, level=level, factor=factor, seed=seed
                ) if drawn else None,
                "figures": (
                    parts.probability_figures(own, logits, level, factor) if any_known else None
                ),
                "calibration": parts.calibration(
                    own, logits, level=level, factor=factor, seed=seed
                ) if drawn else None,
                "roc": parts.curve(own, answers[:, known, place], inside) if drawn else None,
            }
        )  # fmt: skip
    return found
