"""Statistics of ranked predictions: AUC, its intervals, tests; numpy alone until an interval asks.

Everywhere a label is 0 or 1 and a score any finite number of which only the order matters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

# Numbers drawn at a time: 8 MiB of float64.
_CHUNK = 1 << 20


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
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def auc_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of the AUC: Newcombe's method 5.

    The limits are the values θ whose distance from the estimate is z standard errors *at θ*
    (as in Wilson's interval for a proportion), with Hanley and McNeil's variance under the
    exponential model and both group sizes in it replaced by their mean. It keeps its coverage for
    small groups and is neither empty nor outside 0 .. 1 at an AUC of 0 or 1.

    Source: R. G. Newcombe, Statistics in Medicine 25 (2006) 559-573.

    Raises:
      ValueError: as `auc`, or a level outside (0, 1).
    """
    from scipy.optimize import brentq

    z = z_of(level)
    estimate = auc(labels, scores)
    truth = np.asarray(labels)
    positive = int(truth.sum())
    negative = truth.size - positive

    def limit(end: float, sign: float) -> float:
        """The root between the estimate and `end`; where they meet, the estimate is the limit."""
        if estimate == end:
            return end
        near = min(max(estimate, 1e-12), 1 - 1e-12)  # the trivial root at 0 and 1 lies outside
        return float(
            brentq(
                lambda t: sign * (t - estimate) - z * _newcombe_error(t, positive, negative),
                near,
                end,
            )
        )

    return limit(0.0, -1.0), limit(1.0, 1.0)


def auc_told_from_chance(positive: int, negative: int, level: float = 0.95) -> float:
    """The AUC whose `auc_interval` would just begin at 0.5, for these group sizes; at most 1."""
    return min(1.0, 0.5 + z_of(level) * _newcombe_error(0.5, positive, negative))


def _newcombe_error(theta: float, positive: int, negative: int) -> float:
    """Standard error of an AUC whose true value is θ (Newcombe's method 5)."""
    excess = (positive + negative) / 2 - 1
    spread = 1 + excess * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return math.sqrt(theta * (1 - theta) * spread / (positive * negative))


def delong(labels: npt.ArrayLike, scores: Sequence[npt.ArrayLike]) -> tuple[Floats, Floats]:
    """AUCs of several models on the same patients, with the covariance of their estimates.

    Structural components by midranks, so n log n instead of all pairs.

    Args:
      labels: (n,).
      scores: of k models, each (n,).

    Returns:
      AUCs (k,) and their covariance matrix (k, k).

    Raises:
      ValueError: as `auc`, or a class of one patient, which has no variance.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845; by midranks: Sun and
    Xu, IEEE Signal Processing Letters 21 (2014) 1389-1393.
    """
    of_positive, of_negative = [], []
    for one in scores:
        truth, values = checked(labels, one)
        positive, negative = int(truth.sum()), int((~truth).sum())
        if min(positive, negative) < 2:
            raise ValueError(
                f"DeLong's variance needs two of each class: {positive} positive and {negative} "
                "negative"
            )
        ranks = midranks(values)
        # The share of the other class that each patient is ranked right against.
        of_positive.append((ranks[truth] - midranks(values[truth])) / negative)
        of_negative.append(1 - (ranks[~truth] - midranks(values[~truth])) / positive)
    areas = np.array([share.mean() for share in of_positive])
    covariance = np.atleast_2d(np.cov(of_positive)) / len(of_positive[0])
    covariance += np.atleast_2d(np.cov(of_negative)) / len(of_negative[0])
    return areas, covariance


def delong_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Estimate ± z of DeLong's standard errors, cut to 0 .. 1; no width at an AUC of 0 or 1.

    Raises:
      ValueError: as `delong`.
    """
    areas, covariance = delong(labels, [scores])
    reach = z_of(level) * math.sqrt(max(covariance[0, 0], 0.0))
    return max(0.0, float(areas[0]) - reach), min(1.0, float(areas[0]) + reach)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """DeLong's test of two AUCs on the same patients.

    Attributes:
      difference: first AUC minus second.
      interval: of the difference.
      z: difference in standard errors; None where the standard error is 0.
      p_value: two-sided; None where a difference has no standard error to be held against.
    """

    difference: float
    interval: Interval
    z: float | None
    p_value: float | None


def delong_test(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, level: float = 0.95
) -> PairedTest:
    """Whether two models differ in AUC, patients paired.

    Raises:
      ValueError: as `delong`.
    """
    from scipy.special import ndtr

    areas, covariance = delong(labels, [first, second])
    difference = float(areas[0] - areas[1])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    error = math.sqrt(variance) if variance > 1e-15 else 0.0  # what rounding leaves of nothing
    reach = z_of(level) * error
    z = difference / error if error else None
    p_value: float | None = None
    if z is not None:
        p_value = float(2 * ndtr(-abs(z)))
    elif abs(difference) < 1e-12:
        p_value = 1.0
    return PairedTest(
        difference=difference,
        interval=(difference - reach, difference + reach),
        z=z,
        p_value=p_value,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number, in the given order; None stays (Holm 1979)."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        adjusted[i] = highest
    return adjusted


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """Curves of patients drawn anew, each class by itself.

    Attributes:
      auc: (resamples,).
      average_precision: (resamples,).
      sensitivity: at the asked false positive rates, (resamples, rates).
    """

    auc: Floats
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
    asked = np.asarray(rates, dtype=np.float64)
    areas, precisions, sensitivities = [], [], [np.empty((0, asked.size))]
    step = max(1, _CHUNK // truth.size)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        up = _drawn(rng, place[truth], size, distinct.size)
        down = _drawn(rng, place[~truth], size, distinct.size)
        true_positive, false_positive = np.cumsum(up, axis=1), np.cumsum(down, axis=1)
        areas.append((down * (true_positive - up / 2)).sum(axis=1) / (positive * negative))
        called = np.maximum(true_positive + false_positive, 1)  # 0 before the first one drawn
        precisions.append((up * (true_positive / called)).sum(axis=1) / positive)
        if asked.size:
            zeros = np.zeros((size, 1))
            x = np.hstack([zeros, false_positive / negative])
            y = np.hstack([zeros, true_positive / positive])
            sensitivities.append(np.array([np.interp(asked, *xy) for xy in zip(x, y, strict=True)]))
    return Bootstrap(
        auc=np.concatenate(areas),
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


def percentile_interval(draws: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of the draws."""
    low, high = np.quantile(np.asarray(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Permutation:
    """What the AUC is where labels have nothing to do with scores.

    Attributes:
      null: AUCs under shuffled labels, (permutations,).
      null_mean: their expectation, exactly.
      p_value: share of shuffles at least as far from it as the true labels, the latter counted
        among them, so never 0.
    """

    null: Floats
    null_mean: float
    p_value: float


def permutation_test(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> Permutation:
    """Two-sided test of the AUC by shuffling labels.

    Args:
      labels: (n,).
      scores: (n,).
      strata: (n,); labels are shuffled within each. Out-of-fold scores come from one network a
        fold, whose levels may differ: give the folds.
      permutations: how many shuffles.
      seed: of the shuffles.

    Raises:
      ValueError: as `auc`.

    Source for the count of one more: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010) 39.
    """
    truth, values = checked(labels, scores)
    ranks = midranks(values)
    groups = np.zeros(truth.size, np.intp) if strata is None else np.asarray(strata)
    rng = np.random.default_rng(seed)
    sums, expected = np.zeros(permutations), 0.0
    for group in np.unique(groups):
        inside = ranks[groups == group]
        chosen = int(truth[groups == group].sum())
        expected += chosen * float(inside.mean())
        step = max(1, _CHUNK // inside.size)
        for start in range(0, permutations, step):
            size = min(step, permutations - start)
            shuffled = rng.permuted(np.tile(inside, (size, 1)), axis=1)
            sums[start : start + size] += shuffled[:, :chosen].sum(axis=1)
    positive = int(truth.sum())
    lowest, pairs = positive * (positive + 1) / 2, positive * (truth.size - positive)
    distance = abs(float(ranks[truth].sum()) - expected)
    as_far = int((np.abs(sums - expected) >= distance - 1e-6).sum())  # ranks are whole or half
    return Permutation(
        null=(sums - lowest) / pairs,
        null_mean=(expected - lowest) / pairs,
        p_value=(1 + as_far) / (1 + permutations),
    )


def wilson_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; n must be positive.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.
    """
    z = z_of(level)
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the limit is the end itself, without what rounding makes of it.
    return (
        0.0 if hits == 0 else max(0.0, middle - reach),
        1.0 if hits == n else min(1.0, middle + reach),
    )


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
