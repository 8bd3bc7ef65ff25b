"""One class against the rest, or one finding: calls, calibration and curve of its probability."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from trainer.metrics.auc import Floats, z_of
from trainer.metrics.logits import log_losses, sigmoid
from trainer.metrics.resampling import bootstrap, percentile_interval
from trainer.metrics.roc_and_calibration import (
    calibration_bins,
    error_if_calibrated,
    expected_calibration_error,
    mean_roc,
    recalibration,
    thinned,
    wilson_interval,
)
from trainer.metrics.tasks.spread import Figure, figure, mean_interval

_RESAMPLES, _BUDGET = 500, 10_000_000  # patients drawn anew, and numbers drawn for it
CURVES_MOST = 12  # classes or findings whose curves and bins are told: more, nobody can tell apart


def calls(
    truth: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_], level: float, factor: float = 1.0
) -> dict[str, Any]:
    """Counts, and sensitivity, specificity and predictive values with Wilson's intervals.

    Args:
      truth: (n,), whether patients have the class or finding.
      called: (n,), whether they are said to.
      level, factor: of the intervals.
    """
    both, none = int((truth & called).sum()), int((~truth & ~called).sum())
    missed, wrong = int((truth & ~called).sum()), int((~truth & called).sum())
    shares = {
        "sensitivity": (both, both + missed),
        "specificity": (none, none + wrong),
        "ppv": (both, both + wrong),
        "npv": (none, none + missed),
    }
    return {
        "true_positive": both,
        "false_positive": wrong,
        "true_negative": none,
        "false_negative": missed,
        **{
            name: {
                "value": hits / of if of else None,
                "interval": list(wilson_interval(hits, of, level, factor)) if of else None,
                "of": of,
            }
            for name, (hits, of) in shares.items()
        },
    }


def probability_figures(
    truth: npt.NDArray[np.bool_], logits: Floats, level: float, factor: float = 1.0
) -> dict[str, Figure]:
    """Log loss and Brier score of a probability, their reference the share alone.

    Args:
      truth: (n,).
      logits: (n,), of the probabilities.
      level, factor: of the intervals.
    """
    share = float(truth.mean())
    losses = log_losses(truth, logits)
    squares = (sigmoid(logits) - truth) ** 2
    entropy = -sum(p * np.log(p) for p in (share, 1 - share) if p)
    return {
        "log_loss": figure(
            float(losses.mean()), mean_interval(losses, level, factor), reference=float(entropy)
        ),
        "brier": figure(
            float(squares.mean()),
            mean_interval(squares, level, factor),
            reference=share * (1 - share),
        ),
    }


def calibration(
    truth: npt.NDArray[np.bool_],
    logits: Floats,
    *,
    level: float,
    factor: float,
    seed: int,
) -> dict[str, Any]:
    """Observed against predicted: bins, errors, and the line that would set logits right.

    Args:
      truth: (n,).
      logits: (n,), of the probabilities.
      level, factor: of the intervals, of the bins' shares and of the line's slope (Wald's).
      seed: of the labels drawn for `ece_if_calibrated`.
    """
    values = sigmoid(logits)
    bins = calibration_bins(truth, values, level=level, factor=factor)
    line = recalibration(truth, logits) if 0 < truth.sum() < truth.size else None
    away = z_of(level) * _slopes_error(logits, *line) * math.sqrt(factor) if line else 0.0
    return {
        "mean_probability": float(values.mean()),
        "ece": expected_calibration_error(bins),
        "ece_if_calibrated": error_if_calibrated(values, draws=200, seed=seed),
        "intercept": line[0] if line else None,
        "slope": line[1] if line else None,
        "slope_interval": [line[1] - away, line[1] + away] if line else None,
        "bins": [{**dataclasses.asdict(one), "interval": list(one.interval)} for one in bins],
    }


def _slopes_error(logits: Floats, intercept: float, slope: float) -> float:
    """Standard error of a logistic regression's slope, from the information at its maximum."""
    p = sigmoid(intercept + slope * logits)
    weights = p * (1 - p)
    middle = float(weights @ logits) / float(weights.sum())
    return 1 / math.sqrt(float(weights @ (logits - middle) ** 2))


def curve(
    truth: npt.NDArray[np.bool_], scores: Floats, folds: npt.NDArray[Any] | None
) -> dict[str, list[float]] | None:
    """The ROC curve within folds whose area is the part's AUC; None where there is none.

    Args:
      truth: (n,).
      scores: (repeats, n), NaN where a repeat lacks a patient.
      folds: (n,), or None for all pairs.
    """
    try:
        rates, hits = thinned(*mean_roc(truth, scores, folds))
    except ValueError:  # no fold has both
        return None
    return {"false_positive_rate": rates.tolist(), "sensitivity": hits.tolist()}


def precision(
    truth: npt.NDArray[np.bool_], scores: Floats, *, level: float, factor: float, seed: int
) -> dict[str, Any] | None:
    """Average precision of (n,) scores, and what scores without signal reach: the share.

    Args:
      truth: (n,).
      scores: (n,).
      level, factor: of the interval, from patients drawn anew; null where all are of one kind.
      seed: of the draws.
    """
    if not truth.any():
        return None
    interval = None
    if not truth.all():
        resamples = max(200, min(_RESAMPLES, _BUDGET // truth.size))
        drawn = bootstrap(truth, scores, resamples=resamples, seed=seed).average_precision
        interval = [float(one) for one in percentile_interval(drawn, level, factor)]
    return {
        "value": float(average_precision_score(truth, scores)),
        "interval": interval,
        "at_random": float(truth.mean()),
    }
