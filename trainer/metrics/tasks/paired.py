"""Whether two scores on the same patients differ: what each patient adds to a score.

The variance of the difference of two scores is the sum of the squared differences of what each
patient adds to them: for AUCs DeLong's structural components, for a rank correlation what is left
when the patient is left out. It is doubled out of fold, as in `estimate.estimate_of`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.target import Target
from trainer.metrics.auc import Floats, Interval, midranks, z_of
from trainer.metrics.estimate import OUT_OF_FOLD_FACTOR, comparable, is_out_of_fold
from trainer.metrics.tasks.estimate import checked_answers, marks_of, ranked_answers

_ROWS = 256  # patients left out at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A test of two scores on the same patients.

    Attributes:
      difference: first score minus second.
      interval: of the difference.
      z: difference in standard errors; None where the standard error is 0.
      p_value: two-sided; None where a difference has no standard error to be held against.
    """

    difference: float
    interval: Interval
    z: float | None
    p_value: float | None


def paired_test(difference: float, variance: float, level: float) -> PairedTest:
    """The normal test of a difference of this variance."""
    from scipy.special import ndtr

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


def components(
    truth: npt.NDArray[np.bool_], values: Floats, folds: npt.ArrayLike | None
) -> Floats | None:
    """Each patient's component of an AUC, (n,); None where no fold has both classes.

    See `comparisons.delong`: their mean over each class is the AUC.
    """
    parts = comparable(truth, values, folds)
    if not parts:
        return None
    ranks, shares, weights = np.zeros((3, truth.size))
    area = 0.0
    for rows, share in parts:
        up, down = rows[truth[rows]], rows[~truth[rows]]
        ranks[rows] = midranks(values[rows])
        # The share of the other class that each patient is ranked right against.
        above, below = (ranks[own] - midranks(values[own]) for own in (up, down))
        shares[up], shares[down] = above / down.size, 1 - below / up.size
        # P q_k / W is the fold's share of all pairs by its share of all positive patients.
        weights[up] = share * truth.sum() / up.size
        weights[down] = share * (~truth).sum() / down.size
        area += share * float(shares[up].mean())
    found: Floats = area + weights * (shares - area)
    return found


def task_test(
    target: Target,
    truth: npt.NDArray[Any],
    answers: Sequence[npt.ArrayLike],
    folds: Sequence[npt.ArrayLike | None],
    *,
    difference: float,
    level: float = 0.95,
) -> PairedTest | None:
    """Whether two models' scores differ, patients paired; not of a binary target.

    Args:
      target: what labels say.
      truth: as `data.targets.truth_of` has it, no patient without a label.
      answers: of both, as `estimate.estimate_of_task` takes them.
      folds: of both, (n,) or None.
      difference: of their scores, first minus second.
      level: of the interval.

    Returns:
      The test; None where too few patients are of a kind for a variance.
    """
    added = [
        _added(target, truth, one, of if is_out_of_fold(of) else None)
        for one, of in zip(answers, folds, strict=True)
    ]
    first, second = added
    if first is None or second is None:
        return None
    variance = float(((first - second) ** 2).sum())
    if any(map(is_out_of_fold, folds)):
        variance *= OUT_OF_FOLD_FACTOR
    return paired_test(difference, variance, level)


def _added(
    target: Target, truth: npt.NDArray[Any], answers: npt.ArrayLike, folds: npt.ArrayLike | None
) -> Floats | None:
    """What each patient adds to a score, (n,): the sum of squares is the score's variance."""
    known, each, place = checked_answers(target, truth, answers, folds)
    marks = marks_of(target, known)
    within = np.zeros(len(known), np.int64) if place is None else place
    found = []
    for one in each:
        ranked = ranked_answers(target, one)
        if target.task == "regression":
            added = _left_out(marks[:, 0], ranked[:, 0], within)
        else:
            added = _of_areas(marks, ranked, within)
        if added is not None:
            found.append(added)
    if not found:
        return None
    mean: Floats = np.mean(found, axis=0)
    return mean


def _of_areas(marks: Floats, values: Floats, folds: npt.NDArray[Any]) -> Floats | None:
    added = np.zeros(len(marks))
    measured = 0
    for mark, column in zip(marks.T, values.T, strict=True):
        rows = np.flatnonzero(~np.isnan(mark))
        truth = mark[rows] == 1
        parts = components(truth, column[rows], folds[rows])
        if parts is None:
            continue
        measured += 1
        for own in (truth, ~truth):
            count = int(own.sum())
            if count < 2:
                return None
            apart = parts[own] - parts[own].mean()
            # As DeLong's variance divides by one patient less.
            added[rows[own]] += apart / math.sqrt(count * (count - 1))
    return added / measured if measured else None


def _left_out(truth: Floats, values: Floats, folds: npt.NDArray[Any]) -> Floats | None:
    """The jackknife of the mean of the folds' rank correlations."""
    added = np.zeros(truth.size)
    total = 0
    for fold in np.unique(folds):
        rows = np.flatnonzero((folds == fold) & np.isfinite(values))
        if rows.size < 2 or np.ptp(truth[rows]) == 0:
            continue
        if rows.size < 4:
            return None
        without = _correlations_without(truth[rows], values[rows])
        size = rows.size - 1
        added[rows] = size * math.sqrt(size / rows.size) * (without - without.mean())
        total += size
    return added / total if total else None


def _correlations_without(truth: Floats, values: Floats) -> Floats:
    """Rank correlations of all but each patient, (n,)."""
    found = np.zeros(truth.size)
    for start in range(0, truth.size, _ROWS):
        left = np.arange(start, min(truth.size, start + _ROWS))
        steps = []
        for column in (truth, values):
            beyond = column > column[left, np.newaxis]
            ranks = midranks(column) - beyond - (column == column[left, np.newaxis]) / 2
            ranks[np.arange(left.size), left] = truth.size / 2  # the mean of the others' ranks
            steps.append(ranks - truth.size / 2)
        sizes = np.sqrt((steps[0] ** 2).sum(axis=1) * (steps[1] ** 2).sum(axis=1))
        crossed = (steps[0] * steps[1]).sum(axis=1)
        found[left] = np.divide(crossed, sizes, out=np.zeros(left.size), where=sizes > 0)
    return found
