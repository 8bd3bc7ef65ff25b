"""One class against the rest, or one finding: what its probability and its calls are worth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from trainer.metrics.logits import sigmoid
from trainer.metrics.tasks.evaluation_parts import calibration, calls, probability_figures


def _cohort():
    rng = np.random.default_rng(6)
    logits = 2 * rng.normal(size=70)
    return rng.random(70) < sigmoid(0.3 + 0.7 * logits), logits


def test_the_slopes_interval_equals_statsmodels():
    # statsmodels 0.15: Logit(y, add_constant(x)).fit(): params, conf_int().
    truth, logits = _cohort()
    found = calibration(truth, logits, level=0.95, factor=1.0, seed=0)
    assert (found["intercept"], found["slope"]) == pytest.approx((0.13698897, 0.15434058), abs=1e-6)
    assert found["slope_interval"] == pytest.approx([-0.09258355, 0.40126471], abs=1e-6)
    doubled = calibration(truth, logits, level=0.95, factor=2.0, seed=0)["slope_interval"]
    assert np.diff(doubled) == pytest.approx(np.sqrt(2) * np.diff(found["slope_interval"]))


def test_separated_classes_and_a_single_one_have_no_line():
    truth, logits = np.arange(20) >= 10, np.linspace(-2, 2, 20)
    for labels in (truth, np.zeros(20, bool)):
        found = calibration(labels, logits, level=0.95, factor=1.0, seed=0)
        assert found["slope"] is found["slope_interval"] is None
        assert sum(one["n"] for one in found["bins"]) == 20


def test_calls_and_losses_equal_scikit_learns():
    truth, logits = _cohort()
    found = calls(truth, logits >= 0, 0.95)
    (none, wrong), (missed, both) = metrics.confusion_matrix(truth, logits >= 0)
    assert found["true_positive"] == both
    assert found["npv"]["value"] == pytest.approx(none / (none + missed))
    assert found["ppv"]["value"] == pytest.approx(both / (both + wrong))
    figures = probability_figures(truth, logits, 0.95)
    assert figures["log_loss"]["value"] == pytest.approx(metrics.log_loss(truth, sigmoid(logits)))
    brier = metrics.brier_score_loss(truth, sigmoid(logits))
    assert figures["brier"]["value"] == pytest.approx(brier)
