"""Covariates alone: scikit-learn is the oracle, and training patients alone have a say."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN
from tests.datasets import AGE_AND_SITE, TARGETS
from trainer.data.targets import truth_of
from trainer.metrics.auc import auc
from trainer.metrics.covariates.alone import fit_covariates, held_out_answers
from trainer.metrics.tasks.measure import measure_of

Floats = npt.NDArray[np.float64]


def _cohort(task: str, *, signal: float = 2.0, n: int = 90) -> tuple[npt.NDArray[Any], Floats]:
    """Labels, and ages that rise with them beside sites that say nothing."""
    rng = np.random.default_rng(0)
    steps = rng.permutation(np.arange(n) % 3)
    labels: list[Any] = {
        "binary": [int(step > 0) for step in steps],
        "multiclass": steps.tolist(),
        "multilabel": [(int(step > 0), int(step > 1)) for step in steps],
        "regression": (10.0 * steps).tolist(),
    }[task]
    age = 50 + 10 * (signal * steps + rng.normal(size=n))
    values = np.stack([age, rng.integers(0, 2, n).astype(float)], axis=1)
    return truth_of(TARGETS[task], labels), values


def _oracle(model: Any) -> Any:
    encoding = make_column_transformer((StandardScaler(), [0]), (OneHotEncoder(), [1]))
    return make_pipeline(encoding, model)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_answers_are_those_of_scikit_learns_pipeline(task: str) -> None:
    truth, values = _cohort(task)
    train, rows = np.arange(60), np.arange(60, 90)
    target = TARGETS[task]
    found = fit_covariates(target, AGE_AND_SITE, values[train], truth[train])(values[rows])
    logistic = LogisticRegression(max_iter=1000)
    if task == "regression":
        expected = _oracle(Ridge()).fit(values[train], truth[train]).predict(values[rows])
    elif task == "multilabel":
        fitted = [_oracle(LogisticRegression()).fit(values[train], c) for c in truth[train].T]
        expected = np.stack([one.decision_function(values[rows]) for one in fitted], axis=1)
    else:
        model = _oracle(logistic).fit(values[train], truth[train])
        expected = model.decision_function(values[rows])
        if task == "multiclass":
            expected = model.predict_log_proba(values[rows])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert measure_of(target).score(truth[rows], found) > 0.75


def test_labels_and_values_of_the_held_out_fold_have_no_say() -> None:
    truth, values = _cohort("binary")
    folds = np.arange(90) % 3
    lied_truth = np.where(folds == 1, 1 - truth, truth)
    others = (folds == 1) & (np.arange(90) > 1)
    lied_values = np.where(others[:, np.newaxis], 1e6, values)
    honest, lied, moved = (
        {
            fold: answers
            for fold, _, answers in held_out_answers(
                PLAIN, AGE_AND_SITE, table, labels, folds, range(3)
            )
        }
        for table, labels in ((values, truth), (values, lied_truth), (lied_values, truth))
    )
    np.testing.assert_array_equal(honest[1], lied[1])
    assert honest[1][0] == moved[1][0]
    assert np.abs(honest[0] - lied[0]).max() > 0.1


def test_every_patient_is_answered_for_once_in_its_own_fold() -> None:
    truth, values = _cohort("regression", n=30)
    folds = np.arange(30) % 3
    found = list(
        held_out_answers(TARGETS["regression"], AGE_AND_SITE, values, truth, folds, range(3))
    )
    assert [fold for fold, _, _ in found] == [0, 1, 2]
    for fold, rows, answers in found:
        assert (folds[rows] == fold).all()
        assert answers.shape == rows.shape


def test_what_is_not_known_is_told_by_its_mark_and_costs_no_patient() -> None:
    """Who lacks an age is positive here: the mark tells, and the others' ages are as they were."""
    truth, values = _cohort("binary", signal=0.0)
    values[truth == 1, 0] = np.nan
    values[0, 1] = np.nan
    answers = fit_covariates(PLAIN, AGE_AND_SITE, values, truth)(values)
    assert np.isfinite(answers).all()
    assert auc(truth, answers) == 1


@pytest.mark.parametrize("column", [[np.nan] * 12, [40.0] * 12])
def test_a_covariate_that_nobody_has_or_that_never_changes_says_nothing(column) -> None:
    truth = np.arange(12) % 2
    age = (Covariate(name="age"),)
    predict = fit_covariates(PLAIN, age, np.array(column)[:, np.newaxis], truth)
    assert predict(np.array([[40.0]])) == pytest.approx(0, abs=1e-6)
    assert predict(np.array([[np.nan]])) == pytest.approx(0, abs=1e-6)


def test_a_class_that_no_training_patient_has_is_rare_and_not_impossible() -> None:
    values = np.arange(12.0)[:, np.newaxis]
    predict = fit_covariates(TARGETS["multiclass"], AGE_AND_SITE[:1], values, np.arange(12) % 2)
    found = predict(values)
    assert found.shape == (12, 3)
    np.testing.assert_allclose(found[:, 2], np.log(0.5 / 12.5))
    only = fit_covariates(TARGETS["multiclass"], AGE_AND_SITE[:1], values, np.zeros(12, int))
    np.testing.assert_allclose(only(values)[0], np.log(np.array([12, 0.5, 0.5]) / 13))


def test_a_finding_is_learnt_from_those_of_whom_it_is_known() -> None:
    truth, values = _cohort("multilabel")
    unknown = truth.copy()
    unknown[::2, 1] = np.nan
    target = TARGETS["multilabel"]
    found = fit_covariates(target, AGE_AND_SITE, values, unknown)(values)
    known = np.arange(1, 90, 2)
    alone = fit_covariates(target, AGE_AND_SITE, values[known], truth[known])
    whole = fit_covariates(target, AGE_AND_SITE, values, truth)(values)
    np.testing.assert_array_equal(found[:, 0], whole[:, 0])
    # Standardised by all training patients: the scale alone differs from the known ones' own.
    np.testing.assert_allclose(found[:, 1], alone(values)[:, 1], rtol=0.15, atol=0.15)
    assert np.abs(found[:, 1] - whole[:, 1]).max() > 0.01
