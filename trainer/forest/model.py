"""Models of a table of features: random forests, cross-validation, what each feature is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.terminal import bar
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.forest.features import Floats
from trainer.forest.table import FeatureTable
from trainer.metrics.covariates.alone import Predict, fit_covariates
from trainer.metrics.ensemble import Scored, metrics_of_members
from trainer.metrics.logits import logit
from trainer.metrics.tasks.measure import Measure, measure_of

_SMALLEST_LEAF = 3  # patients; single ones are learnt by heart
_SHUFFLES = 5  # of each feature in each fold, over all repeats together
_ROWS = 20_000  # predicted at once: a call has to visit all trees, however few rows it has

Truth = npt.NDArray[Any]  # as `data.targets.truth_of` has it
Fit = Callable[[Floats, Truth, int], Predict]  # features, truth and seed → features to answers


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FoldModel:
    """One model's predictions for the fold it did not see.

    Attributes:
      fold: held out.
      seed: of the model.
      rows: of the table, (n,).
      answers: logits or values, (n,) or (n, outputs).
      score_lost: of the task's measure by shuffling a feature, (features, shuffles).
      loss_gained: of the task's loss by shuffling a feature, (features, shuffles).
    """

    fold: int
    seed: int
    rows: npt.NDArray[np.intp]
    answers: Floats
    score_lost: Floats
    loss_gained: Floats


def forests(target: Target, *, trees: int) -> Fit:
    """Random forests of so many trees, for `cross_validate`."""
    return lambda features, truth, seed: fit_forest(
        features, truth, trees=trees, seed=seed, target=target
    )


def linear(target: Target, covariates: Sequence[Covariate]) -> Fit:
    """Covariates alone, for `cross_validate`: the table's features are theirs, as in records."""
    return lambda features, truth, seed: fit_covariates(target, covariates, features, truth)


def cross_validate(
    table: FeatureTable,
    truth: Truth,
    *,
    fit: Fit,
    seed: int,
    repeats: int,
    target: Target = PLAIN,
) -> list[FoldModel]:
    """Fits a model for each seed and fold on the other folds, and predicts that fold.

    Args:
      table: all labelled patients.
      truth: their labels, or permuted ones.
      fit: makes a model: of `forests` or `linear`.
      seed: of the first repeat; the others count up.
      repeats: models a fold.
      target: what labels say.
    """
    folds = np.unique(table.folds).tolist()
    shuffles = -(-_SHUFFLES // repeats)
    measure = measure_of(target)
    results = []
    with bar("forests", repeats * len(folds)) as step:
        for own_seed in range(seed, seed + repeats):
            for fold in folds:
                train = np.flatnonzero(table.folds != fold)
                rows = np.flatnonzero(table.folds == fold)
                predict = fit(table.features[train], truth[train], own_seed)
                score_lost, loss_gained = permutation_importance(
                    predict,
                    table.features[rows],
                    truth[rows],
                    shuffles=shuffles,
                    seed=own_seed,
                    measure=measure,
                )
                results.append(
                    FoldModel(
                        fold=fold,
                        seed=own_seed,
                        rows=rows,
                        answers=predict(table.features[rows]),
                        score_lost=score_lost,
                        loss_gained=loss_gained,
                    )
                )
                step()
    return results


def fit_forest(
    features: Floats, truth: Truth, *, trees: int, seed: int, target: Target = PLAIN
) -> Predict:
    """Fits a random forest; returns the function from features (n, features) to answers.

    Classes get a classifier, each finding one of its own on the patients of whom it is known, and
    values a regressor. Missing values (an absent modality's) go down the side of a split that fits
    better.

    A classifier may say 0 or 1, which no logit can. Its probabilities are clipped to what as many
    patients as it was fitted on can tell: from 1 / (2 n) to 1 - 1 / (2 n).
    """
    if target.task == "regression":
        # Not before a forest is wanted: seconds.
        from sklearn.ensemble import RandomForestRegressor

        forest = RandomForestRegressor(**_settings(trees, seed)).fit(features, truth)
        forest.set_params(n_jobs=1)
        return lambda rows: np.asarray(forest.predict(rows), np.float64)
    if target.task == "multilabel":
        each = [
            _classifier(features[known], column[known].astype(np.int64), 2, trees, seed)
            for known, column in zip(~np.isnan(truth.T), truth.T, strict=True)
        ]
        return lambda rows: np.stack([logit(*one(rows))[:, 1] for one in each], axis=1)
    probabilities = _classifier(features, truth, max(2, target.outputs), trees, seed)
    if target.task == "binary":
        return lambda rows: logit(*probabilities(rows))[:, 1]

    def logarithms(rows: Floats) -> Floats:
        found, least = probabilities(rows)
        logs: Floats = np.log(np.clip(found, least, 1 - least))
        return logs

    return logarithms


def _settings(trees: int, seed: int) -> dict[str, Any]:
    return {
        "n_estimators": trees,
        "min_samples_leaf": _SMALLEST_LEAF,
        "random_state": seed,
        "n_jobs": -1,
    }


def _classifier(
    features: Floats, classes: npt.NDArray[np.int64], count: int, trees: int, seed: int
) -> Callable[[Floats], tuple[Floats, float]]:
    """Fits one; the function from features to probabilities (n, count) and the least to tell."""
    from sklearn.ensemble import RandomForestClassifier  # not before a forest is wanted: seconds

    forest = RandomForestClassifier(**_settings(trees, seed))
    forest.fit(features, classes)
    forest.set_params(n_jobs=1)  # threads add the trees up in any order: another last bit each time
    least = 1 / (2 * len(classes))

    def predict(rows: Floats) -> tuple[Floats, float]:
        found = np.zeros((len(rows), count))
        found[:, forest.classes_] = forest.predict_proba(rows)
        return found, least

    return predict


def permutation_importance(
    predict: Predict,
    features: Floats,
    truth: Truth,
    *,
    shuffles: int,
    seed: int,
    measure: Measure,
) -> tuple[Floats, Floats]:
    """What shuffling a feature among held-out patients costs, by the task's score and its loss.

    Both are (features, shuffles). Where patients are few or the task is easy, AUC may not move at
    all; log loss always does.

    Of features that say the same, each seems to matter little: the others stand in for it.
    Source: L. Breiman, "Random Forests", Machine Learning 45 (2001) 5-32. As scikit-learn's
    function of that name, except that many shuffled copies are predicted in one call.
    """
    rng = np.random.default_rng(seed)
    n, count = features.shape
    answers = predict(features)
    whole_score, whole_loss = _score(measure, truth, answers), measure.loss(truth, answers)
    lost, gained = np.zeros((count, shuffles)), np.zeros((count, shuffles))
    jobs = [(feature, turn) for feature in range(count) for turn in range(shuffles)]
    at_once = max(1, _ROWS // n)
    for start in range(0, len(jobs), at_once):
        chunk = jobs[start : start + at_once]
        copies = np.tile(features, (len(chunk), 1, 1))
        for copy, (feature, _) in zip(copies, chunk, strict=True):
            copy[:, feature] = rng.permutation(copy[:, feature])
        found = predict(copies.reshape(-1, count)).reshape(len(chunk), *answers.shape)
        for (feature, turn), shuffled in zip(chunk, found, strict=True):
            lost[feature, turn] = whole_score - _score(measure, truth, shuffled)
            gained[feature, turn] = measure.loss(truth, shuffled) - whole_loss
    return lost, gained


def _score(measure: Measure, truth: Truth, answers: Floats) -> float:
    """What cannot be measured (of a finding all are of one kind, equal values) tells nothing."""
    try:
        return measure.score(truth, answers)
    except ValueError:
        return measure.chance


def forest_metrics(
    truth: Truth,
    held_out: Sequence[FoldModel],
    *,
    target: Target = PLAIN,
    no_claim: Sequence[str] = (),
) -> dict[str, Any]:
    """`ensemble.metrics_of_members` of a table's models."""
    return metrics_of_members(
        [
            Scored(
                fold=result.fold,
                seed=result.seed,
                patients=result.rows.tolist(),
                labels=truth[result.rows],
                logits=result.answers,
            )
            for result in held_out
        ],
        target,
        no_claim=no_claim,
    )
