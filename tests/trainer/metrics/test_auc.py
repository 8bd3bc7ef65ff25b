"""Intervals and tests of the AUC, against published numbers, brute force and enumeration."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import ndtri
from scipy.stats import binomtest, chi2, norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from trainer.metrics.auc import (
    auc,
    auc_interval,
    delong,
    delong_interval,
    delong_test,
    holm,
)
from trainer.metrics.resampling import bootstrap, percentile_interval, permutation_test
from trainer.metrics.roc_and_calibration import wilson_interval

# S100b of 113 patients with subarachnoid haemorrhage (Turck et al., Intensive Care Medicine 36,
# 2010), as pROC's published ROC curve tells it: patients at each distinct value, highest first,
# by outcome.
_S100B_GOOD = (
    [0] * 11 + [2, 0, 1, 2, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1]
    + [0, 0, 0, 1, 0, 0, 2, 1, 2, 3, 4, 4, 3, 0, 4, 7, 6, 6, 6, 2, 3, 5, 0]
)  # fmt: skip
_S100B_POOR = (
    [1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1] + [0, 1, 1, 0, 0, 0, 2, 0, 1, 0, 1, 0, 1, 1, 1, 0]
    + [1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 1, 2, 1, 1, 2, 2, 1, 3, 0, 0, 0, 1]
)  # fmt: skip

# DeLong, DeLong and Clarke-Pearson's patients (Biometrics 44, 1988) without missing values, as
# SAS/STAT prints them (LOGISTIC, "Comparing Receiver Operating Characteristic Curves"): albumin,
# total protein, Krebs-Goplerud score, outcome.
_DELONG = """
3.0 5.8 10 0   3.2 6.3  5 1   3.9 6.8  3 1   2.8 4.8  6 0   3.2 5.8  3 1   0.9 4.0  5 0
2.5 5.7  8 0   1.6 5.6  5 1   3.8 5.7  5 1   3.7 6.7  6 1   3.2 5.4  4 1   3.8 6.6  6 1
4.1 6.6  5 1   3.6 5.7  5 1   4.3 7.0  4 1   3.6 6.7  4 0   2.3 4.4  6 1   4.2 7.6  4 0
4.0 6.6  6 0   3.5 5.8  6 1   3.8 6.8  7 1   3.0 4.7  8 0   4.5 7.4  5 1   3.7 7.4  5 1
3.1 6.6  6 1   4.1 8.2  6 1   4.3 7.0  5 1   4.3 6.5  4 1   3.2 5.1  5 1   2.6 4.7  6 1
3.3 6.8  6 0   1.7 4.0  7 0   3.7 6.1  5 1   3.3 6.3  7 1   4.2 7.7  6 1   3.5 6.2  5 1
2.9 5.7  9 0   2.1 4.8  7 1   2.8 6.2  8 0   4.0 7.0  7 1   3.3 5.7  6 1   3.7 6.9  5 1
3.6 6.6  5 1
"""


def test_delong_variance_and_interval_are_those_proc_publishes() -> None:
    """pROC's own tests expect var 0.00266868245717244; its manual, a 95 % CI 0.6301-0.8326."""
    values = -np.arange(50)
    scores = np.r_[np.repeat(values, _S100B_GOOD), np.repeat(values, _S100B_POOR)]
    labels = np.repeat([0, 1], [72, 41])
    areas, covariance = delong(labels, [scores])
    assert areas[0] == pytest.approx(0.73136856368563685, abs=1e-14)
    assert covariance[0, 0] == pytest.approx(0.00266868245717244, abs=1e-16)
    assert delong_interval(labels, scores) == pytest.approx((0.6301, 0.8326), abs=5e-5)


def _brute_force(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """AUCs and covariance by the paper's kernel over all pairs."""
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    kernel = (positive[:, :, None] > negative[:, None, :]).astype(float)
    kernel += 0.5 * (positive[:, :, None] == negative[:, None, :])
    areas = kernel.mean(axis=(1, 2))

    def spread(components: npt.NDArray[Any]) -> npt.NDArray[Any]:
        apart = components - areas[:, None]
        count = components.shape[1]
        squares: npt.NDArray[Any] = apart @ apart.T
        return squares / (count - 1) / count

    return areas, spread(kernel.mean(axis=2)) + spread(kernel.mean(axis=1))


def test_paired_test_on_delongs_own_patients_is_the_papers_formula_over_all_pairs() -> None:
    table = np.array(_DELONG.split(), dtype=float).reshape(-1, 4)
    labels = table[:, 3].astype(int)
    albumin, score, protein = table[:, 0], 10 - table[:, 2], table[:, 1]
    areas, covariance = _brute_force(labels, np.stack([albumin, score, protein]))
    found = delong(labels, [albumin, score, protein])
    assert found[0] == pytest.approx(areas, abs=1e-14)
    assert found[1] == pytest.approx(covariance, abs=1e-15)
    for (i, first), (j, second) in itertools.combinations(enumerate([albumin, score, protein]), 2):
        error = math.sqrt(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
        z = (areas[i] - areas[j]) / error
        test = delong_test(labels, first, second, level=0.9)
        assert test.z == pytest.approx(z, rel=1e-10)
        assert test.p_value == pytest.approx(2 * norm.sf(abs(z)), rel=1e-10)
        reach = norm.ppf(0.95) * error
        expected = (areas[i] - areas[j] - reach, areas[i] - areas[j] + reach)
        assert test.interval == pytest.approx(expected, abs=1e-12)


def test_the_joint_test_of_delongs_three_models_is_the_one_sas_prints() -> None:
    """SAS/STAT User's Guide, PROC LOGISTIC, "Comparing Receiver Operating Characteristic Curves":
    K-G score 0.7258 (0.1028), total protein 0.6478 (0.1000), chi-square 2.5340, 2 df, p 0.2817."""
    table = np.array(_DELONG.split(), dtype=float).reshape(-1, 4)
    albumin, protein, score = table[:, 0], table[:, 1], 10 - table[:, 2]
    areas, covariance = delong(table[:, 3], [score, protein, albumin])
    errors = np.sqrt(np.diag(covariance))
    assert areas[:2] == pytest.approx([0.7258, 0.6478], abs=5e-5)
    assert errors[:2] == pytest.approx([0.1028, 0.1000], abs=5e-5)
    contrast = np.array([[-1.0, 1, 0], [-1, 0, 1]])
    difference = contrast @ areas
    statistic = difference @ np.linalg.solve(contrast @ covariance @ contrast.T, difference)
    assert statistic == pytest.approx(2.5340, abs=5e-5)
    assert chi2.sf(statistic, 2) == pytest.approx(0.2817, abs=5e-5)


def test_a_model_does_not_differ_from_itself() -> None:
    labels = np.tile([0, 1], 20)
    scores = np.random.default_rng(0).normal(size=40)
    same = delong_test(labels, scores, np.exp(scores))
    assert (same.difference, same.z, same.p_value) == (0, None, 1)


def test_a_difference_without_standard_error_has_no_p_value() -> None:
    labels = np.tile([0, 1], 5)
    test = delong_test(labels, labels, -labels)
    assert (test.difference, test.z, test.p_value) == (1, None, None)


def test_delong_wants_two_patients_of_each_class() -> None:
    with pytest.raises(ValueError, match="two of each class: 1 positive and 3 negative"):
        delong_interval([0, 0, 0, 1], [1.0, 2.0, 3.0, 4.0])


def test_delong_of_a_hundred_thousand_patients_takes_no_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 50_000)
    scores = rng.normal(size=100_000).round(2) + labels
    started = time.perf_counter()
    test = delong_test(labels, scores, scores + rng.normal(size=100_000))
    assert time.perf_counter() - started < 10  # all pairs would be 2.5e9
    assert test.p_value is not None
    assert test.p_value < 1e-6


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]


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
        assert drawn.auc[i] == pytest.approx(roc_auc_score(truth, values), abs=1e-12)
        expected = average_precision_score(truth, values)
        assert drawn.average_precision[i] == pytest.approx(expected, abs=1e-12)
        curve = roc_curve(truth, values, drop_intermediate=False)
        assert drawn.sensitivity[i] == pytest.approx(np.interp(rates, *curve[:2]), abs=1e-12)


def test_bootstrap_is_the_same_for_a_seed_and_needs_both_classes() -> None:
    labels, scores = [0, 1, 0, 1, 1], [0.1, 0.4, 0.5, 0.6, 0.9]
    first, second, third = (bootstrap(labels, scores, resamples=50, seed=s).auc for s in (1, 1, 2))
    assert (first == second).all()
    assert (first != third).any()
    with pytest.raises(ValueError, match="both classes"):
        bootstrap([1, 1], [0.1, 0.2])


def test_permutation_p_value_is_that_of_all_arrangements() -> None:
    labels = np.array([0, 0, 1, 0, 1, 0, 1, 1])
    scores = np.array([1.0, 2, 2, 3, 4, 5, 6, 7])
    chosen = [np.isin(np.arange(8), c).astype(int) for c in itertools.combinations(range(8), 4)]
    every = np.array([auc(one, scores) for one in chosen])
    assert every.size == 70
    exact = (np.abs(every - 0.5) >= abs(auc(labels, scores) - 0.5) - 1e-9).mean()
    found = permutation_test(labels, scores, permutations=20_000)
    assert found.p_value == pytest.approx(exact, abs=0.012)  # 3.5 standard errors of 20,000
    assert found.null_mean == pytest.approx(0.5)
    assert found.null.std() == pytest.approx(every.std(), abs=0.005)


def test_permutation_p_value_is_never_zero() -> None:
    labels = np.repeat([0, 1], 40)
    found = permutation_test(labels, np.arange(80), permutations=99)
    assert found.p_value == pytest.approx(0.01)


def test_shuffling_within_folds_sees_through_a_fold_that_is_all_high() -> None:
    """Scores that tell the fold alone, in folds of unlike prevalence, are no evidence."""
    rng = np.random.default_rng(3)
    folds = np.repeat([0, 1], 60)
    labels = np.r_[np.repeat([0, 1], [50, 10]), np.repeat([0, 1], [10, 50])]
    scores = 10 * folds + rng.normal(size=120)
    blind = permutation_test(labels, scores, permutations=2000)
    found = permutation_test(labels, scores, strata=folds, permutations=2000)
    assert blind.p_value < 0.001
    assert found.p_value > 0.05
    assert found.null_mean > 0.8


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 7), (7, 7), (1, 1), (250, 1000)])
def test_wilson_interval_is_scipys(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert wilson_interval(hits, n, 0.9) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positive", "negative", "truth"), [(45, 45, 0.6), (45, 45, 0.8), (20, 40, 0.7), (43, 44, 0.5)]
)
def test_bootstrap_interval_covers_the_true_auc_in_93_to_97_of_100(
    positive: int, negative: int, truth: float
) -> None:
    rng = np.random.default_rng(7)
    labels = np.repeat([1, 0], [positive, negative])
    shift = math.sqrt(2) * float(ndtri(truth))  # of two unit normals
    times, hits = 1500, dict.fromkeys(("bootstrap", "DeLong", "Newcombe"), 0)
    for seed in range(times):
        scores = rng.normal(size=labels.size) + shift * labels
        drawn = bootstrap(labels, scores, resamples=1000, seed=seed)
        for name, (low, high) in (
            ("bootstrap", percentile_interval(drawn.auc)),
            ("DeLong", delong_interval(labels, scores)),
            ("Newcombe", auc_interval(labels, scores)),
        ):
            hits[name] += low <= truth <= high
    covered = {name: count / times for name, count in hits.items()}
    print(positive, negative, truth, covered)
    assert 0.93 <= covered["bootstrap"] <= 0.97, covered
    assert 0.93 <= covered["Newcombe"] <= 0.97, covered
