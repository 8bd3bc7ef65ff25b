"""Random forests on a table of features: cross-validation and what each feature is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.terminal import bar
from trainer.forest.features import Floats
from trainer.forest.table import FeatureTable
from trainer.metrics.auc import auc
from trainer.metrics.ensemble import Scored, metrics_of_members
from trainer.metrics.logits import log_loss

_SMALLEST_LEAF = 3  # patients; single ones are learnt by heart
_SHUFFLES = 5  # of each feature in each fold, over all repeats together
_ROWS = 20_000  # predicted at once: a call has to visit all trees, however few rows it has


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FoldForest:
    """One forest's predictions for the fold it did not see.

    Attributes:
      fold: held out.
      seed: of the forest.
      rows: of the table, (n,).
      logits: (n,).
      auc_lost: by shuffling a feature, (features, shuffles).
      loss_gained: log loss in nats by shuffling a feature, (features, shuffles).
    """

    fold: int
    seed: int
    rows: npt.NDArray[np.intp]
    logits: Floats
    auc_lost: Floats
    loss_gained: Floats


def cross_validate(
    table: FeatureTable, truth: npt.NDArray[np.int64], *, trees: int, seed: int, repeats: int
) -> list[FoldForest]:
    """Fits a forest for each seed and fold on the other folds, and predicts that fold.

    Args:
      table: all labelled patients.
      truth: their labels, or permuted ones.
      trees: of each forest.
      seed: of the first repeat; the others count up.
      repeats: forests a fold.
    """
    folds = np.unique(table.folds).tolist()
    shuffles = -(-_SHUFFLES // repeats)
    results = []
    with bar("forests", repeats * len(folds)) as step:
        for own_seed in range(seed, seed + repeats):
            for fold in folds:
                train = np.flatnonzero(table.folds != fold)
                rows = np.flatnonzero(table.folds == fold)
                predict = fit_forest(
                    table.features[train], truth[train], trees=trees, seed=own_seed
                )
                auc_lost, loss_gained = permutation_importance(
                    predict, table.features[rows], truth[rows], shuffles=shuffles, seed=own_seed
                )
                results.append(
                    FoldForest(
                        fold=fold,
                        seed=own_seed,
                        rows=rows,
                        logits=predict(table.features[rows]),
                        auc_lost=auc_lost,
                        loss_gained=loss_gained,
                    )
                )
                step()
    return results


def fit_forest(
    features: Floats, labels: npt.NDArray[np.int64], *, trees: int, seed: int
) -> Callable[[Floats], Floats]:
    """Fits a random forest; returns the function from features (n, features) to logits (n,).

    A forest may say 0 or 1, which no logit can. Its probabilities are clipped to what as many
    patients as it was fitted on can tell: from 1 / (2 n) to 1 - 1 / (2 n). Missing values (an
    absent modality's) go down the side of a split that fits better.
    """
    from sklearn.ensemble import RandomForestClassifier  # not before a forest is wanted: seconds

    forest = RandomForestClassifier(
        n_estimators=trees, min_samples_leaf=_SMALLEST_LEAF, random_state=seed, n_jobs=-1
    )
    forest.fit(features, labels)
    forest.set_params(n_jobs=1)  # threads add the trees up in any order: another last bit each time
    least = 1 / (2 * len(labels))

    def predict(rows: Floats) -> Floats:
        probability = np.clip(forest.predict_proba(rows)[:, 1], least, 1 - least)
        logits: Floats = np.log(probability) - np.log1p(-probability)
        return logits

    return predict


def permutation_importance(
    predict: Callable[[Floats], Floats],
    features: Floats,
    labels: npt.NDArray[np.int64],
    *,
    shuffles: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """What shuffling a feature among held-out patients costs in AUC and in log loss.

    Both are (features, shuffles). Where patients are few or the task is easy, AUC may not move at
    all; log loss always does.

    Of features that say the same, each seems to matter little: the others stand in for it.
    Source: L. Breiman, "Random Forests", Machine Learning 45 (2001) 5-32. As scikit-learn's
    function of that name, except that many shuffled copies are predicted in one call.
    """
    rng = np.random.default_rng(seed)
    n, count = features.shape
    logits = predict(features)
    whole_auc, whole_loss = auc(labels, logits), log_loss(labels, logits)
    lost, gained = np.zeros((count, shuffles)), np.zeros((count, shuffles))
    jobs = [(feature, turn) for feature in range(count) for turn in range(shuffles)]
    at_once = max(1, _ROWS // n)
    for start in range(0, len(jobs), at_once):
        chunk = jobs[start : start + at_once]
        copies = np.tile(features, (len(chunk), 1, 1))
        for copy, (feature, _) in zip(copies, chunk, strict=True):
            copy[:, feature] = rng.permutation(copy[:, feature])
        scores = predict(copies.reshape(-1, count)).reshape(len(chunk), n)
        for (feature, turn), shuffled in zip(chunk, scores, strict=True):
            lost[feature, turn] = whole_auc - auc(labels, shuffled)
            gained[feature, turn] = log_loss(labels, shuffled) - whole_loss
    return lost, gained


def forest_metrics(
    truth: npt.NDArray[np.int64], held_out: Sequence[FoldForest], *, no_claim: Sequence[str] = ()
) -> dict[str, Any]:
    """`ensemble.metrics_of_members` of forests."""
    return metrics_of_members(
        [
            Scored(
                fold=result.fold,
                seed=result.seed,
                patients=result.rows.tolist(),
                labels=truth[result.rows],
                logits=result.logits,
            )
            for result in held_out
        ],
        no_claim=no_claim,
    )
