"""Whether two models differ in AUC on the same patients: DeLong's test, within folds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from trainer.metrics.auc import Floats, Interval, midranks, z_of
from trainer.metrics.estimate import (
    OUT_OF_FOLD_FACTOR,
    as_repeats,
    comparable,
    estimate_of,
    holm,
    is_out_of_fold,
)
from trainer.metrics.predictions import Predictions
from trainer.metrics.roc_and_calibration import mean_roc, thinned
from trainer.metrics.wording import REASONS


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
        parts = [_components(truth, values, of_fold) for values in repeats]
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


def _components(
    truth: npt.NDArray[np.bool_], values: Floats, folds: npt.ArrayLike | None
) -> Floats | None:
    """Each patient's component, (n,); None where no fold has both classes."""
    parts = comparable(truth, values, folds)
    if not parts:
        return None
    ranks, shares, weights = np.zeros((3, truth.size))
    area = 0.0
    for rows, share in parts:
        up, down = rows[truth[rows]], rows[~truth[rows]]
        ranks[rows] = midranks(values[rows])
        # The share of the other class that each patient is ranked right against.
        above, below = (ranks[own] - midranks(values[own]) for own in (up, down))
        shares[up], shares[down] = above / down.size, 1 - below / up.size
        # P q_k / W is the fold's share of all pairs by its share of all positive patients.
        weights[up] = share * truth.sum() / up.size
        weights[down] = share * (~truth).sum() / down.size
        area += share * float(shares[up].mean())
    components: Floats = area + weights * (shares - area)
    return components


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """DeLong's test of two AUCs on the same patients.

    Attributes:
      difference: first AUC minus second.
      interval: of the difference.
      z: difference in standard errors; None where the standard error is 0.
      p_value: two-sided; None where a difference has no standard error to be held against.
    """

    difference: float
    interval: Interval
    z: float | None
    p_value: float | None


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
    from scipy.special import ndtr

    own = [of if is_out_of_fold(of) else None for of in folds]
    areas, covariance = delong(labels, [first, second], own)
    difference = float(areas[0] - areas[1])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if any(of is not None for of in own):
        variance *= OUT_OF_FOLD_FACTOR
    error = math.sqrt(variance) if variance > 1e-15 else 0.0  # what rounding leaves of nothing
    reach = z_of(level) * error
    z = difference / error if error else None
    p_value: float | None = None
    if z is not None:
        p_value = float(2 * ndtr(-abs(z)))
    elif abs(difference) < 1e-12:
        p_value = 1.0
    return PairedTest(
        difference=difference,
        interval=(difference - reach, difference + reach),
        z=z,
        p_value=p_value,
    )


def comparisons_of(
    predictions: Predictions, others: Sequence[Predictions], level: float = 0.95
) -> list[dict[str, Any]]:
    """DeLong's paired test against each other model, on the patients both have.

    Like is compared with like: a model whose scores allow no claim is marked and gets no test;
    one of permuted labels is measured by these.

    Raises:
      ContractError: labels differ that were not permuted, or the common patients are none, or too
        few of a class.
    """
    found: list[dict[str, Any]] = []
    for other in others:
        mine, theirs = predictions.common(other)
        if not mine.size:
            raise ContractError(f"{predictions.name} and {other.name} have no patient in common")
        truth, others_truth = predictions.labels[mine], other.labels[theirs]
        silent = {*predictions.no_claim, *other.no_claim}
        if (truth != others_truth).any() and "permuted" not in silent:
            raise ContractError(f"{predictions.name} and {other.name} have different labels")
        first, second = predictions.repeats[:, mine], other.repeats[:, theirs]
        own = None if predictions.folds is None else predictions.folds[mine]
        others_own = None if other.folds is None else other.folds[theirs]
        test = None
        try:
            if not silent:
                test = delong_test(truth, first, second, level, (own, others_own))
            one = estimate_of(truth, first, folds=own, level=level, no_claim=predictions.no_claim)
            another = estimate_of(
                others_truth, second, folds=others_own, level=level, no_claim=other.no_claim
            )
        except ValueError as error:
            raise ContractError(
                f"{predictions.name} and {other.name} in common: {error}"
            ) from error
        rates, hits = thinned(*mean_roc(others_truth, second, others_own))
        found.append(
            {
                "name": other.name,
                "n": one["n"],
                "positive": one["positive"],
                "level": level,
                "auc": one["auc"],
                "auc_interval": one["auc_interval"],
                "no_claim": one["no_claim"],
                "other_auc": another["auc"],
                "other_auc_interval": another["auc_interval"],
                "other_no_claim": another["no_claim"],
                "difference": one["auc"] - another["auc"],
                "difference_interval": list(test.interval) if test else None,
                "z": test.z if test else None,
                "p_value": test.p_value if test else None,
                "no_test": "; ".join(
                    f"{model.name}: {' '.join(REASONS[reason] for reason in model.no_claim)}"
                    for model in (predictions, other)
                    if model.no_claim
                ),
                "roc": {"false_positive_rate": rates.tolist(), "sensitivity": hits.tolist()},
            }
        )
    for one, adjusted in zip(found, holm([one["p_value"] for one in found]), strict=True):
        one["p_value_holm"] = adjusted
    return found
