"""What classes are ranked by."""

import numpy as np
import pytest
from sklearn import metrics

from tests.datasets import TARGETS
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.evaluation_classes import class_parts
from trainer.metrics.tasks.measure import log_odds, macro_auc, softmax


def test_log_odds_are_the_logits_of_probabilities():
    logits = np.random.default_rng(0).normal(scale=3, size=(2, 40, 4))
    logits[1, 7] = np.nan  # a repeat that lacks a patient
    p = softmax(logits)
    np.testing.assert_allclose(log_odds(logits), np.log(p / (1 - p)), atol=1e-8)


def test_log_odds_are_finite_and_alike_for_equal_logits():
    found = log_odds([[800.0, -800.0, 0.0], [5.0, 5.0, 5.0]])
    assert found == pytest.approx(np.array([[800, -1600, -800], [-np.log(2)] * 3]))


def test_classes_of_which_networks_are_sure_are_still_ranked():
    """Probabilities of 1 would be ties: the epochs' score, the headline and the curve are one."""
    truth = np.array([0, 0, 1, 1, 2, 2])
    sure = np.array([60.0, 70.0, 40.0, 41.0, 45.0, 46.0])
    logits = np.stack([sure, np.zeros(6), np.arange(6.0)], axis=1)
    assert softmax(logits)[:, 0].tolist() == [1.0] * 6
    score = macro_auc(truth, logits)
    estimate = estimate_of_task(TARGETS["multiclass"], truth, logits)
    assert score == pytest.approx(estimate["score"], abs=1e-12)
    names = TARGETS["multiclass"].classes
    assert estimate["parts"][0]["auc"] == 1
    parts = class_parts(
        truth, logits[None], names, folds=None, level=0.95, factor=1.0, seed=0
    )  # fmt: skip
    for part, told in zip(parts, estimate["parts"], strict=True):
        area = metrics.auc(part["roc"]["false_positive_rate"], part["roc"]["sensitivity"])
        assert area == pytest.approx(told["auc"], abs=1e-3)
