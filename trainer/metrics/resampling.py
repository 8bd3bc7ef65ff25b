"""Patients drawn anew and labels shuffled: what an AUC varies by, and what it is by chance."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats, checked, midranks

# Numbers drawn at a time: 8 MiB of float64.
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """Curves of patients drawn anew, each class by itself.

    Attributes:
      auc: (resamples,).
      average_precision: (resamples,).
      sensitivity: at the requested false positive rates, (resamples, rates).
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
    wanted = np.asarray(rates, dtype=np.float64)
    areas, precisions, sensitivities = [], [], [np.empty((0, wanted.size))]
    step = max(1, _CHUNK // truth.size)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        up = _drawn(rng, place[truth], size, distinct.size)
        down = _drawn(rng, place[~truth], size, distinct.size)
        true_positive, false_positive = np.cumsum(up, axis=1), np.cumsum(down, axis=1)
        areas.append((down * (true_positive - up / 2)).sum(axis=1) / (positive * negative))
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
