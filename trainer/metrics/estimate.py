"""The one estimate of an AUC and the one rule of what it allows one to say.

Interval, p-value, `better_than_chance`, and every word in pages and on terminals follow from the
object that `estimate_of` makes.

Out of fold, networks share most of their training patients, so each pair of patients counts twice:
over repeated cross-validations an AUC without signal varies up to twice as much as a formula for
independent patients says (`benchmarks/honesty.py`). Levels of folds' networks differ, so that only
pairs within a fold are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats, auc, checked, newcombe_limits, newcombe_variance, z_of

WITHIN_FOLDS = "pairs within folds"
ALL_PAIRS = "all pairs"
BY_INTERVAL = "interval"
BY_PERMUTATIONS = "permutations"
METHOD = "Newcombe 2006, method 5"
OUT_OF_FOLD_FACTOR = 2.0  # the limit of what shared training patients add; small networks: 1.7
_SAME = 1e-12  # AUCs nearer than that are equal but for rounding


def estimate_of(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    folds: npt.ArrayLike | None = None,
    level: float = 0.95,
    null: npt.ArrayLike | None = None,
    no_claim: Sequence[str] = (),
) -> dict[str, Any]:
    """AUC with its interval, and whether it differs from chance.

    With folds of two or more values the scores are out of fold: the AUC is that of pairs within
    folds, and the variance of such pairs is doubled. Otherwise it is that of all pairs, with its
    plain variance. The estimate over R repeats is the mean of theirs; what they vary by is taken
    off the doubled variance V: of 2 V, 2 V - (1 - 1 / R) s² is left, V at least, s² the variance of
    the repeats' AUCs, all at an AUC of 0.5; the interval keeps that proportion everywhere.

    With so many retrainings on permuted labels that `(1 - level) / 2` can be reached on each side
    (39 at 95 %), these decide: the limits are as many standard errors away as the AUC without
    signal comes to in that share of them.

    Args:
      labels: 0 or 1, (n,).
      scores: any numbers, (n,), or (repeats, n) with NaN where a repeat lacks a patient.
      folds: which each patient was held out in, (n,); None for a test set.
      level: of the interval.
      null: AUCs, estimated alike, of retrainings of the whole recipe on permuted labels.
      no_claim: reasons why these scores allow no claim (`wording.REASONS`).

    Returns:
      JSON object: auc, auc_interval ([low, high]; null with no_claim), level, n, positive,
      estimator (`WITHIN_FOLDS` or `ALL_PAIRS`), repeats, variance_factor, interval_method, p_value
      (two-sided; null with no_claim), decided_by (`BY_INTERVAL` or `BY_PERMUTATIONS`; null with
      no_claim), better_than_chance, worse_than_chance, auc_told_from_chance (the AUC from where
      better_than_chance begins; null with no_claim), permutations (null, or count, as_high and the
      one-sided p_value), no_claim. A claim is made exactly where 0.5 lies outside the interval,
      which is where p_value is below 1 - level (or at it, where permutations decide).

    Raises:
      ValueError: as `auc.auc`, no fold with both classes, a patient without a score, a null AUC
        outside 0 .. 1, or a level outside (0, 1).

    Sources: Newcombe 2006 (`auc.newcombe_limits`); Airola et al. 2009 and Bengio and Grandvalet,
    JMLR 5 (2004) 1089-1105, on cross-validated variance; Phipson and Smyth 2010 on the count of
    one more.
    """
    truth, each = as_repeats(labels, scores)
    out_of_fold = is_out_of_fold(folds)
    areas = []
    for one in each:
        parts = comparable(truth, one, folds if out_of_fold else None)
        if parts:  # a repeat may lack so many patients that it has none
            areas.append(sum(share * auc(truth[rows], one[rows]) for rows, share in parts))
    if not areas:
        raise ValueError("an AUC out of fold needs both classes in a fold: no fold has them")
    value = float(np.mean(areas))
    compared = comparable(truth, np.zeros(truth.size), folds if out_of_fold else None)
    groups = [(int(truth[rows].sum()), int((~truth[rows]).sum())) for rows, _ in compared]
    variance = newcombe_variance(0.5, groups)
    factor = 1.0
    if out_of_fold:
        factor = factor_of(areas, variance)
    said = judged(
        value,
        variance,
        lambda reach, times: newcombe_limits(value, groups, reach, times),
        factor=factor,
        level=level,
        null=null,
        no_claim=no_claim,
    )
    return {
        "auc": value,
        "auc_interval": said["interval"],
        "level": level,
        "n": int(truth.size),
        "positive": int(truth.sum()),
        "estimator": WITHIN_FOLDS if out_of_fold else ALL_PAIRS,
        "repeats": len(areas),
        "variance_factor": said["variance_factor"],
        "interval_method": METHOD,
        "p_value": said["p_value"],
        "decided_by": said["decided_by"],
        "better_than_chance": said["better_than_chance"],
        "worse_than_chance": said["worse_than_chance"],
        "auc_told_from_chance": said["told_from_chance"],
        "permutations": said["permutations"],
        "no_claim": list(no_claim),
    }


def judged(
    value: float,
    variance: float,
    limits: Callable[[tuple[float, float], float], tuple[float, float]],
    *,
    factor: float,
    level: float,
    null: npt.ArrayLike | None,
    no_claim: Sequence[str],
    chance: float = 0.5,
    least: float = 0.0,
) -> dict[str, Any]:
    """The one rule, of a score of any kind: what it allows one to say.

    Args:
      value: the score; 1 is the best of all.
      variance: of a score without signal, before `factor`.
      limits: (standard errors to the lower and the upper limit, factor) → the interval.
      factor: what the variance is multiplied by where no permutations decide.
      level: of the interval.
      null: scores of retrainings on permuted labels.
      no_claim: reasons against a claim.
      chance: the score without signal.
      least: the worst score.

    Returns:
      interval, variance_factor, p_value, decided_by, better_than_chance, worse_than_chance,
      told_from_chance and permutations, as `estimate_of` says of an AUC.

    Raises:
      ValueError: a null score outside `least` .. 1, or a level outside (0, 1).
    """
    from scipy.special import ndtr

    permutations, tails = _permutations(value, null, least)
    # How many of the retrainings may lie beyond a limit, the run itself counted among them.
    allowed = math.floor((1 - level) / 2 * (tails.size + 1) + 1e-9) if tails.size else 0
    if allowed:
        decided_by, factor = BY_PERMUTATIONS, 1.0
        error = math.sqrt(variance)
        reach = (
            (max(0.0, float(tails[-allowed]) - chance) + _SAME) / error,
            (max(0.0, chance - float(tails[allowed - 1])) + _SAME) / error,
        )
        beyond = tails >= value - _SAME if value > chance else tails <= value + _SAME
        p_value = min(1.0, 2 * float(1 + beyond.sum()) / (tails.size + 1))
    else:
        decided_by, error = BY_INTERVAL, math.sqrt(factor * variance)
        reach = (z_of(level), z_of(level))
        p_value = 2 * float(ndtr(-abs(value - chance) / error))
    if abs(value - chance) < _SAME:
        p_value = 1.0
    low, high = limits(reach, factor)
    silent = bool(no_claim)
    return {
        "interval": None if silent else [low, high],
        "variance_factor": factor,
        "p_value": None if silent else p_value,
        "decided_by": None if silent else decided_by,
        "better_than_chance": low > chance and not silent,
        "worse_than_chance": high < chance and not silent,
        "told_from_chance": None if silent else min(1.0, chance + reach[0] * error),
        "permutations": permutations,
    }


def factor_of(scores: Sequence[float], variance: float) -> float:
    """What the plain variance of out-of-fold scores is multiplied by, of repeats' scores."""
    spread = float(np.var(scores, ddof=1)) if len(scores) > 1 else 0.0
    return max(1.0, OUT_OF_FOLD_FACTOR - (1 - 1 / len(scores)) * spread / variance)


def comparable(
    truth: npt.NDArray[np.bool_], values: Floats, folds: npt.ArrayLike | None
) -> list[tuple[npt.NDArray[np.intp], float]]:
    """Places of the patients of each fold that has both classes, with its share of all pairs.

    Patients whose value is NaN are left out. Without folds all patients are one.
    """
    place = np.zeros(truth.size, np.int64) if folds is None else np.asarray(folds)
    known = np.isfinite(values)
    found = []
    for fold in np.unique(place[known]):
        rows = np.flatnonzero(known & (place == fold))
        positive = int(truth[rows].sum())
        if pairs := positive * (rows.size - positive):
            found.append((rows, pairs))
    total = sum(pairs for _, pairs in found)
    return [(rows, pairs / total) for rows, pairs in found]


def is_out_of_fold(folds: npt.ArrayLike | None) -> bool:
    """Whether scores come from networks of several folds, (n,); one fold alone is a test set."""
    return folds is not None and np.unique(np.asarray(folds)).size > 1


def as_repeats(
    labels: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Labels (n,) and scores (repeats, n), checked; NaN only where another repeat has a number.

    Raises:
      ValueError: as `estimate_of`.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        truth, values = checked(labels, values)
        return truth, values[np.newaxis]
    if np.isinf(values).any() or np.isnan(values).all(axis=0).any():
        raise ValueError("scores must be finite numbers, one a patient at least")
    truth, _ = checked(labels, np.nanmean(values, axis=0))
    return truth, values


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number, in the given order; None stays (Holm 1979)."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for place, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        adjusted[i] = highest
    return adjusted


def _permutations(
    value: float, null: npt.ArrayLike | None, least: float
) -> tuple[dict[str, Any] | None, Floats]:
    """What is told of the retrainings, and their scores in rising order."""
    tails = np.sort(np.asarray([] if null is None else null, dtype=np.float64))
    if not tails.size:
        return None, tails
    if not (np.isfinite(tails).all() and tails[0] >= least and tails[-1] <= 1):
        raise ValueError(f"scores of permuted labels must lie in {least:g} .. 1")
    as_high = int((tails >= value - _SAME).sum())
    count = int(tails.size)
    return {"count": count, "as_high": as_high, "p_value": (1 + as_high) / (count + 1)}, tails
