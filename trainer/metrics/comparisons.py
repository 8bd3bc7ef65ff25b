"""Whether two models differ on the same patients: of AUCs DeLong's test, within folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from trainer.metrics.auc import Floats
from trainer.metrics.estimate import (
    OUT_OF_FOLD_FACTOR,
    as_repeats,
    holm,
    is_out_of_fold,
)
from trainer.metrics.predictions import Predictions
from trainer.metrics.roc_and_calibration import mean_roc, thinned
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.paired import PairedTest, components, paired_test, task_test
from trainer.metrics.wording import REASONS, score_of


def delong(
    labels: npt.ArrayLike,
    scores: Sequence[npt.ArrayLike],
    folds: Sequence[npt.ArrayLike | None] | None = None,
) -> tuple[Floats, Floats]:
    """AUCs of several models on the same patients, with the covariance of their estimates.

    Structural components by midranks, so n log n instead of all pairs. Within folds the AUC is
    a = Σ p_k q_k AUC_k / W over folds of p_k positive and q_k negative patients, W = Σ p_k q_k; a
    positive patient's component is then a + P q_k (V_i - a) / W, V_i its share of the fold's
    negatives that it is ranked right against and P the count of positives; likewise for negative
    ones. With one fold these are DeLong's own. Components are of patients, so that models may
    have different folds; those of repeats are averaged.

    Args:
      labels: 0 or 1, (n,).
      scores: of k models, each (n,) or (repeats, n) with NaN where a repeat lacks a patient.
      folds: of each model, (n,), or None for all pairs; None for all models alike.

    Returns:
      AUCs (k,) and their covariance matrix (k, k); the variance is that of independent patients.

    Raises:
      ValueError: as `estimate.estimate_of`, or a class of one patient, which has no variance.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845; by midranks: Sun and
    Xu, IEEE Signal Processing Letters 21 (2014) 1389-1393.
    """
    of_positive, of_negative = [], []
    for one, of_fold in zip(scores, folds or [None] * len(scores), strict=True):
        truth, repeats = as_repeats(labels, one)
        positive, negative = int(truth.sum()), int((~truth).sum())
        if min(positive, negative) < 2:
            raise ValueError(
                f"DeLong's variance needs two of each class: {positive} positive and {negative} "
                "negative"
            )
        parts = [components(truth, values, of_fold) for values in repeats]
        measured = [part for part in parts if part is not None]
        if not measured:
            raise ValueError("an AUC out of fold needs both classes in a fold: no fold has them")
        mean = np.mean(measured, axis=0)
        of_positive.append(mean[truth])
        of_negative.append(mean[~truth])
    areas = np.array([share.mean() for share in of_positive])
    covariance = np.atleast_2d(np.cov(of_positive)) / len(of_positive[0])
    covariance += np.atleast_2d(np.cov(of_negative)) / len(of_negative[0])
    return areas, covariance


def delong_test(
    labels: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    level: float = 0.95,
    folds: tuple[npt.ArrayLike | None, npt.ArrayLike | None] = (None, None),
) -> PairedTest:
    """Whether two models differ in AUC, patients paired.

    The variance is doubled where either is out of fold, as in `estimate.estimate_of`.

    Raises:
      ValueError: as `delong`.
    """
    own = [of if is_out_of_fold(of) else None for of in folds]
    areas, covariance = delong(labels, [first, second], own)
    difference = float(areas[0] - areas[1])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if any(of is not None for of in own):
        variance *= OUT_OF_FOLD_FACTOR
    return paired_test(difference, variance, level)


def comparisons_of(
    predictions: Predictions, others: Sequence[Predictions], level: float = 0.95
) -> list[dict[str, Any]]:
    """A paired test against each other model, on the patients both have: of AUCs DeLong's.

    Like is compared with like: a model whose scores allow no claim is marked and gets no test;
    one of permuted labels is measured by these.

    Returns:
      Of each other model: name, n, positive, level, auc, auc_interval, no_claim, other_auc,
      other_auc_interval, other_no_claim, difference, difference_interval, z, p_value, no_test (why
      there is none, or ""), roc (the other's), p_value_holm. Of other tasks score, interval,
      other_score, other_interval and counts instead of auc ..., positive and roc, and measure.

    Raises:
      ContractError: the models answer other questions, labels differ that were not permuted, or
        the common patients are none, or too few of a class.
    """
    found: list[dict[str, Any]] = []
    for other in others:
        _require_alike(predictions, other)
        mine, theirs = predictions.common(other)
        if not mine.size:
            raise ContractError(f"{predictions.name} and {other.name} have no patient in common")
        truth, others_truth = predictions.labels[mine], other.labels[theirs]
        silent = {*predictions.no_claim, *other.no_claim}
        is_float = truth.dtype.kind == "f"
        if "permuted" not in silent and not np.array_equal(truth, others_truth, is_float):
            raise ContractError(f"{predictions.name} and {other.name} have different labels")
        sides = (
            (predictions, truth, predictions.repeats[:, mine], mine),
            (other, others_truth, other.repeats[:, theirs], theirs),
        )
        try:
            found.append(_compared(sides, level, silent=bool(silent)))
        except ValueError as error:
            raise ContractError(
                f"{predictions.name} and {other.name} in common: {error}"
            ) from error
    for one, adjusted in zip(found, holm([one["p_value"] for one in found]), strict=True):
        one["p_value_holm"] = adjusted
    return found


def _require_alike(first: Predictions, second: Predictions) -> None:
    mine, theirs = first.target, second.target
    # A table of logits of 0 and 1 without its run does not say what its classes are called.
    unsaid = mine.task == "binary" and not (mine.classes and theirs.classes)
    if mine.task != theirs.task or (mine.names != theirs.names and not unsaid):
        kinds = (
            f"{one.name}: {one.target.task} ({', '.join(one.target.names) or 'values'})"
            for one in (first, second)
        )
        raise ContractError(f"{' and '.join(kinds)} answer different questions: no comparison")


_Side = tuple[Predictions, npt.NDArray[Any], Floats, npt.NDArray[np.intp]]


def _compared(sides: tuple[_Side, _Side], level: float, *, silent: bool) -> dict[str, Any]:
    """One comparison; each side is a model with truth and repeats of the common patients."""
    (one, truth, first, _), (other, others_truth, second, _) = sides
    folds = [model.folds[rows] if model.folds is not None else None for model, _, _, rows in sides]
    target = one.target
    no_test = "; ".join(
        f"{model.name}: {' '.join(REASONS[reason] for reason in model.no_claim)}"
        for model in (one, other)
        if model.no_claim
    )
    test = None
    if target.task == "binary" and not silent:
        test = delong_test(truth, first, second, level, (folds[0], folds[1]))
    mine, theirs = (
        estimate_of_task(target, labels, scores, folds=of, level=level, no_claim=model.no_claim)
        for (model, labels, scores, _), of in zip(sides, folds, strict=True)
    )
    difference = score_of(mine) - score_of(theirs)
    if target.task == "binary":
        rates, hits = thinned(*mean_roc(others_truth, second, folds[1]))
        score, interval = "auc", "auc_interval"
        kinds: dict[str, Any] = {"positive": mine["positive"]}
        curve = {"roc": {"false_positive_rate": rates.tolist(), "sensitivity": hits.tolist()}}
    else:
        score, interval, curve = "score", "interval", {}
        kinds = {"measure": mine["measure"], "counts": mine["counts"]}
        if not silent:
            test = task_test(
                target, truth, (first, second), folds, difference=difference, level=level
            )
            no_test = "" if test else "too few patients of a kind for a variance"
    return {
        "name": other.name,
        "n": mine["n"],
        **kinds,
        "level": level,
        score: mine[score],
        interval: mine[interval],
        "no_claim": mine["no_claim"],
        f"other_{score}": theirs[score],
        f"other_{interval}": theirs[interval],
        "other_no_claim": theirs["no_claim"],
        "difference": difference,
        "difference_interval": list(test.interval) if test else None,
        "z": test.z if test else None,
        "p_value": test.p_value if test else None,
        "no_test": no_test,
        **curve,
    }
