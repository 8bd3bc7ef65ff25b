"""Curves, calibration and operating points, against scikit-learn and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    auc as area,
)
from sklearn.metrics import (
    roc_curve,
)

from trainer.metrics.logits import sigmoid
from trainer.metrics.roc_and_calibration import (
    calibration_bins,
    error_if_calibrated,
    expected_calibration_error,
    operating_points,
    recalibration,
    thinned,
)

LEVELS = pytest.mark.parametrize("levels", [3, 20, 10_000])


def _sample(levels: int, n: int = 90) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(levels)
    labels = np.r_[0, 1, rng.integers(0, 2, n - 2)]
    return labels, rng.integers(0, levels, n) / levels


@LEVELS
def test_calibration_bins_are_scikit_learns(levels: int) -> None:
    labels, scores = _sample(levels)
    observed, predicted = calibration_curve(labels, scores, n_bins=7, strategy="quantile")
    bins = calibration_bins(labels, scores, bins=7)
    assert [one.observed for one in bins] == pytest.approx(observed, abs=1e-12)
    assert [one.predicted for one in bins] == pytest.approx(predicted, abs=1e-12)
    assert sum(one.n for one in bins) == labels.size
    assert sum(one.positive for one in bins) == labels.sum()


def test_thinning_keeps_the_area_until_there_are_too_many_points() -> None:
    labels, scores = _sample(10_000, 2000)
    rates, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert rates.size > 1500
    few = thinned(rates, hits, most=5000)
    assert few[0].size < 1200
    assert area(*few) == pytest.approx(area(rates, hits), abs=1e-12)
    fewer = thinned(rates, hits, most=100)
    assert fewer[0].size <= 100
    assert area(*fewer) == pytest.approx(area(rates, hits), abs=0.01)
    assert (fewer[0][0], fewer[1][0], fewer[0][-1], fewer[1][-1]) == (0, 0, 1, 1)


def test_expected_calibration_error_by_hand() -> None:
    bins = calibration_bins([0, 1, 1, 1], [0.2, 0.2, 0.8, 0.8], bins=2)
    # Bins of 2: |0.5 - 0.2| and |1 - 0.8|.
    assert expected_calibration_error(bins) == pytest.approx(0.25)


def test_calibrated_probabilities_have_the_error_that_small_bins_make() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.05, 0.95, 300)
    expected = error_if_calibrated(probabilities)
    drawn = [
        expected_calibration_error(calibration_bins(rng.random(300) < probabilities, probabilities))
        for _ in range(60)
    ]
    assert expected == pytest.approx(np.mean(drawn), abs=0.008)
    assert expected > 0.04


def test_recalibration_is_the_unpenalised_logistic_regression() -> None:
    rng = np.random.default_rng(4)
    truth = rng.normal(size=400)
    labels = (rng.random(400) < sigmoid(0.5 * truth - 0.3)).astype(int)
    fit = LogisticRegression(C=np.inf, tol=1e-10).fit(truth[:, None], labels)
    expected = (fit.intercept_[0], fit.coef_[0, 0])
    assert recalibration(labels, truth) == pytest.approx(expected, abs=1e-4)


def test_calibration_in_the_large_finds_probabilities_that_are_all_too_high() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(size=40_000)
    labels = (rng.random(40_000) < sigmoid(logits)).astype(int)
    right, high = recalibration(labels, logits), recalibration(labels, logits + 1)
    assert right == pytest.approx((0, 1), abs=0.05)
    assert high == pytest.approx((-1, 1), abs=0.06)


@pytest.mark.parametrize("logits", [[-1.0, -2.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]])
def test_what_has_no_calibration_line_has_none(logits: list[float]) -> None:
    assert recalibration([0, 0, 1, 1], logits) is None


@LEVELS
def test_operating_points_reach_what_they_were_chosen_for_and_no_more(levels: int) -> None:
    labels, scores = _sample(levels)
    youden, sensitive, specific, half = operating_points(labels, scores)

    def rates(threshold: float) -> tuple[float, float]:
        called = scores >= threshold
        return called[labels == 1].mean(), (~called)[labels == 0].mean()

    every = {t: rates(t) for t in (*np.unique(scores), np.inf)}
    for point in (youden, sensitive, specific, half):
        threshold = np.inf if point.threshold is None else point.threshold
        hits, of = point.shares()["sensitivity"]
        assert hits / of == pytest.approx(rates(threshold)[0])
        hits, of = point.shares()["specificity"]
        assert hits / of == pytest.approx(rates(threshold)[1])
        hits, of = point.shares()["ppv"]
        assert (hits, of) == ((scores >= threshold)[labels == 1].sum(), (scores >= threshold).sum())
    best = max(sum(pair) for pair in every.values())
    assert sum(rates(youden.threshold if youden.threshold is not None else np.inf)) == (
        pytest.approx(best)
    )
    assert sensitive.threshold == max(t for t, (sens, _) in every.items() if sens >= 0.9)
    lowest = min(t for t, (_, spec) in every.items() if spec >= 0.9)
    assert specific.threshold == (None if lowest == np.inf else lowest)
    assert half.threshold == 0.5


def test_nine_of_ten_patients_are_ninety_percent() -> None:
    labels = np.repeat([1, 0], 10)
    scores = np.r_[np.arange(11, 21), np.arange(3, 12), 30] / 30  # one negative above them all
    _, sensitive, specific, _ = operating_points(labels, scores)
    assert (sensitive.true_positive, sensitive.false_negative) == (9, 1)
    assert (specific.true_negative, specific.false_positive) == (9, 1)
    assert sensitive.threshold == pytest.approx(12 / 30)
