"""What is measured of predictions: the object in metrics.json, and what it allows one to say.

`evaluation_of` makes the object that metrics.json holds; of classes, findings and values as
`tasks.evaluation` says. Of binary labels, its keys are:

  format, name, n, positive, prevalence, level
  target                                 only where the classes have names: the second is positive
  auc, auc_interval, interval_method, estimator, repeats, variance_factor, p_value, decided_by,
  better_than_chance, worse_than_chance, auc_told_from_chance, no_claim
                                         the headline, as `estimate.estimate_of` says
  permutations                           null, or of the run's retrainings on permuted labels:
                                         count, as_high, p_value (one-sided), and a histogram
                                         {edges, counts} of their AUCs
  out_of_fold                            of a test set, the same of the run's own predictions, or
                                         null
  verdict, reading, warnings             in words
  bootstrap                              resamples, seed; patients drawn within each class; or null
  average_precision                      of all patients' mean scores: value, interval (bootstrap),
                                         at_random (the prevalence)
  log_loss, calibration                  null where the scores are no probabilities; calibration
                                         holds brier, brier_of_prevalence, log_loss_of_prevalence,
                                         ece, ece_if_calibrated, mean_probability, intercept, slope,
                                         and bins {n, positive, predicted, observed, interval}
  operating_points                       name, threshold, chosen_here, counts, and sensitivity,
                                         specificity, ppv, npv as {value, interval, of}
  curves                                 roc {false_positive_rate, sensitivity, band {false_positive
                                         _rate, low, high}}, its area the headline's AUC;
                                         precision_recall {recall, precision}; thinned to 500 points
  histogram                              of (probability or score), edges, positive, negative
  groups                                 by, groups [{name, n, positive, and auc, auc_interval or
                                         not_measurable}]: folds, seeds, and those of series.csv
  seeds                                  auc_mean, auc_sd, auc_min, auc_max; null below two seeds
  learning_curves                        name → column of history.csv → value an epoch
  run                                    what run.json says of the run, or null
  comparisons                            name, n, positive, level, auc, auc_interval, no_claim,
                                         other_auc, other_auc_interval, other_no_claim, difference,
                                         difference_interval, z, p_value (DeLong, paired, within
                                         folds), p_value_holm, no_test (why there is none, or ""),
                                         roc (the other's)
  covariates_alone                       where the run's dataset has covariates: estimate,
                                         comparison and said (`metrics.covariates.against`)
  without_label, without_prediction      ids that only one side has

With no_claim, p_value, decided_by, auc_told_from_chance, bootstrap, every interval of these
predictions and the band are null. Out of fold, the variance behind every interval is doubled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve

from beam_jobs.common.files.interface import StrPath
from trainer.config.run_layout import METRICS_FORMAT
from trainer.metrics.auc import Floats
from trainer.metrics.comparisons import comparisons_of
from trainer.metrics.estimate import ALL_PAIRS, OUT_OF_FOLD_FACTOR, estimate_of
from trainer.metrics.groups import by_fold, read_groups, spread_over_seeds
from trainer.metrics.logits import log_loss
from trainer.metrics.predictions import Predictions
from trainer.metrics.resampling import (
    bootstrap,
    histogram_of_null,
    percentile_interval,
    sensitivities_within_folds,
)
from trainer.metrics.roc_and_calibration import (
    calibration_bins,
    error_if_calibrated,
    expected_calibration_error,
    mean_roc,
    operating_points,
    recalibration,
    thinned,
    wilson_interval,
)
from trainer.metrics.run_facts import headline_of, read_histories
from trainer.metrics.tasks.evaluation import evaluation_of_task
from trainer.metrics.wording import reading, verdict, warnings_of

# Numbers drawn at most for one resampling, about a second: large cohorts get fewer resamples, and
# need fewer.
_BUDGET = 50_000_000
_RATES = np.linspace(0, 1, 101)  # where the ROC curve's band is measured


def evaluation_of(
    predictions: Predictions,
    *,
    others: Sequence[Predictions] = (),
    series: StrPath | None = None,
    run: StrPath | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that metrics.json holds of one model's predictions; strict JSON.

    Args:
      predictions: the model's.
      others: those of models to compare it with, on the patients that both have; each as
        `run_facts.headline_of` marks it.
      series: a dataset's series.csv, for groups by scanner and plane.
      run: the directory of the training run that made the predictions.
      level: of every interval.
      seed: of the bootstrap.

    Raises:
      ContractError: as `run_facts.headline_of`, or a file does not fit.
      UsageError: a file does not exist.
    """
    if predictions.target.task != "binary":
        return evaluation_of_task(
            predictions, others=others, series=series, run=run, level=level, seed=seed
        )
    headline = headline_of(predictions, run, level, others)
    predictions, estimate, facts = headline.predictions, headline.estimate, headline.facts
    truth, scores = predictions.labels, predictions.scores
    n, positive = estimate["n"], estimate["positive"]
    factor = OUT_OF_FOLD_FACTOR if estimate["estimator"] != ALL_PAIRS else 1.0
    resamples = 0 if estimate["no_claim"] else max(200, min(2000, _BUDGET // n))
    spread = None
    if resamples:
        drawn = bootstrap(truth, scores, resamples=resamples, seed=seed)
        limits = percentile_interval(drawn.average_precision, level, factor)
        spread = [float(limit) for limit in limits]
    modalities = facts["modalities"] if facts else None
    of_series = read_groups(series, predictions.keys, modalities) if series else {}
    by_seed = _groups("seed", {str(one): ~np.isnan(s) for one, s in predictions.seeds.items()},
                      predictions, estimate, predictions.seeds)  # fmt: skip
    seeds = spread_over_seeds(by_seed["groups"], "auc")
    of_folds = by_fold(predictions.folds)
    groups = [
        *(_groups(by, members, predictions, estimate) for by, members in of_folds.items()),
        *([by_seed] if len(predictions.seeds) > 1 else []),
        *(_groups(by, members, predictions, estimate) for by, members in of_series.items()),
    ]
    evaluation: dict[str, Any] = {
        "format": METRICS_FORMAT,
        "name": predictions.name,
        **({"target": predictions.target.to_json()} if predictions.target.classes else {}),
        **estimate,
        "permutations": _permutations(estimate, headline.null),
        "out_of_fold": headline.out_of_fold,
        "prevalence": positive / n,
        "verdict": verdict(estimate),
        "bootstrap": {"resamples": resamples, "seed": seed} if resamples else None,
        "average_precision": {
            "value": float(average_precision_score(truth, scores)),
            "interval": spread,
            "at_random": positive / n,
        },
        **_calibration(predictions, level, factor, seed),
        "operating_points": _operating_points(predictions, level, factor),
        "curves": _curves(predictions, level, factor, resamples, seed),
        "histogram": _histogram(predictions),
        "groups": groups,
        "seeds": seeds and {f"auc_{name}": value for name, value in seeds.items()},
        "learning_curves": read_histories(run) if run else {},
        "run": facts,
        "comparisons": comparisons_of(predictions, others, level),
        "without_label": list(predictions.without_label),
        "without_prediction": list(predictions.without_prediction),
    }
    if estimate["no_claim"]:
        _silence(evaluation)
    lacking = int(np.isnan(predictions.repeats).any(axis=0).sum())
    return {
        **evaluation,
        "reading": reading(evaluation),
        "warnings": warnings_of(
            evaluation,
            relabelled=len(predictions.relabelled),
            lacking=lacking,
            notes=[*headline.notes, *(note for other in others for note in other.notes)],
        ),
    }


def _silence(evaluation: Mapping[str, Any]) -> None:
    """Sets the intervals of calibration and operating points to null."""
    for one in (evaluation["calibration"] or {}).get("bins", ()):
        one["interval"] = None
    for point in evaluation["operating_points"]:
        for name in ("sensitivity", "specificity", "ppv", "npv"):
            point[name]["interval"] = None


def _calibration(
    predictions: Predictions, level: float, factor: float, seed: int
) -> dict[str, Any]:
    probabilities, logits = predictions.probabilities, predictions.logits
    if probabilities is None or logits is None:
        return {"log_loss": None, "calibration": None}
    truth = predictions.labels
    share = float(truth.mean())
    bins = calibration_bins(truth, probabilities, level=level, factor=factor)
    line = recalibration(truth, logits)
    entropy = -(share * np.log(share) + (1 - share) * np.log1p(-share))
    return {
        "log_loss": log_loss(truth, logits),
        "calibration": {
            "brier": float(brier_score_loss(truth, probabilities)),
            "brier_of_prevalence": share * (1 - share),
            "log_loss_of_prevalence": float(entropy),
            "ece": expected_calibration_error(bins),
            "ece_if_calibrated": error_if_calibrated(probabilities, seed=seed),
            "mean_probability": float(probabilities.mean()),
            "intercept": line[0] if line else None,
            "slope": line[1] if line else None,
            "bins": [{**dataclasses.asdict(one), "interval": list(one.interval)} for one in bins],
        },
    }


def _operating_points(
    predictions: Predictions, level: float, factor: float
) -> list[dict[str, Any]]:
    scores = predictions.scores if predictions.probabilities is None else predictions.probabilities
    fixed = None if predictions.probabilities is None else 0.5
    return [
        {
            **dataclasses.asdict(point),
            "chosen_here": point.name != f"{fixed:g}" if fixed is not None else True,
            **{
                name: {
                    "value": hits / of if of else None,
                    "interval": list(wilson_interval(hits, of, level, factor)) if of else None,
                    "of": of,
                }
                for name, (hits, of) in point.shares().items()
            },
        }
        for point in operating_points(predictions.labels, scores, fixed=fixed)
    ]


def _permutations(estimate: Mapping[str, Any], null: Sequence[float]) -> dict[str, Any] | None:
    """The estimate's object with a histogram of the retrainings' AUCs."""
    if not null:
        return None
    return {**estimate["permutations"], "histogram": histogram_of_null(null)}


def _curves(
    predictions: Predictions, level: float, factor: float, resamples: int, seed: int
) -> dict[str, Any]:
    truth, scores, folds = predictions.labels, predictions.scores, predictions.folds
    rates, hits = thinned(*mean_roc(truth, predictions.repeats, folds))
    precision, recall, _ = precision_recall_curve(truth, scores)
    # By rising recall, and without the point that no threshold gives.
    recall, precision = thinned(recall[-2::-1], precision[-2::-1])
    band = None
    if resamples:
        draws = sensitivities_within_folds(
            truth, predictions.repeats, folds, rates=_RATES, resamples=resamples, seed=seed
        )
        low, high = percentile_interval(draws, level, factor)
        rates_and_limits = {"false_positive_rate": _RATES, "low": low, "high": high}
        band = {name: values.tolist() for name, values in rates_and_limits.items()}
    return {
        "roc": {
            "false_positive_rate": rates.tolist(),
            "sensitivity": hits.tolist(),
            "band": band,
        },
        "precision_recall": {"recall": recall.tolist(), "precision": precision.tolist()},
    }


def _histogram(predictions: Predictions) -> dict[str, Any]:
    """Scores by class: of probabilities where the scores are some."""
    values = predictions.scores if predictions.probabilities is None else predictions.probabilities
    edges = np.histogram_bin_edges(values, bins=20)
    if predictions.probabilities is not None:
        edges = np.linspace(0, 1, 21)
    truth = predictions.labels == 1
    return {
        "of": "score" if predictions.probabilities is None else "probability",
        "edges": edges.tolist(),
        "positive": np.histogram(values[truth], edges)[0].tolist(),
        "negative": np.histogram(values[~truth], edges)[0].tolist(),
    }


def _groups(
    by: str,
    members: Mapping[str, npt.NDArray[np.bool_]],
    predictions: Predictions,
    estimate: Mapping[str, Any],
    scores: Mapping[int, Floats] | None = None,
) -> dict[str, Any]:
    """The AUC of each group; one that has no AUC says why.

    Args:
      by: what they are grouped by.
      members: group → which patients, (n,).
      predictions: of all patients.
      estimate: of all patients, for the level and reasons against a claim.
      scores: of each group in the same order, where they are not the predictions' own.
    """
    found, folds = [], predictions.folds
    own = list(scores.values()) if scores else [predictions.repeats] * len(members)
    for (name, inside), values in zip(members.items(), own, strict=True):
        truth = predictions.labels[inside]
        one: dict[str, Any] = {"name": name, "n": truth.size, "positive": int(truth.sum())}
        try:
            measured = estimate_of(
                truth,
                values[..., inside],
                folds=None if folds is None else folds[inside],
                level=estimate["level"],
                no_claim=estimate["no_claim"],
            )
            one.update(auc=measured["auc"], auc_interval=measured["auc_interval"])
        except ValueError:
            kinds = {0: "all negative", one["n"]: "all positive"}
            one["not_measurable"] = kinds.get(one["positive"], "no fold with both classes")
        found.append(one)
    return {"by": by, "groups": found}
