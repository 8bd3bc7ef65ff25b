"""Intervals of figures, and labels dealt anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from trainer.metrics.roc_and_calibration import wilson_interval
from trainer.metrics.tasks.spread import (
    figure,
    mean_interval,
    ratio_interval,
    set_by_chance,
    silence,
    sum_interval,
)


def test_interval_of_a_mean_is_students_and_a_factor_widens_its_variance():
    values = np.random.default_rng(0).normal(size=30)
    expected = stats.t.interval(0.9, 29, values.mean(), stats.sem(values))
    assert mean_interval(values, 0.9) == pytest.approx(expected)
    doubled = mean_interval(values, 0.9, 2.0)
    assert doubled is not None
    assert np.diff(doubled) == pytest.approx(np.sqrt(2) * np.diff(expected))
    assert mean_interval(values[:1], 0.9) is None


def test_sum_of_shares_keeps_an_interval_where_all_are_right():
    shares = [(0.5, 1.0, wilson_interval(10, 10)), (0.5, 1.0, wilson_interval(20, 20))]
    low, high = sum_interval(shares)
    assert 0.7 < low < 0.95
    assert high == 1.0


def test_a_ratio_has_limits_above_zero_however_wild_its_patients_are():
    low, high = ratio_interval(2.0, np.array([0.0, 0.0, 1e9]), 0.95, 2.0)
    assert 0 < low < 2 < high < np.inf


def test_labels_are_dealt_anew_within_folds_and_the_range_is_widened():
    folds = np.repeat([0, 1], 50)
    truth = folds.copy()  # the same in a whole fold: dealt anew, nothing changes

    def measured(labels):
        return {"same": float((labels == truth).mean())}

    for within, expected in ((folds, 1.0), (None, 0.5)):
        figures = {"same": figure(1.0)}
        set_by_chance(figures, measured, truth, folds=within, level=0.95, factor=2.0, seed=0)
        assert figures["same"]["by_chance"] == pytest.approx(expected, abs=0.02)
    # The share of two deals that agree has a standard deviation of 0.05 here, doubled 0.071.
    low, high = figures["same"]["by_chance_interval"]
    assert high - low == pytest.approx(2 * 1.96 * 0.0503 * np.sqrt(2), rel=0.15)


def test_what_allows_no_claim_loses_every_interval():
    found: dict[str, Any] = {"a": figure(1.0, (0.5, 2.0)), "parts": [{"interval": [0, 1], "n": 3}]}
    found["a"]["by_chance_interval"] = [0, 1]
    silence(found)
    assert found["a"] == figure(1.0)
    assert found["parts"] == [{"interval": None, "n": 3}]
