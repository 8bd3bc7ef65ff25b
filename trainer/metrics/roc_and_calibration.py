"""Tables of predictions: calibration and operating points; curves made fit to be drawn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_curve

from trainer.metrics.auc import Floats, Interval, checked, z_of
from trainer.metrics.estimate import as_repeats, comparable

BINS = 10  # of a calibration curve, where there are patients enough
_PER_BIN = 10  # patients that a bin of the calibration curve wants


def mean_roc(
    labels: npt.ArrayLike, scores: npt.ArrayLike, folds: npt.ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """The ROC curve whose area is `estimate.estimate_of`'s AUC.

    At each false positive rate, the sensitivities of the folds weighted by their pairs, and the
    mean of that over repeats.

    Args:
      labels: 0 or 1, (n,).
      scores: (n,) or (repeats, n), NaN where a repeat lacks a patient.
      folds: (n,), or None for one curve of all patients.

    Returns:
      False positive rates, rising, and sensitivities, (points,) each.

    Raises:
      ValueError: as `estimate.estimate_of`.
    """
    truth, repeats = as_repeats(labels, scores)
    curves, weights = [], []
    for values in repeats:
        for rows, share in comparable(truth, values, folds):
            curves.append(roc_curve(truth[rows], values[rows], drop_intermediate=False)[:2])
            weights.append(share)
    if not curves:
        raise ValueError("a ROC curve needs both classes in a fold: no fold has them")
    grid = np.unique(np.concatenate([rates for rates, _ in curves]))
    ends = [_at(grid, rates, hits) for rates, hits in curves]
    mean = np.average(ends, axis=0, weights=weights)
    return np.repeat(grid, 2), mean.T.ravel()


def _at(grid: Floats, rates: Floats, hits: Floats) -> Floats:
    """The lower and the upper end of a ROC curve's step at each rate, (2, rates)."""
    distinct, first = np.unique(rates, return_index=True)
    last = np.append(first[1:], rates.size) - 1
    right = np.searchsorted(distinct, grid)
    left = np.where(distinct[right] == grid, right, right - 1)
    share = np.zeros(grid.size)
    between = left < right
    start, end = distinct[left[between]], distinct[right[between]]
    share[between] = (grid[between] - start) / (end - start)
    line = hits[last[left]] + share * (hits[first[right]] - hits[last[left]])
    return np.stack(
        [np.where(between, line, hits[first[right]]), np.where(between, line, hits[last[left]])]
    )


def thinned(x: Floats, y: Floats, most: int = 500) -> tuple[Floats, Floats]:
    """The curve without points on a straight line between neighbours, and at most `most` of them.

    Both ends stay. Meant for drawing: areas are computed from the whole curve.
    """
    if x.size > 2:
        ahead, behind = np.diff(np.stack([x, y]))[:, 1:], np.diff(np.stack([x, y]))[:, :-1]
        bends = np.abs(ahead[0] * behind[1] - ahead[1] * behind[0]) > 1e-15
        kept = np.r_[True, bends, True]
        x, y = x[kept], y[kept]
    if x.size > most:
        few = np.unique(np.linspace(0, x.size - 1, most).round().astype(int))
        x, y = x[few], y[few]
    return x, y


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Patients of like probability.

    Attributes:
      n, positive: how many, and how many of them positive.
      predicted: mean probability.
      observed: share of positives.
      interval: of that share (Wilson).
    """

    n: int
    positive: int
    predicted: float
    observed: float
    interval: Interval


def calibration_bins(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    bins: int | None = None,
    level: float = 0.95,
    factor: float = 1.0,
) -> tuple[CalibrationBin, ...]:
    """Observed against predicted, in bins of about equally many patients.

    Args:
      labels: (n,).
      probabilities: (n,), 0 .. 1.
      bins: how many at most; equal probabilities stay together. None: 10, fewer below 100 patients.
      level: of the intervals.
      factor: what patients are divided by in them (`wilson_interval`).

    Raises:
      ValueError: labels or probabilities that are none; one class may be absent.
    """
    truth, values = checked(labels, probabilities, both_classes=False)
    place = _bin_of(values, bins)
    found = []
    for one in np.unique(place):
        inside = place == one
        n, positive = int(inside.sum()), int(truth[inside].sum())
        found.append(
            CalibrationBin(
                n=n,
                positive=positive,
                predicted=float(values[inside].mean()),
                observed=positive / n,
                interval=wilson_interval(positive, n, level, factor),
            )
        )
    return tuple(found)


def wilson_interval(hits: int, n: int, level: float = 0.95, factor: float = 1.0) -> Interval:
    """Wilson's score interval of a proportion; n must be positive.

    A factor divides hits and n: out of fold, each patient counts half.
    """
    z2, size, share = z_of(level) ** 2, n / factor, hits / n
    middle = (share + z2 / (2 * size)) / (1 + z2 / size)
    reach = math.sqrt(z2 * (share * (1 - share) / size + z2 / (4 * size**2))) / (1 + z2 / size)
    # Rounding leaves no limit beyond 0 or 1, nor short of them.
    low = 0.0 if not hits else middle - reach
    return low, 1.0 if hits == n else middle + reach


def _bin_of(values: Floats, bins: int | None) -> npt.NDArray[np.intp]:
    count = bins or min(BINS, max(2, values.size // _PER_BIN))
    edges = np.quantile(values, np.linspace(0, 1, count + 1))
    return np.searchsorted(edges[1:-1], values)


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance of observed and predicted over the bins, weighted by patients."""
    n = sum(one.n for one in bins)
    return sum(one.n * abs(one.observed - one.predicted) for one in bins) / n


def error_if_calibrated(
    probabilities: npt.ArrayLike, *, bins: int | None = None, draws: int = 500, seed: int = 0
) -> float:
    """Mean expected calibration error were every probability true: what small bins alone make.

    Args:
      probabilities: (n,).
      bins: as of `calibration_bins`.
      draws: how many sets of labels are drawn from the probabilities.
      seed: of the draws.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    _, place = np.unique(_bin_of(values, bins), return_inverse=True)
    sizes, rng = np.bincount(place), np.random.default_rng(seed)
    errors = [
        np.abs(np.bincount(place, (rng.random(values.size) < values) - values)).sum()
        for _ in range(max(20, min(draws, 20_000_000 // values.size)))
    ]
    return float(np.mean(errors) / sizes.sum())


def recalibration(labels: npt.ArrayLike, logits: npt.ArrayLike) -> tuple[float, float] | None:
    """Intercept and slope of the logistic regression of labels on logits: 0 and 1 are right.

    A slope below 1 says that probabilities are too extreme.

    Returns:
      None where there is no answer: classes that the logits separate, or logits all alike.

    Raises:
      ValueError: as `auc.auc`.

    Source: D. R. Cox, Biometrika 45 (1958) 562-565.
    """
    truth, values = checked(labels, logits)
    spread = float(values.std())
    if not spread:
        return None
    design = np.stack([np.ones_like(values), (values - values.mean()) / spread], axis=1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -500, 500)))
        hessian = (design * (p * (1 - p))[:, np.newaxis]).T @ design
        if np.linalg.det(hessian) < 1e-12:
            return None
        step = np.linalg.solve(hessian, design.T @ (truth - p))
        weights = weights + step
        if np.abs(step).max() < 1e-10:
            slope = float(weights[1]) / spread
            return float(weights[0]) - slope * float(values.mean()), slope
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What a threshold does.

    Attributes:
      name: how it was chosen.
      threshold: patients with this score or a higher one are called positive; None: no patient is.
      true_positive, false_positive, true_negative, false_negative: counts of patients.
    """

    name: str
    threshold: float | None
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    def shares(self) -> dict[str, tuple[int, int]]:
        """Sensitivity, specificity and predictive values, each as (hits, of how many)."""
        return {
            "sensitivity": (self.true_positive, self.true_positive + self.false_negative),
            "specificity": (self.true_negative, self.true_negative + self.false_positive),
            "ppv": (self.true_positive, self.true_positive + self.false_positive),
            "npv": (self.true_negative, self.true_negative + self.false_negative),
        }


def operating_points(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, fixed: float | None = 0.5, wanted: float = 0.9
) -> tuple[OperatingPoint, ...]:
    """Youden's point, the points of 90 % sensitivity and specificity, and a fixed threshold.

    Args:
      labels: (n,).
      scores: (n,).
      fixed: a threshold that was not chosen by these patients; None for none.
      wanted: the sensitivity and specificity required.

    Raises:
      ValueError: as `auc.auc`.
    """
    truth, values = checked(labels, scores)
    rates, sensitivities, thresholds = roc_curve(truth, values, drop_intermediate=False)
    positives, negatives = int(truth.sum()), int((~truth).sum())

    def point(name: str, threshold: float) -> OperatingPoint:
        called = values >= threshold
        hits, alarms = int((called & truth).sum()), int((called & ~truth).sum())
        return OperatingPoint(
            name=name,
            threshold=threshold if math.isfinite(threshold) else None,
            true_positive=hits,
            false_positive=alarms,
            true_negative=negatives - alarms,
            false_negative=positives - hits,
        )

    near = 1e-12  # 0.9 of 10 patients is 9 of them
    found = [
        point("Youden", thresholds[np.argmax(sensitivities - rates)]),
        point(
            f"{100 * wanted:g} % sensitivity", thresholds[np.argmax(sensitivities >= wanted - near)]
        ),
        point(
            f"{100 * wanted:g} % specificity",
            thresholds[np.nonzero(1 - rates >= wanted - near)[0][-1]],
        ),
    ]
    return (*found, point(f"{fixed:g}", fixed)) if fixed is not None else tuple(found)
