"""Figures of values equal the libraries'; limits and lines where there is little to go by."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from trainer.metrics.tasks.evaluation_values import (
    bland_altman,
    calibration_line,
    pearson,
    pearson_interval,
    value_figures,
)


def _cohort(n=50):
    rng = np.random.default_rng(4)
    truth = 40 + 10 * rng.normal(size=n)
    return truth, 0.6 * truth + 18 + 6 * rng.normal(size=n)


def test_figures_equal_scikit_learns_and_scipys():
    truth, values = _cohort()
    figures = value_figures(truth, values)
    correlation = stats.pearsonr(truth, values)
    expected = {
        "mae": metrics.mean_absolute_error(truth, values),
        "rmse": metrics.root_mean_squared_error(truth, values),
        "r2": metrics.r2_score(truth, values),
        "pearson": correlation.statistic,
    }
    assert {name: one["value"] for name, one in figures.items()} == pytest.approx(expected)
    assert figures["pearson"]["interval"] == pytest.approx(correlation.confidence_interval(0.95))
    for one in figures.values():
        assert one["interval"][0] < one["value"] < one["interval"][1]
    median, mean = np.full(50, np.median(truth)), np.full(50, truth.mean())
    mae = metrics.mean_absolute_error(truth, median)
    assert figures["mae"]["reference"] == pytest.approx(mae)
    rmse = metrics.root_mean_squared_error(truth, mean)
    assert figures["rmse"]["reference"] == pytest.approx(rmse)


def test_agreement_equals_students_interval_and_bland_and_altmans_formula():
    truth, values = _cohort()
    found = bland_altman(truth, values, level=0.9)
    apart = values - truth
    expected = stats.t.interval(0.9, 49, apart.mean(), stats.sem(apart))
    assert found["bias_interval"] == pytest.approx(expected)
    sd = apart.std(ddof=1)
    assert found["high"] == pytest.approx(apart.mean() + 1.959964 * sd)
    error = sd * np.sqrt(1 / 50 + 1.959964**2 / 98)
    low, high = found["low_interval"]
    assert high - low == pytest.approx(2 * stats.t.ppf(0.95, 49) * error)


def test_the_line_equals_statsmodels_with_robust_errors():
    # statsmodels 0.15: OLS(y, add_constant(p)).fit(cov_type="HC3", use_t=True).
    rng = np.random.default_rng(5)
    rng.integers(0, 4, 80)
    rng.integers(-1, 2, 80)
    truth = rng.normal(size=50) * 10 + 40
    values = 0.6 * truth + 10 + rng.normal(size=50) * np.abs(truth - 40) * 0.5
    found = calibration_line(truth, values)
    assert found is not None
    assert found["intercept"] == pytest.approx(3.04179132, abs=1e-7)
    assert found["slope"] == pytest.approx(1.05935413, abs=1e-7)
    assert found["slope_interval"] == pytest.approx([0.79542, 1.32328827], abs=1e-7)
    assert calibration_line(truth, np.full(50, 0.1)) is None


def test_correlation_within_folds_forgets_their_levels():
    truth, values = _cohort(60)
    folds = np.arange(60) % 3
    shifted = values + 100 * folds
    within = pearson(truth, values, folds)
    assert pearson(truth, shifted, folds) == pytest.approx(within)
    # The partial correlation given the fold, as regressions on it leave it.
    left = [
        one - np.array([one[folds == f].mean() for f in range(3)])[folds] for one in (truth, values)
    ]
    assert within == pytest.approx(stats.pearsonr(*left).statistic)
    assert pearson(truth, np.full(60, 0.1)) is None
    # Answering the mean of the other folds is no signal, and reads as none.
    means = np.array([truth[folds != f].mean() for f in range(3)])[folds]
    assert (pearson(truth, means) or 0) < -0.05
    assert pearson(truth, means, folds) is None


def test_few_patients_have_values_and_no_intervals():
    truth, values = np.array([1.0, 2.0]), np.array([2.0, 2.5])
    agreement = bland_altman(truth, values)
    assert agreement["bias"] == pytest.approx(0.75)
    assert agreement["bias_interval"] is agreement["low_interval"] is None
    assert calibration_line(truth, values) is None
    assert pearson_interval(0.5, 0, 0.95, 1.0) is None
    alone = value_figures(np.array([3.0]), np.array([4.0]))
    assert alone["mae"]["value"] == 1
    assert alone["mae"]["interval"] is alone["r2"]["value"] is alone["pearson"]["value"] is None


def test_perfect_answers_have_no_error_and_break_nothing():
    truth, _ = _cohort()
    figures = value_figures(truth, truth.copy())
    assert (figures["mae"]["value"], figures["r2"]["value"]) == (0, 1)
    assert figures["mae"]["interval"] is None
    assert figures["pearson"]["value"] == pytest.approx(1)
