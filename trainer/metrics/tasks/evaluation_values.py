"""What is measured of values beside the headline: errors, agreement, and a line through them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats, Interval, z_of
from trainer.metrics.tasks.spread import (
    DRAWS,
    Figure,
    figure,
    mean_interval,
    ratio_interval,
    set_by_chance,
    t_of,
)

LIMITS_LEVEL = 0.95  # of the differences that lie between Bland and Altman's limits


def pearson(truth: Floats, values: Floats, folds: npt.ArrayLike | None = None) -> float | None:
    """Pearson's correlation, of values less their fold's mean; None where they do not vary.

    Networks without signal answer their training patients' mean, which is the higher the lower that
    of the patients held out is: across folds, a correlation would be negative by that alone.

    Args:
      truth, values: (n,).
      folds: (n,), None for one.
    """
    x, y = _centred(truth, folds), _centred(values, folds)
    squares = float(x @ x) * float(y @ y)
    # What rounding leaves of constants is no variation.
    scale = max(float(np.abs(truth).max()), 1e-300) * max(float(np.abs(values).max()), 1e-300)
    if squares <= (1e-13 * scale * truth.size) ** 2:
        return None
    return float(np.clip(float(x @ y) / math.sqrt(squares), -1, 1))


def _centred(values: Floats, folds: npt.ArrayLike | None) -> Floats:
    """Values less their mean; less their fold's."""
    if folds is None:
        found: Floats = values - values.mean()
        return found
    _, place = np.unique(np.asarray(folds), return_inverse=True)
    found = values - (np.bincount(place, values) / np.bincount(place))[place]
    return found


def pearson_interval(value: float, freedom: float, level: float, factor: float) -> Interval | None:
    """Fisher's interval of a correlation.

    Args:
      value: the correlation.
      freedom: patients less 3; of values within folds, less 2 and the number of folds.
      level, factor: as everywhere.

    Returns:
      None where freedom is not above 0; of a correlation of 1 or -1 nothing but itself is left.
    """
    if freedom <= 0:
        return None
    if abs(value) == 1:
        return value, value
    away = z_of(level) * math.sqrt(factor / freedom)
    return math.tanh(math.atanh(value) - away), math.tanh(math.atanh(value) + away)


def value_figures(
    truth: Floats,
    values: Floats,
    *,
    folds: npt.ArrayLike | None = None,
    level: float = 0.95,
    factor: float = 1.0,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Figure]:
    """Errors and correlation of predicted values.

    Args:
      truth: in the label's unit, (n,).
      values: predicted, likewise.
      folds: (n,), that the correlation is within and labels are dealt anew within; None for one.
      level: of every interval.
      factor: of the variance behind it.
      seed: of the labels dealt anew.
      draws: how many deals of them.

    Returns:
      Name → `spread.figure`: mae (its reference: answering the patients' own median), rmse (their
      mean), r2 (0: their mean), pearson. All but the correlation are of all patients together: a
      level that differs from fold to fold is an error of the value.
    """
    errors = values - truth
    places = np.unique(np.asarray(folds)).size if folds is not None else 1
    size = truth.size

    def measured(labels: Floats) -> dict[str, float | None]:
        apart = values - labels
        total = float(labels.var())
        return {
            "mae": float(np.abs(apart).mean()),
            "rmse": math.sqrt(float((apart**2).mean())),
            "r2": 1 - float((apart**2).mean()) / total if total > 0 else None,
            "pearson": pearson(labels, values, folds),
        }

    found = measured(truth)
    intervals: dict[str, Interval | None] = dict.fromkeys(found)
    absolute, squares = np.abs(errors), errors**2
    mae, mean_square, total = float(absolute.mean()), float(squares.mean()), float(truth.var())
    if size > 1 and mean_square > 0:
        intervals["mae"] = ratio_interval(mae, absolute / mae - 1, level, factor)
        rmse = math.sqrt(mean_square)
        intervals["rmse"] = ratio_interval(rmse, (squares / mean_square - 1) / 2, level, factor)
        if total > 0:
            spread = (truth - truth.mean()) ** 2
            low, high = ratio_interval(
                mean_square / total, squares / mean_square - spread / total, level, factor
            )
            intervals["r2"] = 1 - high, 1 - low
    if found["pearson"] is not None:
        intervals["pearson"] = pearson_interval(
            found["pearson"], size - places - 2, level, factor
        )  # fmt: skip
    references = {
        "mae": float(np.abs(truth - np.median(truth)).mean()),
        "rmse": math.sqrt(total),
        "r2": 0.0,
        "pearson": 0.0,
    }
    figures = {
        name: figure(value, intervals[name], reference=references[name])
        for name, value in found.items()
    }
    set_by_chance(
        figures, measured, truth, folds=folds, level=level, factor=factor, seed=seed, draws=draws
    )
    return figures


def bland_altman(
    truth: Floats, values: Floats, *, level: float = 0.95, factor: float = 1.0
) -> dict[str, Any]:
    """Agreement of predicted with true values: bias, and the limits that 95 % of differences keep.

    Args:
      truth, values: (n,).
      level, factor: of the intervals.

    Returns:
      bias and bias_interval of predicted less true; sd of the differences; low, low_interval, high
      and high_interval: the limits, bias ± 1.96 sd; inside: share of the patients between them.
      Intervals are null below three patients.

    Source: J. M. Bland and D. G. Altman, Lancet 327 (1986) 307-310, and Statistical Methods in
    Medical Research 8 (1999) 135-160: a limit's variance is sd² (1 / n + z² / (2 (n - 1))).
    """
    differences = values - truth
    n = differences.size
    bias = float(differences.mean())
    sd = float(differences.std(ddof=1)) if n > 1 else 0.0
    z = z_of(LIMITS_LEVEL)
    enough = n > 2
    away = 0.0
    if enough:
        away = t_of(level, n - 1) * sd * math.sqrt(factor * (1 / n + z**2 / (2 * (n - 1))))
    low, high = bias - z * sd, bias + z * sd
    interval = mean_interval(differences, level, factor) if enough else None
    return {
        "bias": bias,
        "bias_interval": list(interval) if interval else None,
        "sd": sd,
        "low": low,
        "low_interval": [low - away, low + away] if enough else None,
        "high": high,
        "high_interval": [high - away, high + away] if enough else None,
        "inside": float(np.mean((differences >= low) & (differences <= high))),
    }


def calibration_line(
    truth: Floats, values: Floats, *, level: float = 0.95, factor: float = 1.0
) -> dict[str, Any] | None:
    """The line of true on predicted values: intercept 0 and slope 1 are right.

    A slope below 1 says that predictions are spread too wide, above 1 that they keep too near the
    mean. The interval is the sandwich's (HC3), for errors that grow with the value.

    Returns:
      intercept, slope and slope_interval; None below three patients or of values all alike.

    Source: J. G. MacKinnon and H. White, Journal of Econometrics 29 (1985) 305-325 (HC3).
    """
    x = values - values.mean()
    squares = float(x @ x)
    if truth.size < 3 or squares <= (1e-13 * float(np.abs(values).max())) ** 2 * truth.size:
        return None
    slope = float(x @ truth) / squares
    intercept = float(truth.mean() - slope * values.mean())
    leverage = 1 / truth.size + x**2 / squares
    left = (truth - intercept - slope * values) / np.maximum(1 - leverage, 1e-9)
    error = math.sqrt(factor * float(((x * left) ** 2).sum())) / squares
    away = t_of(level, truth.size - 2) * error
    return {
        "intercept": intercept,
        "slope": slope,
        "slope_interval": [slope - away, slope + away],
    }
