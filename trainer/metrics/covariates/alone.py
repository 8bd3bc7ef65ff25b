"""What covariates alone predict: a logistic regression of classes or findings, a ridge of values.

A network that answers no better has learnt, for all that can be told, what is known of a patient
without an image: age, sex, site. Everything is of the training patients: means, deviations and
coefficients. As in the network, a number is standardised, a category has a column for each of its
values, and where something is not known its columns are 0 and a mark of its own is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import Target
from trainer.data.targets import mean_and_deviation
from trainer.metrics.auc import Floats

_PENALTY = 1.0  # scikit-learn's own, of coefficients of standardised columns

Predict = Callable[[Floats], Floats]


def fit_covariates(
    target: Target, covariates: Sequence[Covariate], values: Floats, truth: npt.NDArray[Any]
) -> Predict:
    """Fits what covariates say of labels; returns the function from covariates to answers.

    Args:
      target: what labels say.
      covariates: the columns, k of them.
      values: of the training patients, (n, k) as in a record: NaN where not known.
      truth: their labels, as `data.targets.truth_of` has them.

    Returns:
      (m, k) → answers: logits (m,) or (m, outputs), or values (m,) in the label's unit.
    """
    encoded = _encoding(covariates, values)
    columns = encoded(values)
    if target.task == "regression":
        from sklearn.linear_model import Ridge  # seconds, where it is wanted

        ridge = Ridge(alpha=_PENALTY).fit(columns, truth)
        return lambda rows: np.asarray(ridge.predict(encoded(rows)), np.float64)
    if target.task == "multilabel":
        each = [
            _logistic(columns[known], column[known].astype(np.int64), 2)
            for known, column in zip(~np.isnan(truth.T), truth.T, strict=True)
        ]
        return lambda rows: np.stack([_contrast(one(encoded(rows))) for one in each], axis=1)
    found = _logistic(columns, truth, max(2, target.outputs))
    if target.task == "binary":
        return lambda rows: _contrast(found(encoded(rows)))
    return lambda rows: found(encoded(rows))


def coefficients(
    target: Target, columns: npt.NDArray[Any], targets: npt.NDArray[Any]
) -> tuple[Floats, Floats]:
    """What each column of covariates says of labels, by the same regressions.

    Args:
      target: what labels say.
      columns: of the training patients, (n, columns), as a network encodes covariates.
      targets: their labels, as `data.targets.targets_of` has them, (n, outputs).

    Returns:
      Coefficients (columns, outputs) and intercepts (outputs,): of logits, or of values in units of
      their deviation; 0 of a class or a finding of which all these patients are alike.
    """
    shape = (columns.shape[1], target.outputs)
    weights, intercepts = np.zeros(shape), np.zeros(target.outputs)
    if target.task == "regression":
        from sklearn.linear_model import Ridge  # seconds, where it is wanted

        mean, deviation = mean_and_deviation(targets)
        ridge = Ridge(alpha=_PENALTY).fit(columns, ((targets - mean) / deviation)[:, 0])
        return ridge.coef_[:, np.newaxis], np.array([ridge.intercept_])
    if target.task == "multiclass":
        classes = targets.argmax(axis=1)
        if len(np.unique(classes)) == target.outputs:
            model = _regression(columns, classes)
            weights, intercepts = model.coef_.T, model.intercept_
        return weights, intercepts
    for place, labels in enumerate(targets.T):
        known = ~np.isnan(labels)
        if len(np.unique(labels[known])) == 2:
            model = _regression(columns[known], labels[known])
            weights[:, place], intercepts[place] = model.coef_[0], model.intercept_[0]
    return weights, intercepts


def held_out_answers(
    target: Target,
    covariates: Sequence[Covariate],
    values: Floats,
    truth: npt.NDArray[Any],
    folds: npt.NDArray[np.int64],
    held_out: Sequence[int],
) -> Iterator[tuple[int, npt.NDArray[np.intp], Floats]]:
    """What covariates alone answer for each fold, fitted on all other patients.

    Args:
      target, covariates, values, truth: as `fit_covariates` takes them, of all patients.
      folds: the fold of each patient, (n,).
      held_out: the folds to answer for.

    Yields:
      A fold, the places of its patients, and the answers for them.
    """
    for fold in held_out:
        train, rows = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        predict = fit_covariates(target, covariates, values[train], truth[train])
        yield fold, rows, predict(values[rows])


def _encoding(covariates: Sequence[Covariate], values: Floats) -> Predict:
    """The function from covariates (n, k) to columns, by these patients' means and deviations."""
    scales = list(zip(*mean_and_deviation(values), strict=True))

    def encoded(rows: Floats) -> Floats:
        columns = []
        for covariate, column, (mean, spread) in zip(covariates, rows.T, scales, strict=True):
            if covariate.is_number:
                columns.append(np.nan_to_num((column - mean) / spread))
            else:
                columns += [1.0 * (column == at) for at in range(len(covariate.categories))]
            columns.append(1.0 * np.isnan(column))
        return np.stack(columns, axis=1)

    return encoded


def _logistic(columns: Floats, classes: npt.NDArray[np.int64], count: int) -> Predict:
    """Fits a logistic regression; the function from columns (n, c) to a logit a class.

    A class that no training patient has is as likely as half a patient of them.
    """
    there, counts = np.unique(classes, return_counts=True)
    prior = np.full(count, 0.5)
    prior[there] = counts
    rare: Floats = np.log(prior / prior.sum())
    if len(there) < 2:
        return lambda rows: np.tile(rare, (len(rows), 1))
    model = _regression(columns, classes)

    def logits(rows: Floats) -> Floats:
        scores = model.decision_function(rows)
        if scores.ndim == 1:
            scores = np.stack([np.zeros(len(rows)), scores], axis=1)
        found = np.tile(rare, (len(rows), 1))
        found[:, there] = scores - np.logaddexp.reduce(scores, axis=1)[:, np.newaxis]
        return found

    return logits


def _regression(columns: Floats, classes: npt.NDArray[Any]) -> Any:
    """scikit-learn's logistic regression, fitted."""
    from sklearn.linear_model import LogisticRegression  # seconds, where it is wanted

    return LogisticRegression(C=1 / _PENALTY, max_iter=1000).fit(columns, classes)


def _contrast(logits: Floats) -> Floats:
    """The one logit of two."""
    difference: Floats = logits[:, 1] - logits[:, 0]
    return difference
