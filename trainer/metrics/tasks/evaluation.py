"""What is measured of classes, findings and values: metrics.json of every task but a binary one.

Beside what `evaluation` says of all of them (format, name, permutations, out_of_fold, verdict,
reading, warnings, learning_curves, run, comparisons, without_label, without_prediction), the object
has

  target                                 task, labels, classes, unit: `Target.to_json`
  task, measure, score, interval, chance, level, n, counts, ...
                                         the headline, as `tasks.estimate.estimate_of_task` says
  figures                                name → value, interval, reference (what is scored without
                                         looking at any patient), by_chance and by_chance_interval
                                         (labels dealt anew within folds; null of losses):
                                         of classes accuracy, balanced_accuracy, quadratic_kappa
                                         (where they are ordered), log_loss, brier; of findings
                                         all_right, log_loss, brier; of values mae, rmse, r2,
                                         pearson
  parts                                  of classes (each against the rest) and findings: beside the
                                         headline's name, n, positive, auc, interval, p_value,
                                         p_value_holm and better_than_chance: share, true_positive,
                                         false_positive, true_negative, false_negative, sensitivity,
                                         specificity, ppv, npv {value, interval, of}, calibration
                                         {mean_probability, ece, ece_if_calibrated, intercept,
                                         slope, slope_interval, bins}, roc {false_positive_rate,
                                         sensitivity}; of findings average_precision {value,
                                         interval, at_random} and figures {log_loss, brier};
                                         calibration, roc and average_precision are null beyond the
                                         first dozen
  confusion                              of classes: counts, a row a true class, a column a call;
                                         null of more than 50
  agreement                              of values, Bland and Altman: bias, sd, low, high, each with
                                         an interval, inside
  line                                   of values, of true on predicted: intercept, slope and
                                         slope_interval; or null
  conformal                              of values out of fold: `tasks.conformal.conformal_of`; null
                                         with no_claim
  coverage                               of values with limits of their own (low, high): share
                                         inside, interval, of, mean_width; or null
  points                                 of values: truth and predicted of at most 2000 patients
  groups                                 by, groups [{name, n, and score, interval or
                                         not_measurable}]: folds, seeds, those of series.csv, and
                                         covariates
  seeds                                  mean, sd, min, max of the score; null below two
  covariates_alone                       where the run's dataset has covariates: estimate,
                                         comparison and said (`metrics.covariates.against`)

With no_claim every interval is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.files.interface import StrPath
from trainer.config.run_layout import METRICS_FORMAT
from trainer.metrics.auc import Floats
from trainer.metrics.comparisons import comparisons_of
from trainer.metrics.estimate import ALL_PAIRS, OUT_OF_FOLD_FACTOR
from trainer.metrics.groups import by_fold, covariate_groups, read_groups, spread_over_seeds
from trainer.metrics.predictions import Predictions
from trainer.metrics.resampling import histogram_of_null
from trainer.metrics.roc_and_calibration import wilson_interval
from trainer.metrics.run_facts import headline_of, read_histories
from trainer.metrics.tasks.conformal import conformal_of
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.evaluation_classes import class_figures, class_parts, confusion
from trainer.metrics.tasks.evaluation_findings import findings_figures, findings_parts
from trainer.metrics.tasks.evaluation_values import bland_altman, calibration_line, value_figures
from trainer.metrics.tasks.evaluation_words import plain_words
from trainer.metrics.tasks.spread import silence
from trainer.metrics.wording import reading, verdict, warnings_of

POINTS_MOST = 2000  # patients that a chart of values shows


def evaluation_of_task(
    predictions: Predictions,
    *,
    others: Sequence[Predictions] = (),
    series: StrPath | None = None,
    run: StrPath | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """As `evaluation.evaluation_of`, of a target that is not binary; strict JSON.

    Args, Raises: as there; the seed is of labels dealt anew.
    """
    headline = headline_of(predictions, run, level, others)
    predictions, estimate, facts = headline.predictions, headline.estimate, headline.facts
    modalities = facts["modalities"] if facts else None
    by_seed = _groups(
        "seed",
        {str(one): ~_lacking(scores, predictions) for one, scores in predictions.seeds.items()},
        predictions,
        estimate,
        predictions.seeds,
    )
    of_series = read_groups(series, predictions.keys, modalities) if series else {}
    of_folds = by_fold(predictions.folds)
    groups = [
        *(_groups(by, members, predictions, estimate) for by, members in of_folds.items()),
        *([by_seed] if len(predictions.seeds) > 1 else []),
        *(
            _groups(by, members, predictions, estimate)
            for found in (of_series, covariate_groups(predictions.covariates))
            for by, members in found.items()
        ),
    ]
    evaluation: dict[str, Any] = {
        "format": METRICS_FORMAT,
        "name": predictions.name,
        "target": predictions.target.to_json(),
        **estimate,
        "permutations": _permutations(estimate, headline.null),
        "out_of_fold": headline.out_of_fold,
        "verdict": verdict(estimate),
        **figures_of(predictions, estimate, seed=seed),
        "groups": groups,
        "seeds": spread_over_seeds(by_seed["groups"], "score"),
        "learning_curves": read_histories(run) if run else {},
        "run": facts,
        "comparisons": comparisons_of(predictions, others, level),
        "without_label": list(predictions.without_label),
        "without_prediction": list(predictions.without_prediction),
    }
    lacking = int(_lacking(predictions.repeats, predictions).any(axis=0).sum())
    return {
        **evaluation,
        "reading": [*reading(evaluation), *plain_words(evaluation)],
        "warnings": warnings_of(
            evaluation,
            relabelled=len(predictions.relabelled),
            lacking=lacking,
            notes=[*headline.notes, *(note for other in others for note in other.notes)],
        ),
    }


def figures_of(
    predictions: Predictions, estimate: Mapping[str, Any], *, seed: int = 0
) -> dict[str, Any]:
    """What is measured beside the headline: figures, parts, and so on, as the table above says.

    Args:
      predictions: of one model, of a target that is not binary.
      estimate: their headline.
      seed: of labels dealt anew.
    """
    factor = OUT_OF_FOLD_FACTOR if estimate["estimator"] != ALL_PAIRS else 1.0
    measure = _MEASURED[predictions.target.task]
    found = measure(predictions, estimate, estimate["level"], factor, seed)
    if estimate["no_claim"]:
        silence(found)
    return found


def _classes(
    predictions: Predictions, estimate: Mapping[str, Any], level: float, factor: float, seed: int
) -> dict[str, Any]:
    truth, logits, target = predictions.labels, predictions.scores, predictions.target
    folds = _folds_of(predictions, estimate)
    figures = class_figures(
        truth,
        logits,
        ordered=target.is_ordered,
        folds=folds,
        level=level,
        factor=factor,
        seed=seed,
    )
    own = class_parts(
        truth,
        predictions.repeats,
        target.names,
        folds=folds,
        level=level,
        factor=factor,
        seed=seed,
    )
    return {
        "figures": figures,
        "parts": _joined(estimate, own),
        "confusion": confusion(truth, logits.argmax(axis=1), target.outputs),
    }


def _findings(
    predictions: Predictions, estimate: Mapping[str, Any], level: float, factor: float, seed: int
) -> dict[str, Any]:
    truth, folds = predictions.labels.astype(np.float64), _folds_of(predictions, estimate)
    figures = findings_figures(
        truth, predictions.scores, folds=folds, level=level, factor=factor, seed=seed
    )
    own = findings_parts(
        truth,
        predictions.repeats,
        predictions.target.names,
        folds=folds,
        level=level,
        factor=factor,
        seed=seed,
    )
    return {"figures": figures, "parts": _joined(estimate, own)}


def _values(
    predictions: Predictions, estimate: Mapping[str, Any], level: float, factor: float, seed: int
) -> dict[str, Any]:
    truth, values = predictions.labels.astype(np.float64), predictions.scores
    folds = _folds_of(predictions, estimate)
    shown = np.arange(truth.size)
    if truth.size > POINTS_MOST:
        order = np.argsort(truth, kind="stable")
        shown = order[np.linspace(0, truth.size - 1, POINTS_MOST).round().astype(int)]
    conformal = None
    if folds is not None and not estimate["no_claim"]:
        conformal = conformal_of(truth, values, folds=folds)
    return {
        "figures": value_figures(
            truth, values, folds=folds, level=level, factor=factor, seed=seed
        ),
        "agreement": bland_altman(truth, values, level=level, factor=factor),
        "line": calibration_line(truth, values, level=level, factor=factor),
        "conformal": conformal,
        "coverage": _coverage(predictions, level, factor),
        "points": {"truth": truth[shown].tolist(), "predicted": values[shown].tolist()},
    }  # fmt: skip


_MEASURED = {"multiclass": _classes, "multilabel": _findings, "regression": _values}


def _joined(estimate: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The headline's parts, each with what else is told of it."""
    return [{**part, **more} for part, more in zip(estimate["parts"], own, strict=True)]


def _folds_of(
    predictions: Predictions, estimate: Mapping[str, Any]
) -> npt.NDArray[np.int64] | None:
    """Folds that patients are compared within; None of a test set, or of one fold alone."""
    return None if estimate["estimator"] == ALL_PAIRS else predictions.folds


def _coverage(predictions: Predictions, level: float, factor: float) -> dict[str, Any] | None:
    """How many true values lie within the limits that the predictions bring with them."""
    low, high = predictions.low, predictions.high
    if low is None or high is None:
        return None
    told = np.isfinite(low) & np.isfinite(high)
    if not told.any():
        return None
    truth = predictions.labels[told]
    inside = int(((truth >= low[told]) & (truth <= high[told])).sum())
    return {
        "share": inside / truth.size,
        "interval": list(wilson_interval(inside, truth.size, level, factor)),
        "of": int(truth.size),
        "mean_width": float((high[told] - low[told]).mean()),
    }


def _permutations(estimate: Mapping[str, Any], null: Sequence[float]) -> dict[str, Any] | None:
    if not null:
        return None
    return {**estimate["permutations"], "histogram": histogram_of_null(null)}


def _lacking(scores: Floats, predictions: Predictions) -> npt.NDArray[np.bool_]:
    """Which patients have no answer, (..., n) of the predictions' own or of one seed's scores."""
    unknown = np.isnan(scores)
    return unknown if predictions.target.task == "regression" else np.asarray(unknown.any(-1))


def _groups(
    by: str,
    members: Mapping[str, npt.NDArray[np.bool_]],
    predictions: Predictions,
    estimate: Mapping[str, Any],
    scores: Mapping[int, Floats] | None = None,
) -> dict[str, Any]:
    """The score of each group; one that has none says why.

    Args:
      by: what they are grouped by.
      members: group → which patients, (n,).
      predictions: of all patients.
      estimate: of all patients, for the level and reasons against a claim.
      scores: of each group in the same order, where they are not the predictions' own.
    """
    found, folds = [], predictions.folds
    own = (
        [answers[np.newaxis] for answers in scores.values()]
        if scores
        else [predictions.repeats] * len(members)
    )
    for (name, inside), answers in zip(members.items(), own, strict=True):
        one: dict[str, Any] = {"name": name, "n": int(inside.sum())}
        try:
            measured = estimate_of_task(
                predictions.target,
                predictions.labels[inside],
                answers[:, inside],
                folds=None if folds is None else folds[inside],
                level=estimate["level"],
                no_claim=estimate["no_claim"],
            )
            one.update(score=measured["score"], interval=measured["interval"])
        except ValueError:
            one["not_measurable"] = "labels do not differ"
        found.append(one)
    return {"by": by, "groups": found}
