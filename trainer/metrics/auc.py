"""The AUC of ranked predictions and the limits of an AUC.

Everywhere a label is 0 or 1 and a score any finite number of which only the order matters. SciPy is
imported where it is called: its statistics take a second, and every command's --help passes here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve, exactly: the share of (positive, negative) pairs ranked right.

    A tie counts half (Mann-Whitney's U by midranks).

    Args:
      labels: 0 or 1, (n,).
      scores: any finite numbers, (n,); only their order matters.

    Raises:
      ValueError: a class is absent, a label is not 0 or 1, or a score is not finite.
    """
    truth, values = checked(labels, scores)
    positive = int(truth.sum())
    rank_sum = midranks(values)[truth].sum()
    pairs = positive * (truth.size - positive)
    return float((rank_sum - positive * (positive + 1) / 2) / pairs)


def midranks(values: npt.ArrayLike) -> Floats:
    """Rank of each value from 1, equal values sharing the mean of theirs; (n,) float64."""
    from scipy.stats import rankdata

    ranks: Floats = rankdata(values)
    return ranks


def newcombe_limits(
    estimate: float,
    groups: Sequence[tuple[int, int]],
    reach: tuple[float, float],
    factor: float = 1.0,
) -> tuple[float, float]:
    """Limits of an AUC: the values θ that lie so many standard errors *at θ* from the estimate.

    Newcombe's method 5, as Wilson's interval for a proportion. It keeps its coverage for small
    groups and is neither empty nor outside 0 .. 1 at an AUC of 0 or 1. The standard error
    is concave in θ, so that each side has one limit, and 0.5 lies outside exactly where it is
    further from the estimate than `reach` standard errors at 0.5.

    Args:
      estimate: the AUC.
      groups: as `newcombe_variance` takes them.
      reach: standard errors to the lower and to the upper limit, at least 0.
      factor: what the variance is multiplied by.

    Source: R. G. Newcombe, Statistics in Medicine 25 (2006) 559-573.
    """
    return limits_of(estimate, lambda theta: factor * newcombe_variance(theta, groups), reach)


def limits_of(
    estimate: float,
    variance: Callable[[float], float],
    reach: tuple[float, float],
    *,
    chance: float = 0.5,
    least: float = 0.0,
) -> tuple[float, float]:
    """Limits of a score of at most 1: the values so many of their standard errors from it.

    Args:
      estimate: the score.
      variance: of a score whose true value is θ; the same on both sides of chance, and such that
        the standard error is concave in θ.
      reach: standard errors to the lower and to the upper limit, at least 0.
      chance: the score without signal, in the middle between `least` and 1.
      least: the worst score.
    """
    from scipy.optimize import brentq

    def lower(value: float, errors: float) -> float:
        def beyond(theta: float) -> float:
            return value - theta - errors * math.sqrt(variance(theta))

        if value <= least:
            return least
        # Which side of chance the limit is on is asked first: no rounding may put it on the other.
        above = value > chance and beyond(chance) > 0
        start, end = (chance, value) if above else (least, min(value, chance))
        end = min(end, 1 - 1e-12)  # the trivial root at 1 lies outside
        if beyond(end) >= 0:
            return end
        found = float(brentq(beyond, start, end))
        return max(found, math.nextafter(chance, 1)) if above else found

    # The variance is the same on both sides: the upper limit is the mirrored score's lower one.
    mirror = 2 * chance
    return lower(estimate, reach[0]), mirror - lower(mirror - estimate, reach[1])


def newcombe_variance(theta: float, groups: Sequence[tuple[int, int]]) -> float:
    """Variance of an AUC whose true value is θ: Hanley and McNeil's under the exponential model.

    Both group sizes in it are replaced by their mean (Newcombe 2006, method 5). Of pairs within
    folds it is the weighted sum of the folds' own: they have fewer pairs than all patients have.

    Args:
      theta: in 0 .. 1.
      groups: counts of positive and negative patients whose pairs are compared, at least 1 each:
        of all patients, or of each fold.
    """

    def spread(positive: int, negative: int) -> float:
        excess = (positive + negative) / 2 - 1
        return 1 + excess * ((1 - theta) / (2 - theta) + theta / (1 + theta))

    pairs = sum(positive * negative for positive, negative in groups)
    summed = sum(positive * negative * spread(positive, negative) for positive, negative in groups)
    return theta * (1 - theta) * summed / pairs**2


def z_of(level: float) -> float:
    """How many standard errors a two-sided interval of this level reaches.

    Raises:
      ValueError: a level outside (0, 1).
    """
    from scipy.special import ndtri

    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1: {level}")
    return float(ndtri(0.5 + level / 2))


def checked(
    labels: npt.ArrayLike, scores: npt.ArrayLike, *, both_classes: bool = True
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Labels as booleans and scores as float64, (n,) each.

    Raises:
      ValueError: shapes differ, a label is not 0 or 1, a score is not finite, or (unless
        `both_classes` is False) a class is absent.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape or not truth.size:
        raise ValueError(f"as many labels as scores needed: {truth.shape} and {values.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite numbers")
    positive = int(truth.sum())
    if both_classes and not 0 < positive < truth.size:
        raise ValueError(
            f"an AUC needs both classes: {positive} positive and {truth.size - positive} negative"
        )
    return truth.astype(bool), values
