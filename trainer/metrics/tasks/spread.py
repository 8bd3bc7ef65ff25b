"""What figures beside the headline vary by: their intervals, and what labels dealt anew would give.

Out of fold the variance behind each is doubled, as behind the headline (`estimate`): a factor of 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats, Interval

DRAWS = 500  # of labels dealt anew
_FEWEST, _BUDGET = 100, 20_000_000  # large cohorts get fewer, and need fewer

Figure = dict[str, Any]


def figure(
    value: float | None, interval: Interval | None = None, *, reference: float | None = None
) -> Figure:
    """A figure as metrics.json holds it: value, interval, reference, and by chance (not yet known).

    Args:
      value: None where it cannot be measured.
      interval: of the value.
      reference: what the same is without looking at any patient.
    """
    known = value is not None and interval is not None
    return {
        "value": value,
        "interval": [float(limit) for limit in interval] if known and interval else None,
        "reference": reference,
        "by_chance": None,
        "by_chance_interval": None,
    }


def mean_interval(values: Floats, level: float, factor: float = 1.0) -> Interval | None:
    """Student's interval of a mean, (n,) values; None below two."""
    if values.size < 2:
        return None
    mean, away = float(values.mean()), reach(values, level, factor)
    return mean - away, mean + away


def reach(influence: Floats, level: float, factor: float = 1.0) -> float:
    """How far limits lie from a mean of such values, (n,) with n of 2 or more (Student)."""
    error = math.sqrt(factor * float(influence.var(ddof=1)) / influence.size)
    return t_of(level, influence.size - 1) * error


def t_of(level: float, freedom: float) -> float:
    """How many standard errors Student's two-sided interval of this level reaches."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


def ratio_interval(value: float, influence: Floats, level: float, factor: float = 1.0) -> Interval:
    """Interval of a positive value on its logarithm's scale, where such values vary alike.

    Args:
      value: above 0, such as a mean square, or one mean square over another.
      influence: (n,), each patient's part in the value's logarithm (the delta method).
      level, factor: as everywhere.
    """
    # A few wild patients tell little of their like: beyond e^50 nothing is said but "any number".
    away = min(50.0, reach(influence, level, factor))
    return value * math.exp(-away), value * math.exp(away)


def sum_interval(parts: Sequence[tuple[float, float, Interval]]) -> Interval:
    """Interval of a weighted sum of independent estimates from their own intervals.

    Neither empty nor beyond what the parts may be, where theirs (Wilson's) are not.

    Args:
      parts: (weight of 0 or more, value, interval) of each.

    Source: "MOVER", G. Y. Zou and A. Donner, Statistics in Medicine 27 (2008) 1693-1702.
    """
    total = sum(weight * value for weight, value, _ in parts)
    below = sum((weight * (value - low)) ** 2 for weight, value, (low, _) in parts)
    above = sum((weight * (high - value)) ** 2 for weight, value, (_, high) in parts)
    return total - math.sqrt(below), total + math.sqrt(above)


def set_by_chance(
    figures: Mapping[str, Figure],
    measured: Callable[[npt.NDArray[Any]], Mapping[str, float | None]],
    truth: npt.NDArray[Any],
    *,
    folds: npt.ArrayLike | None,
    level: float,
    factor: float,
    seed: int,
    draws: int = DRAWS,
) -> None:
    """Sets what the same answers score where labels are dealt to patients anew, within folds.

    by_chance is the mean over such deals, by_chance_interval the range that the middle `level` of
    them lie in, its variance times the factor. No claim is made of it: fixed answers were trained
    on the labels as they are, and the range of a single deal is too narrow for them
    (docs/explanation/evaluation.md).

    Args:
      figures: name → figure, changed in place.
      measured: of labels, (n, ...), the value of each figure; None where there is none.
      truth: (n, ...), the labels.
      folds: (n,) that labels stay within; None for one.
      level, factor: of the range.
      seed: of the deals.
      draws: how many deals at most; of 0 nothing is set.
    """
    n = len(truth)
    count = min(draws, max(_FEWEST, _BUDGET // max(1, truth.size)))
    rng = np.random.default_rng(seed)
    place = np.zeros(n, np.int64) if folds is None else np.asarray(folds)
    rows = [np.flatnonzero(place == fold) for fold in np.unique(place)]
    dealt = np.arange(n)
    found: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(count):
        for own in rows:
            dealt[own] = rng.permutation(own)
        for name, value in measured(truth[dealt]).items():
            if value is not None:
                found[name].append(value)
    for name, values in found.items():
        if values:
            mean = float(np.mean(values))
            limits = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
            stretched = mean + math.sqrt(factor) * (limits - mean)
            figures[name]["by_chance"] = mean
            figures[name]["by_chance_interval"] = stretched.tolist()


def silence(data: Any) -> None:
    """Sets every interval in a JSON value to null: the answers allow no claim."""
    if isinstance(data, dict):
        for name, value in data.items():
            if name.endswith("interval"):
                data[name] = None
            else:
                silence(value)
    elif isinstance(data, list):
        for value in data:
            silence(value)
