"""Forests of classes, findings and values, and covariates alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from beam_jobs.core.cohort.target import PLAIN
from tests.datasets import AGE_AND_SITE, TARGETS
from trainer.data.targets import truth_of
from trainer.forest.model import (
    cross_validate,
    fit_forest,
    forests,
    linear,
    permutation_importance,
)
from trainer.forest.table import FeatureTable
from trainer.metrics.tasks.measure import measure_of, softmax

TASKS = ("binary", "multiclass", "multilabel", "regression")


def _table(task: str, n: int = 60) -> tuple[FeatureTable, npt.NDArray[Any]]:
    """Feature b tells the label, a and c are noise."""
    rng = np.random.default_rng(0)
    steps = rng.permutation(np.arange(n) % 3)
    labels: list[Any] = {
        "binary": [int(step > 0) for step in steps],
        "multiclass": steps.tolist(),
        "multilabel": [(int(step > 0), int(step > 1) if i % 5 else None)
                       for i, step in enumerate(steps)],
        "regression": (10.0 * steps + rng.normal(size=n)).tolist(),
    }[task]  # fmt: skip
    features = rng.normal(size=(n, 3))
    features[:, 1] += 4 * steps
    features[::7, 0] = np.nan
    table = FeatureTable(
        patient_ids=tuple(map(str, range(n))),
        folds=np.arange(n) % 2,
        features=features,
        names=("a", "b", "c"),
    )
    return table, truth_of(TARGETS[task], labels)


@pytest.mark.parametrize("task", TASKS)
def test_a_forest_of_every_task_finds_what_tells_and_says_which_feature_it_was(task: str) -> None:
    target, (table, truth) = TARGETS[task], _table(task)
    results = cross_validate(
        table, truth, fit=forests(target, trees=15), seed=0, repeats=1, target=target
    )
    for result in results:
        assert result.answers.shape == (30, *(() if target.outputs == 1 else (target.outputs,)))
        assert measure_of(target).score(truth[result.rows], result.answers) > 0.8
        for cost in (result.score_lost.mean(axis=1), result.loss_gained.mean(axis=1)):
            assert cost.argmax() == 1
            assert cost[1] > 0


def test_a_classifiers_logits_are_scikit_learns_probabilities() -> None:
    table, truth = _table("multiclass")
    found = fit_forest(table.features, truth, trees=15, seed=3, target=TARGETS["multiclass"])
    forest = RandomForestClassifier(15, min_samples_leaf=3, random_state=3)
    expected = forest.fit(table.features, truth).predict_proba(table.features)
    least = 1 / 120
    clipped = np.clip(expected, least, 1 - least)
    np.testing.assert_allclose(
        softmax(found(table.features)), clipped / clipped.sum(axis=1, keepdims=True)
    )


def test_a_regressors_values_are_scikit_learns() -> None:
    table, truth = _table("regression")
    found = fit_forest(table.features, truth, trees=15, seed=3, target=TARGETS["regression"])
    forest = RandomForestRegressor(15, min_samples_leaf=3, random_state=3)
    expected = forest.fit(table.features, truth).predict(table.features)
    np.testing.assert_allclose(found(table.features), expected)


def test_a_findings_forest_is_fitted_on_those_of_whom_it_is_known() -> None:
    table, truth = _table("multilabel")
    found = fit_forest(table.features, truth, trees=15, seed=3, target=TARGETS["multilabel"])
    known = ~np.isnan(truth[:, 1])
    alone = fit_forest(table.features[known], truth[known, 1].astype(int), trees=15, seed=3)
    np.testing.assert_array_equal(found(table.features)[:, 1], alone(table.features))


def test_a_finding_of_one_kind_among_the_held_out_costs_nothing_and_fails_nothing() -> None:
    table, truth = _table("multilabel")
    truth[:, 1] = 0
    lost, gained = permutation_importance(
        lambda rows: np.stack([rows[:, 1], rows[:, 1]], axis=1),
        table.features,
        truth,
        shuffles=2,
        seed=0,
        measure=measure_of(TARGETS["multilabel"]),
    )
    assert (lost == 0).all()
    assert gained[1].max() > 0


def test_covariates_alone_are_cross_validated_like_forests() -> None:
    table, truth = _table("binary")
    site = np.random.default_rng(1).integers(0, 2, 60)
    table = FeatureTable(
        patient_ids=table.patient_ids,
        folds=table.folds,
        features=np.stack([table.features[:, 1], site], axis=1),
        names=("age", "site"),
    )
    results = cross_validate(table, truth, fit=linear(PLAIN, AGE_AND_SITE), seed=0, repeats=1)
    assert all(one.score_lost.mean(axis=1).argmax() == 0 for one in results)
    assert all(measure_of(PLAIN).score(truth[r.rows], r.answers) > 0.9 for r in results)
