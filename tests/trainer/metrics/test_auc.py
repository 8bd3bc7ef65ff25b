"""The AUC, and intervals of it, of proportions and of draws, against scipy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from trainer.metrics.auc import auc
from trainer.metrics.estimate import estimate_of
from trainer.metrics.resampling import bootstrap, percentile_interval, sensitivities_within_folds
from trainer.metrics.roc_and_calibration import wilson_interval


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_auc_is_scikit_learns_with_few_and_many_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        labels = np.r_[0, 1, rng.integers(0, 2, 60)]
        scores = rng.integers(0, levels, labels.size) + 0.5 * labels
        assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ([1, 1], [0.1, 0.2], "both classes"),
        ([0, 2], [0.1, 0.2], "0 or 1"),
        ([0, 1], [0.1, math.nan], "finite"),
        ([0, 1], [0.1], "as many"),
        ([], [], "as many"),
    ],
)
def test_what_has_no_auc_is_refused(labels: list[int], scores: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        auc(labels, scores)


def test_limits_are_z_standard_errors_at_the_limit_away() -> None:
    """The variance here is Hanley and McNeil's own form, Q1 and Q2, not the code's."""
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(25, int), np.ones(40, int)]
    scores = rng.normal(size=65) + labels
    m, n = 25, 40
    star = (m + n) / 2 - 1
    for limit in estimate_of(labels, scores, level=0.9)["auc_interval"]:
        q1, q2 = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        variance = (limit * (1 - limit) + star * (q1 + q2 - 2 * limit**2)) / (m * n)
        distance = abs(auc(labels, scores) - limit)
        assert distance == pytest.approx(ndtri(0.95) * math.sqrt(variance), rel=1e-6)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 15)
    truth = 0.8144533  # of two unit normals 1.2656 apart
    shift = math.sqrt(2) * float(ndtri(truth))
    hits = 0
    for _ in range(300):
        low, high = estimate_of(labels, rng.normal(size=30) + shift * labels)["auc_interval"]
        hits += low <= truth <= high
    assert 0.92 <= hits / 300 <= 0.99


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_auc_still_has_an_interval(sign: int) -> None:
    labels = np.repeat([0, 1], 10)
    low, high = estimate_of(labels, sign * labels)["auc_interval"]
    assert (high if sign == 1 else low) == (1.0 if sign == 1 else 0.0)
    assert 0.1 < high - low < 0.4


def test_more_patients_narrow_the_interval() -> None:
    widths = []
    for n in (10, 100, 1000):
        low, high = estimate_of(np.tile([0, 1, 0, 1], n), np.tile([1, 2, 3, 4], n))["auc_interval"]
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_each_draw_of_the_bootstrap_is_measured_as_scikit_learn_measures_it() -> None:
    rng = np.random.default_rng(5)
    labels = rng.permutation(np.repeat([0, 1], [13, 21]))
    scores = rng.integers(0, 8, labels.size) + labels
    rates = np.array([0.1, 0.35, 0.8])
    drawn = bootstrap(labels, scores, resamples=25, seed=9, rates=rates)
    again = np.random.default_rng(9)
    ups = scores[labels == 1][again.integers(0, 21, (25, 21))]
    downs = scores[labels == 0][again.integers(0, 13, (25, 13))]
    for i in range(25):
        truth, values = np.repeat([1, 0], [21, 13]), np.r_[ups[i], downs[i]]
        expected = average_precision_score(truth, values)
        assert drawn.average_precision[i] == pytest.approx(expected, abs=1e-12)
        curve = roc_curve(truth, values, drop_intermediate=False)
        assert drawn.sensitivity[i] == pytest.approx(np.interp(rates, *curve[:2]), abs=1e-12)


def test_bootstrap_is_the_same_for_a_seed_and_needs_both_classes() -> None:
    labels, scores = [0, 1, 0, 1, 1], [0.1, 0.4, 0.5, 0.6, 0.9]
    first, second, third = (
        bootstrap(labels, scores, resamples=50, seed=s).average_precision for s in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != third).any()
    with pytest.raises(ValueError, match="both classes"):
        bootstrap([1, 1], [0.1, 0.2])


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (1, 1), (250, 1000)])
def test_wilson_interval_is_scipys(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert wilson_interval(hits, n, 0.9) == pytest.approx(tuple(expected), abs=1e-12)


def test_out_of_fold_each_patient_counts_half_in_wilsons_interval() -> None:
    expected = binomtest(3, 7).proportion_ci(0.95, method="wilson")
    assert wilson_interval(6, 14, factor=2) == pytest.approx(tuple(expected), abs=1e-12)


def test_sensitivities_are_drawn_within_folds_and_weighted_by_their_pairs() -> None:
    rng = np.random.default_rng(6)
    labels, folds = np.tile([0, 0, 1], 20), np.repeat([0, 1], [24, 36])
    scores = rng.normal(size=60) + labels + 5 * folds
    rates = np.array([0.2, 0.5])
    drawn = sensitivities_within_folds(labels, scores, folds, rates=rates, resamples=30, seed=3)
    each = [
        bootstrap(labels[f], scores[f], resamples=30, seed=3 + k, rates=rates).sensitivity
        for k, f in enumerate((folds == 0, folds == 1))
    ]
    expected = (8 * 16 * each[0] + 12 * 24 * each[1]) / (8 * 16 + 12 * 24)
    assert drawn == pytest.approx(expected)


def test_a_factor_stretches_the_draws_interval_and_stays_in_0_to_1() -> None:
    draws = np.random.default_rng(0).normal(0.6, 0.05, 4000)
    low, high = percentile_interval(draws)
    wide = percentile_interval(draws, factor=2.0)
    assert (wide[1] - wide[0]) / (high - low) == pytest.approx(math.sqrt(2))
    assert [float(limit) for limit in percentile_interval([0.0, 1.0], factor=2.0)] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positive", "negative", "truth"), [(45, 45, 0.6), (45, 45, 0.8), (20, 40, 0.7), (43, 44, 0.5)]
)
def test_interval_covers_the_true_auc_in_93_to_97_of_100(
    positive: int, negative: int, truth: float
) -> None:
    rng = np.random.default_rng(7)
    labels = np.repeat([1, 0], [positive, negative])
    shift = math.sqrt(2) * float(ndtri(truth))  # of two unit normals
    times, hits = 1500, 0
    for _ in range(times):
        scores = rng.normal(size=labels.size) + shift * labels
        low, high = estimate_of(labels, scores)["auc_interval"]
        hits += low <= truth <= high
    print(positive, negative, truth, hits / times)
    assert 0.93 <= hits / times <= 0.97
