"""Figures of classes equal the libraries', and their intervals hold where all are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from trainer.metrics.tasks.evaluation_classes import (
    CONFUSION_MOST,
    class_figures,
    class_parts,
    confusion,
    quadratic_kappa,
)
from trainer.metrics.tasks.measure import softmax


def _cohort(n=90, classes=4, strength=1.5):
    rng = np.random.default_rng(3)
    truth = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + strength * (truth[:, None] == np.arange(classes))
    return truth, logits


def test_figures_equal_scikit_learns():
    truth, logits = _cohort()
    called, probabilities = logits.argmax(axis=1), softmax(logits)
    figures = class_figures(truth, logits, ordered=True)
    expected = {
        "accuracy": metrics.accuracy_score(truth, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
        "quadratic_kappa": metrics.cohen_kappa_score(truth, called, weights="quadratic"),
        "log_loss": metrics.log_loss(truth, probabilities),
        "brier": metrics.brier_score_loss(truth, probabilities, scale_by_half=False),
    }
    assert {name: one["value"] for name, one in figures.items()} == pytest.approx(expected)
    for one in figures.values():
        assert one["interval"][0] < one["value"] < one["interval"][1]
    shares = np.tile(np.bincount(truth) / truth.size, (truth.size, 1))
    assert figures["log_loss"]["reference"] == pytest.approx(metrics.log_loss(truth, shares))
    expected_brier = metrics.brier_score_loss(truth, shares, scale_by_half=False)
    assert figures["brier"]["reference"] == pytest.approx(expected_brier)
    assert confusion(truth, called, 4) == metrics.confusion_matrix(truth, called).tolist()
    assert confusion(truth, called, CONFUSION_MOST + 1) is None


def test_kappas_variance_equals_statsmodels():
    # statsmodels 0.15, stats.inter_rater.cohens_kappa(table, wt="quadratic"): kappa, var_kappa.
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 4, 80)
    called = np.clip(truth + rng.integers(-1, 2, 80), 0, 3)
    found = quadratic_kappa(truth, called)
    assert found is not None
    kappa, influence = found
    assert kappa == pytest.approx(0.7794306232367274)
    variance = (1 - kappa) ** 2 * float((influence**2).mean()) / 80
    assert variance == pytest.approx(0.0011866656126017412)
    assert influence.mean() == pytest.approx(0, abs=1e-12)


def test_where_every_call_is_right_there_is_room_below():
    truth = np.arange(30) % 3
    figures = class_figures(truth, 9.0 * np.eye(3)[truth], ordered=True, factor=2.0)
    for name in ("accuracy", "balanced_accuracy", "quadratic_kappa"):
        low, high = figures[name]["interval"]
        assert figures[name]["value"] == high == 1
        assert 0.5 < low < 0.95


def test_classes_without_order_have_no_kappa_and_absent_ones_no_balance():
    truth = np.array([0, 1, 0, 1])
    figures = class_figures(truth, np.eye(3)[truth], ordered=False)
    assert "quadratic_kappa" not in figures
    assert figures["balanced_accuracy"]["value"] is None
    assert quadratic_kappa(np.zeros(4, int), np.zeros(4, int)) is None


def test_a_class_is_called_as_scikit_learn_counts_it():
    truth, logits = _cohort()
    probability = softmax(logits)[:, 2]
    names = ("a", "b", "c", "d")
    folds = np.arange(truth.size) % 3
    parts = class_parts(truth, logits[None], names, folds=folds, level=0.95, factor=2.0, seed=0)
    called = logits.argmax(axis=1)
    recalls = metrics.recall_score(truth, called, average=None)
    precisions = metrics.precision_score(truth, called, average=None)
    assert [part["sensitivity"]["value"] for part in parts] == pytest.approx(recalls.tolist())
    assert [part["ppv"]["value"] for part in parts] == pytest.approx(precisions.tolist())
    calibration = parts[2]["calibration"]
    assert calibration["mean_probability"] == pytest.approx(probability.mean())
    # The area under the curve told is the mean of the folds' areas, each weighed by its pairs.
    own = truth == 2
    areas = [metrics.roc_auc_score(own[folds == f], probability[folds == f]) for f in range(3)]
    pairs = [own[folds == f].sum() * (~own[folds == f]).sum() for f in range(3)]
    roc = parts[2]["roc"]
    area = metrics.auc(roc["false_positive_rate"], roc["sensitivity"])
    assert area == pytest.approx(np.average(areas, weights=pairs))


def test_by_chance_is_what_calls_reach_on_labels_of_other_patients():
    truth, logits = _cohort(n=300)
    figures = class_figures(truth, logits, ordered=True)
    called = np.bincount(logits.argmax(axis=1), minlength=4) / 300
    by_chance = float(called @ (np.bincount(truth, minlength=4) / 300))
    assert figures["accuracy"]["by_chance"] == pytest.approx(by_chance, abs=0.005)
    assert figures["quadratic_kappa"]["by_chance"] == pytest.approx(0, abs=0.01)
    low, high = figures["accuracy"]["by_chance_interval"]
    error = math.sqrt(by_chance * (1 - by_chance) / 300)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.2)
