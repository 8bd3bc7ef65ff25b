"""Whether two models differ: published numbers, the formula over all pairs, folds, and marks."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2, norm

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.target import Target
from trainer.metrics.comparisons import comparisons_of, delong, delong_test
from trainer.metrics.estimate import estimate_of, holm
from trainer.metrics.predictions import Predictions

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


def test_delong_variance_is_the_one_proc_publishes() -> None:
    """pROC's own tests expect var 0.00266868245717244."""
    values = -np.arange(50)
    scores = np.r_[np.repeat(values, _S100B_GOOD), np.repeat(values, _S100B_POOR)]
    labels = np.repeat([0, 1], [72, 41])
    areas, covariance = delong(labels, [scores])
    assert areas[0] == pytest.approx(0.73136856368563685, abs=1e-14)
    assert covariance[0, 0] == pytest.approx(0.00266868245717244, abs=1e-16)


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
        covariance: npt.NDArray[Any] = apart @ apart.T / (count - 1) / count
        return covariance

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
        delong([0, 0, 0, 1], [[1.0, 2.0, 3.0, 4.0]])


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


def _within_folds(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any], folds: npt.NDArray[Any]
) -> tuple[float, npt.NDArray[Any], npt.NDArray[Any]]:
    """AUC within folds and each patient's component, pair by pair."""
    kernel = (scores[:, None] > scores) + 0.5 * (scores[:, None] == scores)
    pair = (labels[:, None] > labels) & (folds[:, None] == folds)
    area = kernel[pair].mean()
    apart = np.where(pair, kernel - area, 0)
    # A patient's excess over all of its pairs, as a share of all pairs, times its class's size.
    up = area + labels.sum() * apart.sum(axis=1)[labels == 1] / pair.sum()
    down = area + (1 - labels).sum() * apart.sum(axis=0)[labels == 0] / pair.sum()
    return float(area), up, down


@pytest.mark.parametrize("same_folds", [True, False])
def test_within_folds_the_components_are_those_of_pairs_of_a_fold(same_folds: bool) -> None:
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat([0, 1], [31, 19]))
    scores = rng.integers(0, 9, (2, 50)) + labels
    folds = [rng.integers(0, 4, 50), rng.integers(0, 4, 50)]
    if same_folds:
        folds[1] = folds[0]
    areas, ups, downs = zip(*map(_within_folds, [labels] * 2, scores, folds), strict=True)
    found = delong(labels, list(scores), list(folds))
    assert found[0] == pytest.approx(areas)
    expected = np.cov(ups) / 19 + np.cov(downs) / 31
    assert found[1] == pytest.approx(expected)
    assert areas[0] == pytest.approx(estimate_of(labels, scores[0], folds=folds[0])["auc"])
    test = delong_test(labels, scores[0], scores[1], folds=(folds[0], folds[1]))
    variance = 2 * (expected[0, 0] + expected[1, 1] - 2 * expected[0, 1])
    assert test.z == pytest.approx((areas[0] - areas[1]) / math.sqrt(variance))


def test_one_fold_alone_is_compared_as_a_test_set() -> None:
    rng = np.random.default_rng(2)
    labels, first, second = np.tile([0, 1], 20), *rng.normal(size=(2, 40))
    plain = delong_test(labels, first, second)
    assert delong_test(labels, first, second, folds=(np.full(40, 2), None)) == plain


def test_repeats_are_averaged() -> None:
    rng = np.random.default_rng(3)
    labels, scores, folds = np.tile([0, 1], 20), rng.normal(size=(3, 40)), np.arange(40) // 8
    areas, covariance = delong(labels, [scores, np.tile(scores[0], (3, 1)), scores[0]], [folds] * 3)
    each = [estimate_of(labels, one, folds=folds)["auc"] for one in scores]
    assert areas == pytest.approx([np.mean(each), each[0], each[0]])
    assert covariance[1, 1] == pytest.approx(covariance[2, 2])
    assert covariance[0, 0] < covariance[1, 1]


def _predictions(name: str, labels: Any, scores: Any, **more: Any) -> Predictions:
    keys = tuple(str(i) for i in range(len(labels)))
    return Predictions(name=name, keys=keys, labels=labels, scores=scores, **more)


@pytest.mark.parametrize("reason", ["own_fold", "searched", "permuted"])
@pytest.mark.parametrize("first", [True, False])
def test_what_allows_no_claim_is_marked_and_gets_no_test(reason: str, first: bool) -> None:
    labels, folds = np.tile([0, 1], 20), np.arange(40) // 8
    plain = _predictions("plain", labels, labels + 0.0, folds=folds)
    marked = _predictions("marked", labels, 0.0 - labels, folds=folds, no_claim=(reason,))
    one, another = (marked, plain) if first else (plain, marked)
    (found,) = comparisons_of(one, [another])
    assert found["p_value"] is found["p_value_holm"] is found["difference_interval"] is None
    assert found["no_test"].startswith("marked: ")
    assert (found["no_claim"], found["other_no_claim"]) == (
        ([reason], []) if first else ([], [reason])
    )
    (sound,) = comparisons_of(plain, [_predictions("b", labels, np.arange(40.0), folds=folds)])
    assert sound["no_test"] == ""
    assert sound["p_value"] < 0.05


def test_a_model_of_permuted_labels_is_measured_by_these() -> None:
    labels, folds = np.tile([0, 1], 20), np.arange(40) // 8
    plain = _predictions("plain", labels, labels + 0.0, folds=folds)
    null = _predictions("null", 1 - labels, 1.0 - labels, folds=folds, no_claim=("permuted",))
    (found,) = comparisons_of(plain, [null])
    assert (found["auc"], found["other_auc"], found["difference"]) == (1, 1, 0)
    assert found["no_test"].startswith("null: The labels were permuted")


def test_models_without_a_patient_in_common_are_not_compared() -> None:
    labels = np.tile([0, 1], 3)
    other = dataclasses.replace(_predictions("b", labels, labels + 0.0), keys=tuple("abcdef"))
    with pytest.raises(ContractError, match="a and b have no patient in common"):
        comparisons_of(_predictions("a", labels, labels + 0.0), [other])


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 10])
def test_two_equal_cross_validated_models_differ_in_five_of_a_hundred_at_most(shared: int) -> None:
    """Two linear classifiers, trained fold by fold on features without signal, some in common."""
    rng, times, differ = np.random.default_rng(0), 600, {"doubled": 0, "plain": 0}
    labels, folds = np.tile([0, 1], 30), np.repeat(np.arange(5), 12)
    for _ in range(times):
        features = rng.normal(size=(60, 40 - shared))
        scores = np.zeros((2, 60))
        for model, own in zip(scores, (features[:, :20], features[:, -20:]), strict=True):
            for fold in range(5):
                rest = folds != fold
                up, down = (own[rest & (labels == one)].mean(axis=0) for one in (1, 0))
                model[~rest] = own[~rest] @ (up - down)
        test = delong_test(labels, scores[0], scores[1], folds=(folds, folds))
        assert test.z is not None
        differ["doubled"] += abs(test.z) > 1.96
        differ["plain"] += abs(test.z) * math.sqrt(2) > 1.96
    print(shared, {name: count / times for name, count in differ.items()})
    assert differ["doubled"] / times <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / times)
    assert differ["plain"] / times > 0.08  # what DeLong says of independent patients


def test_models_whose_positive_classes_differ_are_not_compared() -> None:
    labels = np.tile([0, 1], 20)
    here, there = (
        Target(task="binary", labels=("mgmt",), classes=classes)
        for classes in (("methylated", "not"), ("not", "methylated"))
    )
    one, other = (
        _predictions(name, labels, labels + 0.0, target=target)
        for name, target in (("a", here), ("b", there))
    )
    with pytest.raises(ContractError, match="answer different questions"):
        comparisons_of(one, [other])
    assert comparisons_of(one, [_predictions("c", labels, labels + 0.0)])
