"""Prediction intervals of values: what they cover of patients that nobody has seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trainer.metrics.tasks.conformal import conformal_of, fewest

Noise = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
NOISES: dict[str, Noise] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy tails": lambda rng, n: rng.standard_t(2.5, size=n),
    "skewed": lambda rng, n: rng.lognormal(size=n),
}


def _fitted(x: Any, y: Any) -> Any:
    """Ridge coefficients."""
    return np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)


def _cohort(noise: str, n: int, rng: np.random.Generator) -> tuple[Any, Any, Any, Any, Any]:
    """Truth, out-of-fold values and folds; and truth and values of 400 new patients."""
    x = np.hstack([np.ones((n + 400, 1)), rng.normal(size=(n + 400, 3))])
    y = x @ rng.normal(size=4) + NOISES[noise](rng, n + 400)
    folds = rng.permutation(np.arange(n) % 5)
    values, fresh = np.zeros(n), np.zeros(400)
    for fold in range(5):
        fit = _fitted(x[:n][folds != fold], y[:n][folds != fold])
        values[folds == fold] = x[:n][folds == fold] @ fit
        fresh += x[n:] @ fit / 5
    return y[:n], values, folds, y[n:], fresh


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n", [30, 110])
def test_ninety_per_cent_of_new_patients_lie_within_the_intervals(noise: str, n: int) -> None:
    rng = np.random.default_rng(n)
    shares, told = [], []
    for _ in range(200):
        truth, values, folds, wanted, answered = _cohort(noise, n, rng)
        found = conformal_of(truth, values, folds=folds)
        shares.append(float((np.abs(wanted - answered) <= found["half_width"]).mean()))
        told.append(found["coverage"])
        low, high = found["coverage_interval"]
        assert low <= found["coverage"] <= high
    assert 0.88 <= np.mean(shares) <= 0.92
    assert np.mean(told) == pytest.approx(np.mean(shares), abs=0.02)


def test_the_half_width_is_the_residual_that_so_many_of_one_more_reach() -> None:
    truth = np.zeros(30)
    found = conformal_of(truth, np.arange(30.0) - 7)
    assert found["half_width"] == 20  # the 28th smallest: 28 of 31 are 90 %
    assert (found["n"], found["coverage"], found["coverage_interval"]) == (30, None, None)
    assert conformal_of(truth, np.arange(30.0), level=0.5)["half_width"] == 15


def test_too_few_patients_get_no_interval_and_are_told() -> None:
    folds = np.arange(12) % 2
    found = conformal_of(np.arange(12.0), np.zeros(12), folds=folds)
    assert (found["half_width"], found["coverage"]) == (11, None)  # six are too few to try it on
    truth = np.array([1.0, 2, 3, np.nan])
    found = conformal_of(truth, np.zeros(4))
    assert (found["half_width"], found["n"]) == (None, 3)
    assert found["too_few"] == ("Intervals of 90 % need 9 patients held out at least: there are 3.")
    for level in (0.5, 0.8, 0.9, 0.95, 0.99):
        few = fewest(level)
        assert conformal_of(np.zeros(few), np.ones(few), level=level)["half_width"] == 1
        assert conformal_of(np.zeros(few - 1), np.ones(few - 1), level=level)["too_few"]


def test_a_level_and_lengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        conformal_of([1.0], [1.0], level=1)
    with pytest.raises(ValueError, match="as many"):
        conformal_of([1.0], [1.0, 2.0])
