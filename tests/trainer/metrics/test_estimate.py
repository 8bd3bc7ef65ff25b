"""The one estimate and its rule, against scikit-learn, scipy and the formulas written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from tests.trainer.metrics.estimates import cases
from trainer.metrics.estimate import ALL_PAIRS, WITHIN_FOLDS, estimate_of


def _cohort(
    seed: int, n: int = 60, folds: int = 5, signal: float = 0.6
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat([0, 1], [n - n // 3, n // 3]))
    return labels, rng.normal(size=n) + signal * labels, np.arange(n) % folds


def _newcombe(theta: float, m: int, n: int) -> float:
    """The variance in Hanley and McNeil's own form, Q1 and Q2."""
    star = (m + n) / 2 - 1
    q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)
    return (theta * (1 - theta) + star * (q1 + q2 - 2 * theta**2)) / (m * n)


def _of_folds(theta: float, labels: Any, folds: Any) -> float:
    """The variance of folds' independent AUCs in their mean weighted by pairs."""
    counts = [(int((of == 1).sum()), int((of == 0).sum())) for of in _each(labels, folds)]
    weights = [m * n / sum(a * b for a, b in counts) for m, n in counts]
    return sum(w**2 * _newcombe(theta, m, n) for w, (m, n) in zip(weights, counts, strict=True))


def _each(labels: Any, folds: Any) -> list[Any]:
    return [labels[folds == fold] for fold in np.unique(folds)]


def _sklearns(labels: Any, scores: Any, folds: Any) -> float:
    """roc_auc_score of each fold, weighted by its pairs."""
    weights, areas = [], []
    for fold in np.unique(folds):
        truth = labels[folds == fold]
        if 0 < truth.sum() < truth.size:
            weights.append(truth.sum() * (truth.size - truth.sum()))
            areas.append(roc_auc_score(truth, scores[folds == fold]))
    return float(np.average(areas, weights=weights))


@pytest.mark.parametrize("seed", range(5))
def test_out_of_fold_auc_is_scikit_learns_of_each_fold_weighted_by_its_pairs(seed: int) -> None:
    labels, scores, folds = _cohort(seed)
    scores = np.round(scores, 1)  # ties
    found = estimate_of(labels, scores, folds=folds)
    assert found["auc"] == pytest.approx(_sklearns(labels, scores, folds), abs=1e-12)
    assert (found["estimator"], found["variance_factor"]) == (WITHIN_FOLDS, 2)
    # What tells the fold and nothing else changes nothing.
    assert estimate_of(labels, scores + 10 * folds, folds=folds) == found


@pytest.mark.parametrize("counts", [[(1, 21)] * 4 + [(29, 1)], [(3, 3), (12, 0), (0, 12)]])
def test_folds_of_few_pairs_are_not_counted_as_many(counts: list[tuple[int, int]]) -> None:
    labels = np.concatenate([np.repeat([1, 0], pair) for pair in counts])
    folds = np.repeat(np.arange(len(counts)), [sum(pair) for pair in counts])
    draws = np.random.default_rng(0).normal(size=(300, labels.size))
    claims = [estimate_of(labels, draw, folds=folds) for draw in draws]
    assert sum(one["better_than_chance"] or one["worse_than_chance"] for one in claims) <= 6


def test_a_test_set_keeps_all_pairs_and_the_plain_variance() -> None:
    labels, scores, _ = _cohort(0)
    for one_fold in (None, np.full(60, 3)):
        found = estimate_of(labels, scores, folds=one_fold)
        assert found["auc"] == pytest.approx(roc_auc_score(labels, scores))
        assert (found["estimator"], found["variance_factor"]) == (ALL_PAIRS, 1)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_limits_and_p_value_are_those_of_the_doubled_variance(level: float) -> None:
    labels, scores, folds = _cohort(1, signal=1.2)
    found = estimate_of(labels, scores, folds=folds, level=level)
    a, z = _sklearns(labels, scores, folds), float(norm.ppf(0.5 + level / 2))

    def low(t: float) -> float:
        return float(a - t - z * math.sqrt(2 * _of_folds(t, labels, folds)))

    def high(t: float) -> float:
        return float(t - a - z * math.sqrt(2 * _of_folds(t, labels, folds)))

    expected = (brentq(low, 0, a), brentq(high, a, 1 - 1e-9))
    assert found["auc_interval"] == pytest.approx(expected, abs=1e-9)
    at_half = math.sqrt(2 * _of_folds(0.5, labels, folds))
    assert found["p_value"] == pytest.approx(2 * norm.sf(abs(a - 0.5) / at_half), rel=1e-9)
    assert found["auc_told_from_chance"] == pytest.approx(0.5 + z * at_half)


def test_repeats_are_averaged_and_what_they_vary_by_is_taken_off_the_doubled_variance() -> None:
    labels, _, folds = _cohort(2)
    scores = np.random.default_rng(2).normal(size=(4, 60)) + 0.8 * labels
    found = estimate_of(labels, scores, folds=folds)
    areas = [_sklearns(labels, one, folds) for one in scores]
    assert (found["auc"], found["repeats"]) == (pytest.approx(np.mean(areas)), 4)
    v = _of_folds(0.5, labels, folds)
    w = max(v, 2 * v - (1 - 1 / 4) * float(np.var(areas, ddof=1)))
    assert v < w < 2 * v
    expected = 2 * norm.sf(abs(found["auc"] - 0.5) / math.sqrt(w))
    assert found["p_value"] == pytest.approx(expected, rel=1e-9)
    assert found["variance_factor"] == pytest.approx(w / v)
    wild = np.stack([scores[0], -scores[0]])
    assert estimate_of(labels, wild, folds=folds)["variance_factor"] == 1


def test_a_patient_that_a_repeat_lacks_is_not_counted_in_it() -> None:
    labels, _, folds = _cohort(3)
    scores = np.random.default_rng(3).normal(size=(2, 60))
    scores[1, :7] = np.nan
    found = estimate_of(labels, scores, folds=folds)
    each = (
        _sklearns(labels, scores[0], folds),
        _sklearns(labels[7:], scores[1, 7:], folds[7:]),
    )
    assert found["auc"] == pytest.approx(np.mean(each))
    assert found["n"] == 60


def test_forty_permutations_decide_and_thirty_eight_cannot() -> None:
    labels, scores, folds = _cohort(4, signal=0.9)
    value = estimate_of(labels, scores, folds=folds)["auc"]
    assert value > 0.6
    below = np.linspace(0.3, 0.62, 39)
    found = estimate_of(labels, scores, folds=folds, null=below)
    assert found["decided_by"] == "permutations"
    assert found["better_than_chance"]
    assert found["permutations"] == {"count": 39, "as_high": 0, "p_value": 1 / 40}
    assert found["p_value"] == pytest.approx(0.05)
    # The lower limit is as many standard errors away as the highest of them is from 0.5.
    low = found["auc_interval"][0]
    errors = (below.max() - 0.5) / math.sqrt(_of_folds(0.5, labels, folds))
    assert (value - low) / math.sqrt(_of_folds(low, labels, folds)) == pytest.approx(errors)
    one_as_good = estimate_of(labels, scores, folds=folds, null=[*below[:-1], value])
    assert not one_as_good["better_than_chance"]
    assert one_as_good["p_value"] == pytest.approx(0.1)
    few = estimate_of(labels, scores, folds=folds, null=below[:38])
    plain = estimate_of(labels, scores, folds=folds)
    assert few["decided_by"] == "interval"
    assert few["permutations"]["count"] == 38
    assert {**few, "permutations": None} == plain


def test_a_reason_takes_claim_interval_and_p_value() -> None:
    labels = np.tile([0, 1], 40)
    found = estimate_of(labels, labels, folds=np.arange(80) // 16, no_claim=("own_fold",))
    assert (found["auc"], found["no_claim"]) == (1, ["own_fold"])
    for name in ("auc_interval", "p_value", "decided_by", "auc_told_from_chance"):
        assert found[name] is None
    assert (found["better_than_chance"], found["worse_than_chance"]) == (False, False)


@pytest.mark.parametrize(
    ("labels", "scores", "folds", "said"),
    [
        ([1, 1], [0.1, 0.2], [0, 1], "both classes"),
        ([0, 1, 1], [0.1, 0.2, 0.3], [0, 1, 1], "no fold has them"),
        ([0, 1], [[0.1, math.nan], [0.2, math.nan]], None, "one a patient"),
        ([0, 1], [0.1, math.nan], None, "finite"),
        ([0, 1], [math.inf, 0.1], None, "finite"),
    ],
)
def test_what_has_no_estimate_is_refused(labels: Any, scores: Any, folds: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        estimate_of(labels, scores, folds=folds)


def test_null_aucs_must_be_aucs() -> None:
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        estimate_of([0, 1], [0.1, 0.2], null=[0.4, math.nan])


def test_a_fold_of_one_class_has_no_pairs() -> None:
    found = estimate_of([0, 1, 1, 1], [1.0, 2, 9, -9], folds=[0, 0, 1, 1])
    assert (found["auc"], found["n"]) == (1, 4)


@given(cases())
def test_claim_interval_and_p_value_never_contradict_each_other(case: dict[str, Any]) -> None:
    found = estimate_of(**case)
    low, high = found["auc_interval"]
    assert 0 <= low <= found["auc"] + 1e-9
    assert found["auc"] - 1e-9 <= high <= 1
    assert found["better_than_chance"] == (low > 0.5)
    assert found["worse_than_chance"] == (high < 0.5)
    claims = found["better_than_chance"] or found["worse_than_chance"]
    alpha = 1 - case["level"]
    small = found["p_value"] < alpha
    if found["decided_by"] == "permutations":
        small = found["p_value"] <= alpha + 1e-9
    assert claims == small
    assert found["better_than_chance"] == (found["auc"] > found["auc_told_from_chance"] + 1e-11)
