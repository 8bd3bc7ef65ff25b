"""Prediction intervals of values: as wide as the networks were wrong about patients held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats
from trainer.metrics.estimate import OUT_OF_FOLD_FACTOR, is_out_of_fold
from trainer.metrics.roc_and_calibration import wilson_interval


def conformal_of(
    truth: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    folds: npt.ArrayLike | None = None,
    level: float = 0.9,
) -> dict[str, Any]:
    """Half the width of the intervals that hold a new patient's value in `level` of all patients.

    The interval of a value is value ± half_width: among n + 1 patients of whom each could be the
    new one, the new one's residual is at most the k-th smallest of the others in k of n + 1 cases.
    No distribution is assumed, but that new patients are like these; the level holds over all
    patients, not for each kind of them.

    Args:
      truth: the patients' values, (n,); NaN unknown.
      values: predicted by networks that did not see them, (n,).
      folds: which each patient was held out in, (n,); None where no coverage is to be measured.
      level: of the intervals.

    Returns:
      JSON object: level, n, half_width (in the label's unit; null where there are too few),
      coverage (share of each fold's patients within intervals from the other folds' residuals;
      null without folds or where these are too few), coverage_interval ([low, high] of 95 %, or
      null) and too_few (a sentence that says so, or "").

    Raises:
      ValueError: lengths differ, or a level outside (0, 1).

    Source: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, JASA 113 (2018) 1094-1111; of residuals
    out of fold: Vovk, Annals of Mathematics and Artificial Intelligence 74 (2015) 9-28.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1: {level}")
    wanted, answered = (np.asarray(one, np.float64) for one in (truth, values))
    if wanted.shape != answered.shape or wanted.ndim != 1:
        raise ValueError(f"as many labels as values needed: {wanted.shape} and {answered.shape}")
    known = ~np.isnan(wanted) & ~np.isnan(answered)
    residuals = np.abs(answered - wanted)[known]
    half_width = _quantile(residuals, level)
    covered = None
    if folds is not None and is_out_of_fold(folds):
        covered = _covered(residuals, np.asarray(folds)[known], level)
    interval: Sequence[float] | None = None
    if covered is not None:
        interval = wilson_interval(covered, residuals.size, factor=OUT_OF_FOLD_FACTOR)
    too_few = ""
    if half_width is None:
        too_few = (
            f"Intervals of {100 * level:g} % need {fewest(level)} patients held out at least: "
            f"there are {residuals.size}."
        )
    return {
        "level": level,
        "n": int(residuals.size),
        "half_width": half_width,
        "coverage": None if covered is None else covered / residuals.size,
        "coverage_interval": None if interval is None else list(interval),
        "too_few": too_few,
    }


def fewest(level: float) -> int:
    """So few patients' residuals still have a quantile for intervals of this level.

    >>> fewest(0.9), fewest(0.95)
    (9, 19)
    """
    return math.ceil(level / (1 - level) - 1e-9)


def _quantile(residuals: Floats, level: float) -> float | None:
    place = math.ceil((residuals.size + 1) * level - 1e-9)
    return float(np.sort(residuals)[place - 1]) if 0 < place <= residuals.size else None


def _covered(residuals: Floats, folds: npt.NDArray[Any], level: float) -> int | None:
    """Patients within the interval from the other folds; None where a fold has none."""
    covered = 0
    for fold in np.unique(folds):
        half_width = _quantile(residuals[folds != fold], level)
        if half_width is None:
            return None
        covered += int((residuals[folds == fold] <= half_width).sum())
    return covered
