"""Figures of findings equal the libraries', each over the patients of whom it is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from trainer.metrics.logits import sigmoid
from trainer.metrics.tasks.evaluation_findings import findings_figures, findings_parts

NAMES = ("edema", "necrosis", "cyst")


def _cohort():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (60, 3)).astype(float)
    logits = rng.normal(size=(60, 3)) + 1.2 * (truth - 0.5)
    truth[rng.random((60, 3)) < 0.2] = np.nan
    known = ~np.isnan(truth).all(axis=1)
    return truth[known], logits[known]


def test_means_over_findings_equal_scikit_learns_of_each():
    truth, logits = _cohort()
    figures = findings_figures(truth, logits)
    losses, squares = [], []
    for column, values in zip(truth.T, sigmoid(logits).T, strict=True):
        known = ~np.isnan(column)
        losses.append(metrics.log_loss(column[known], values[known]))
        squares.append(metrics.brier_score_loss(column[known], values[known]))
    assert figures["log_loss"]["value"] == pytest.approx(np.mean(losses))
    assert figures["brier"]["value"] == pytest.approx(np.mean(squares))
    complete = ~np.isnan(truth).any(axis=1)
    whole = findings_figures(truth[complete], logits[complete])["all_right"]["value"]
    expected = metrics.accuracy_score(truth[complete], logits[complete] >= 0)
    assert whole == pytest.approx(expected)


def test_each_finding_is_measured_on_the_patients_of_whom_it_is_known():
    truth, logits = _cohort()
    parts = findings_parts(truth, logits[None], NAMES, folds=None, level=0.95, factor=1.0, seed=0)
    for place, part in enumerate(parts):
        known = ~np.isnan(truth[:, place])
        own, values = truth[known, place], logits[known, place]
        assert part["sensitivity"]["of"] + part["specificity"]["of"] == known.sum()
        assert part["sensitivity"]["value"] == pytest.approx(
            metrics.recall_score(own, values >= 0)
        )  # fmt: skip
        expected = metrics.average_precision_score(own, values)
        assert part["average_precision"]["value"] == pytest.approx(expected)
        roc = part["roc"]
        area = metrics.auc(roc["false_positive_rate"], roc["sensitivity"])
        assert area == pytest.approx(metrics.roc_auc_score(own, values))
        loss = part["figures"]["log_loss"]
        assert loss["value"] == pytest.approx(metrics.log_loss(own, sigmoid(values)))


def test_a_finding_that_nobody_has_or_nobody_knows_of_is_told_without_numbers():
    truth = np.array([[0.0, np.nan], [0.0, np.nan], [0.0, np.nan]])
    logits = np.array([[-2.0, 0.3], [1.0, 0.2], [-1.0, 0.1]])
    absent, unknown = findings_parts(
        truth, logits[None], ("a", "b"), folds=None, level=0.95, factor=1.0, seed=0
    )
    assert absent["sensitivity"]["value"] is absent["roc"] is absent["average_precision"] is None
    assert absent["specificity"]["value"] == pytest.approx(2 / 3)
    assert (unknown["share"], unknown["calibration"], unknown["figures"]) == (None, None, None)
    figures = findings_figures(truth, logits)
    assert figures["all_right"]["value"] == pytest.approx(2 / 3)
    assert figures["log_loss"]["reference"] == pytest.approx(0, abs=1e-12)
