"""The one estimate of a task's score: macro AUC, mean AUC over findings, Spearman's correlation.

The rule is that of binary labels (`metrics.estimate`): patients of one fold are compared with each
other, the variance is doubled out of fold, and a claim is made exactly where chance lies outside
the interval. Without signal each of the scores is, fold by fold, a sum over patients of their
answers' ranks times their labels, of which any patient could have any: its variance over such
permutations has a closed form. It is the sum over pairs of outputs of the ranks' covariance times
the labels', so that it reckons with probabilities that add up to one, findings that come together
and unequal classes.

Source: W. Hoeffding, A combinatorial central limit theorem, Annals of Mathematical Statistics 22
(1951) 558-566. Ranks that are tied count as if they were not, as in `auc.newcombe_variance`, and of
findings that are not known of all patients the covariance is that of ranks among all: both make an
interval wider, if anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.target import UNKNOWN, Target
from trainer.metrics.auc import Floats, auc, limits_of, midranks, newcombe_variance
from trainer.metrics.estimate import (
    ALL_PAIRS,
    WITHIN_FOLDS,
    comparable,
    estimate_of,
    factor_of,
    holm,
    is_out_of_fold,
    judged,
)
from trainer.metrics.tasks.measure import log_odds, measure_of

METHOD = "permutation variance (Hoeffding 1951), its form that of Newcombe 2006, method 5"
METHOD_OF_RANKS = "permutation variance, its form that of Bonett and Wright 2000"
_LEAST_VARIANCE = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """A repeat's score, and its variance without signal were its patients independent."""

    score: float
    variance: float


def estimate_of_task(
    target: Target,
    truth: npt.ArrayLike,
    answers: npt.ArrayLike,
    *,
    folds: npt.ArrayLike | None = None,
    level: float = 0.95,
    null: npt.ArrayLike | None = None,
    no_claim: Sequence[str] = (),
) -> dict[str, Any]:
    """A task's score with its interval, and whether it differs from chance.

    Patients without a label are left out. An AUC is over the pairs within folds, as in
    `estimate.estimate_of`; the macro AUC and the mean AUC are the plain means of the classes' or
    findings' own. Spearman's correlation is the mean of the folds', each weighed by its patients
    less one; answers that are all the same have a correlation of 0. A class or a finding of which
    no fold has patients of both kinds has no AUC, and the mean is over the others.

    Args:
      target: what labels say; a binary one gives `estimate.estimate_of`'s object.
      truth: as `data.targets.truth_of` has it, (n,) or (n, labels).
      answers: logits (n, outputs), or values (n,); or with repeats before, NaN where a repeat
        lacks a patient.
      folds: which each patient was held out in, (n,); None for a test set.
      level: of the interval.
      null: scores, estimated alike, of retrainings of the whole recipe on permuted labels.
      no_claim: reasons why these answers allow no claim (`wording.REASONS`).

    Returns:
      JSON object: task, measure (`measure.Measure`'s name), score, interval ([low, high]; null
      with no_claim), chance, level, n, counts ({class or finding: its patients}; {} of values),
      parts (of each class or finding: name, n, positive, auc, interval, p_value, p_value_holm,
      better_than_chance; auc null where it has none), and estimator, repeats, variance_factor,
      interval_method, p_value, decided_by, better_than_chance, worse_than_chance,
      told_from_chance, permutations, no_claim as `estimate.estimate_of`. A part's interval and
      p_value speak of it alone; it is better than chance where its p_value_holm, adjusted for the
      number of parts, is below 1 - level.

    Raises:
      ValueError: nothing to compare in any fold, a patient without an answer, an answer that is
        not finite, a null score that is none, or a level outside (0, 1).
    """
    if target.task == "binary":
        return estimate_of(truth, answers, folds=folds, level=level, null=null, no_claim=no_claim)
    measure = measure_of(target)
    known, each, place = checked_answers(target, np.asarray(truth), answers, folds)
    out_of_fold = is_out_of_fold(place)
    marks = marks_of(target, known)
    within = place if place is not None and out_of_fold else np.zeros(len(known), np.int64)
    ranked = [ranked_answers(target, one) for one in each]
    of_repeat = _correlation if target.task == "regression" else _mean_of_areas
    measured = [found for one in ranked if (found := of_repeat(marks, one, within)) is not None]
    if not measured:
        raise ValueError(f"{measure.title} needs labels that differ in a fold: no fold has them")
    scores = [one.score for one in measured]
    value = float(np.mean(scores))
    variance = max(_LEAST_VARIANCE, float(np.mean([one.variance for one in measured])))
    of_value = _shape(target, marks, within, variance)
    said = judged(
        value,
        variance,
        lambda reach, times: limits_of(
            value,
            lambda theta: times * of_value(theta),
            reach,
            chance=measure.chance,
            least=measure.least,
        ),
        factor=factor_of(scores, variance) if out_of_fold else 1.0,
        level=level,
        null=null,
        no_claim=no_claim,
        chance=measure.chance,
        least=measure.least,
    )
    return {
        "task": target.task,
        "measure": measure.name,
        "score": value,
        "interval": said.pop("interval"),
        "chance": measure.chance,
        "level": level,
        "n": len(known),
        "counts": {
            name: int((column == 1).sum())
            for name, column in zip(target.names, marks.T, strict=False)
        },
        "parts": _parts(target, marks, np.stack(ranked), place, level, no_claim),
        "estimator": WITHIN_FOLDS if out_of_fold else ALL_PAIRS,
        "repeats": len(scores),
        "interval_method": METHOD_OF_RANKS if target.task == "regression" else METHOD,
        **said,
        "no_claim": list(no_claim),
    }


def checked_answers(
    target: Target, truth: npt.NDArray[Any], answers: npt.ArrayLike, folds: npt.ArrayLike | None
) -> tuple[npt.NDArray[Any], Floats, npt.NDArray[Any] | None]:
    """Truth, answers (repeats, n, outputs) and folds of the patients that have a label.

    Raises:
      ValueError: as `estimate_of_task`.
    """
    values = np.asarray(answers, np.float64)
    if target.task == "regression":
        values = values[..., np.newaxis]
    if values.ndim == 2:
        values = values[np.newaxis]
    if values.ndim != 3 or values.shape[1:] != (len(truth), target.outputs) or not len(truth):
        raise ValueError(
            f"answers (n, {target.outputs}) for labels of a {target.task} needed: "
            f"{np.shape(answers)} for {truth.shape}"
        )
    if target.task == "multiclass":
        known = truth != UNKNOWN
        if not np.isin(truth, range(UNKNOWN, target.outputs)).all():
            raise ValueError(f"classes must be from 0 to {target.outputs - 1}")
    else:
        known = ~np.isnan(truth.reshape(len(truth), -1)).all(axis=1)
    values = values[:, known]
    if np.isinf(values).any() or np.isnan(values).any(axis=-1).all(axis=0).any():
        raise ValueError("answers must be finite numbers, one a patient at least")
    return truth[known], values, None if folds is None else np.asarray(folds)[known]


def marks_of(target: Target, truth: npt.NDArray[Any]) -> Floats:
    """Labels as numbers, an output each: (n, outputs), NaN unknown."""
    if target.task == "multiclass":
        truth = truth[:, np.newaxis] == np.arange(target.outputs)
    return truth.astype(np.float64).reshape(len(truth), -1)


def ranked_answers(target: Target, answers: Floats) -> Floats:
    """What patients are ranked by, (n, outputs): of classes their `measure.log_odds`."""
    return log_odds(answers) if target.task == "multiclass" else answers


def _mean_of_areas(marks: Floats, values: Floats, folds: npt.NDArray[Any]) -> _Measured | None:
    """The mean over outputs of their AUCs within folds."""
    outputs = marks.shape[1]
    there = np.isfinite(values).all(axis=1)
    areas = np.full(outputs, np.nan)
    errors: dict[Any, Floats] = {fold: np.zeros(outputs) for fold in np.unique(folds)}
    for one in range(outputs):
        known = np.flatnonzero(there & ~np.isnan(marks[:, one]))
        truth = marks[known, one] == 1
        parts = comparable(truth, values[known, one], folds[known])
        if not parts:
            continue
        areas[one] = sum(
            share * auc(truth[rows], values[known[rows], one]) for rows, share in parts
        )
        for rows, share in parts:
            positive = int(truth[rows].sum())
            group = [(positive, rows.size - positive)]
            errors[folds[known[rows[0]]]][one] = share * math.sqrt(newcombe_variance(0.5, group))
    measurable = ~np.isnan(areas)
    if not measurable.any():
        return None
    covariance = np.zeros((outputs, outputs))
    for fold, error in errors.items():
        rows = there & (folds == fold)
        if error.any():
            both = _correlations(np.stack([midranks(column) for column in values[rows].T], axis=1))
            both = both * _correlations(marks[rows])
            covariance += both * np.outer(error, error)
    count = int(measurable.sum())
    return _Measured(
        score=float(np.mean(areas[measurable])), variance=float(covariance.sum()) / count**2
    )


def _correlations(columns: Floats) -> Floats:
    """Between columns, (n, k) to (k, k), 1 on the diagonal; unknown ones (NaN) are at the mean."""
    known = ~np.isnan(columns)
    means = np.where(known, columns, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    apart = np.where(known, columns - means, 0)
    sizes = np.sqrt((apart**2).sum(axis=0))
    apart = apart / np.where(sizes > 0, sizes, 1)
    found: Floats = apart.T @ apart
    np.fill_diagonal(found, 1.0)
    return found


def _correlation(marks: Floats, values: Floats, folds: npt.NDArray[Any]) -> _Measured | None:
    """The mean of the folds' rank correlations."""
    there = np.isfinite(values[:, 0])
    found, weights = [], []
    for fold in np.unique(folds):
        rows = there & (folds == fold)
        if rows.sum() < 2 or np.ptp(marks[rows, 0]) == 0:
            continue
        ranks = np.stack([midranks(marks[rows, 0]), midranks(values[rows, 0])], axis=1)
        found.append(_correlations(ranks)[0, 1])
        weights.append(int(rows.sum()) - 1)
    if not found:
        return None
    return _Measured(score=float(np.average(found, weights=weights)), variance=1 / sum(weights))


def _shape(
    target: Target, marks: Floats, folds: npt.NDArray[Any], variance: float
) -> Callable[[float], float]:
    """θ → the variance of a score whose true value is θ; at chance it is `variance`."""
    if target.task == "regression":
        return lambda theta: variance * (1 - theta**2) ** 2 * (1 + theta**2 / 2)
    groups = []
    for column in marks.T:
        known = ~np.isnan(column)
        truth = column[known] == 1
        parts = comparable(truth, np.zeros(truth.size), folds[known])
        groups.append([(int(truth[rows].sum()), int((~truth[rows]).sum())) for rows, _ in parts])
    measurable = [one for one in groups if one]

    def summed(theta: float) -> float:
        return sum(newcombe_variance(theta, one) for one in measurable)

    at_chance = summed(0.5)
    return lambda theta: variance * summed(theta) / at_chance


def _parts(
    target: Target,
    marks: Floats,
    ranked: Floats,
    folds: npt.NDArray[Any] | None,
    level: float,
    no_claim: Sequence[str],
) -> list[dict[str, Any]]:
    """Each class or finding by itself, and its p-value adjusted for their number."""
    found = []
    for place, name in enumerate(target.names):
        known = ~np.isnan(marks[:, place])
        truth = marks[known, place].astype(np.int64)
        one: dict[str, Any] = {"name": name, "n": truth.size, "positive": int(truth.sum())}
        one |= dict.fromkeys(("auc", "interval", "p_value"))
        try:
            alone = estimate_of(
                truth,
                ranked[:, known, place],
                folds=None if folds is None else folds[known],
                level=level,
                no_claim=no_claim,
            )
        except ValueError:  # no fold has patients of both kinds
            pass
        else:
            one |= {"auc": alone["auc"], "interval": alone["auc_interval"]}
            one["p_value"] = alone["p_value"]
        found.append(one)
    for one, adjusted in zip(found, holm([one["p_value"] for one in found]), strict=True):
        one["p_value_holm"] = adjusted
        low = adjusted is not None and adjusted < 1 - level
        one["better_than_chance"] = low and one["auc"] > 0.5
    return found
