"""Patients drawn anew: what curves vary by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats, checked
from trainer.metrics.estimate import as_repeats, comparable

# Numbers drawn at a time: 8 MiB of float64.
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """Curves of patients drawn anew, each class by itself.

    Attributes:
      average_precision: (resamples,).
      sensitivity: at the requested false positive rates, (resamples, rates).
    """

    average_precision: Floats
    sensitivity: Floats


def bootstrap(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
    rates: npt.ArrayLike = (),
) -> Bootstrap:
    """Draws patients with replacement, as many of each class as there are, and measures each draw.

    Args:
      labels: (n,).
      scores: (n,).
      resamples: how many draws.
      seed: of the draws.
      rates: false positive rates, ascending, to give each draw's sensitivity at.

    Raises:
      ValueError: as `auc`.
    """
    truth, values = checked(labels, scores)
    rng = np.random.default_rng(seed)
    # Places of the distinct scores, highest first: a draw is a count of patients for each.
    distinct, place = np.unique(-values, return_inverse=True)
    positive, negative = int(truth.sum()), int((~truth).sum())
    wanted = np.asarray(rates, dtype=np.float64)
    precisions, sensitivities = [], [np.empty((0, wanted.size))]
    step = max(1, _CHUNK // truth.size)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        up = _drawn(rng, place[truth], size, distinct.size)
        down = _drawn(rng, place[~truth], size, distinct.size)
        true_positive, false_positive = np.cumsum(up, axis=1), np.cumsum(down, axis=1)
        called = np.maximum(true_positive + false_positive, 1)  # 0 before the first one drawn
        precisions.append((up * (true_positive / called)).sum(axis=1) / positive)
        if wanted.size:
            zeros = np.zeros((size, 1))
            x = np.hstack([zeros, false_positive / negative])
            y = np.hstack([zeros, true_positive / positive])
            sensitivities.append(
                np.array([np.interp(wanted, *xy) for xy in zip(x, y, strict=True)])
            )
    return Bootstrap(
        average_precision=np.concatenate(precisions),
        sensitivity=np.concatenate(sensitivities),
    )


def _drawn(
    rng: np.random.Generator, places: npt.NDArray[np.intp], size: int, width: int
) -> npt.NDArray[np.intp]:
    """Counts of each place in `size` draws of as many patients as there are, (size, width)."""
    picks = places[rng.integers(0, places.size, (size, places.size))]
    picks += np.arange(size)[:, np.newaxis] * width
    return np.bincount(picks.ravel(), minlength=size * width).reshape(size, width)


def sensitivities_within_folds(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    folds: npt.ArrayLike | None,
    *,
    rates: npt.ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
) -> Floats:
    """Draws of `roc_and_calibration.mean_roc` at false positive rates, (resamples, rates).

    Patients are drawn within each class of each fold, the same ones in every repeat that has all.

    Args:
      labels, scores, folds: as `roc_and_calibration.mean_roc`.
      rates, resamples, seed: as `bootstrap`.

    Raises:
      ValueError: as `bootstrap`.
    """
    truth, repeats = as_repeats(labels, scores)
    draws, weights = [], []
    for values in repeats:
        for number, (rows, share) in enumerate(comparable(truth, values, folds)):
            drawn = bootstrap(
                truth[rows], values[rows], resamples=resamples, seed=seed + number, rates=rates
            )
            draws.append(drawn.sensitivity)
            weights.append(share)
    found: Floats = np.average(draws, axis=0, weights=weights)
    return found


def percentile_interval(
    draws: npt.ArrayLike, level: float = 0.95, factor: float = 1.0
) -> tuple[Floats, Floats]:
    """The middle `level` of the draws along their first axis, its variance times a factor.

    Distances from the mean draw are stretched and cut to 0 .. 1.
    """
    values = np.asarray(draws, dtype=np.float64)
    mean = values.mean(axis=0)
    limits = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    low, high = np.clip(mean + math.sqrt(factor) * (limits - mean), 0, 1)
    return low, high


def histogram_of_null(null: Sequence[float]) -> dict[str, Any]:
    """Histogram of what retrainings on permuted labels score: edges and counts, for a chart."""
    counts, edges = np.histogram(null, bins=max(5, min(40, len(null) // 3)))
    return {"edges": edges.tolist(), "counts": counts.tolist()}
