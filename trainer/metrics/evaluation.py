"""What is measured of predictions: the object in metrics.json, and what it allows one to say.

`evaluation_of` makes the object that metrics.json holds. Its keys:

  format, name, n, positive, prevalence, level
  auc, auc_interval, interval_method     the headline: Newcombe's method 5
  estimator, repeats, variance_factor, p_value, decided_by, better_than_chance, worse_than_chance,
  permutations, no_claim                 as `estimate.estimate_of` says
  auc_told_from_chance                   the lowest AUC that these group sizes tell from 0.5
  verdict, reading, warnings             in words
  intervals                              newcombe, delong, bootstrap: [low, high] or null
  bootstrap                              resamples, seed; patients drawn within each class
  permutation                            p_value, permutations, null_mean, null_sd, within_folds,
                                         histogram {edges, counts} of the AUCs under shuffled labels
  average_precision                      value, interval (bootstrap), at_random (the prevalence)
  log_loss, calibration                  null where the scores are no probabilities; calibration
                                         holds brier, brier_of_prevalence, log_loss_of_prevalence,
                                         ece, ece_if_calibrated, mean_probability, intercept, slope,
                                         and bins {n, positive, predicted, observed, interval}
  operating_points                       name, threshold, chosen_here, counts, and sensitivity,
                                         specificity, ppv, npv as {value, interval, of}
  curves                                 roc {false_positive_rate, sensitivity, band {false_positive
                                         _rate, low, high}}, precision_recall {recall, precision};
                                         thinned to 500 points
  histogram                              of (probability or score), edges, positive, negative
  groups                                 by, groups [{name, n, positive, and auc, auc_interval or
                                         not_measurable}]: folds, seeds, and those of series.csv
  seeds                                  auc_mean, auc_sd, auc_min, auc_max; null below two seeds
  learning_curves                        name → column of history.csv → value an epoch
  run                                    what run.json says of the run, or null
  comparisons                            name, n, positive, auc, auc_interval, other_auc,
                                         other_auc_interval, difference, difference_interval, z,
                                         p_value (DeLong, paired), p_value_holm, roc (the other's)
  without_label, without_prediction      ids that only one side has
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_recall_curve,
    roc_curve,
)

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files.interface import StrPath
from trainer.metrics.auc import (
    Floats,
    delong_interval,
    delong_test,
    holm,
)
from trainer.metrics.estimate import estimate_of
from trainer.metrics.groups import read_groups
from trainer.metrics.logits import log_loss
from trainer.metrics.predictions import Predictions
from trainer.metrics.resampling import bootstrap, percentile_interval, permutation_test
from trainer.metrics.roc_and_calibration import (
    calibration_bins,
    error_if_calibrated,
    expected_calibration_error,
    operating_points,
    recalibration,
    thinned,
    wilson_interval,
)
from trainer.metrics.run_facts import read_histories, run_facts
from trainer.metrics.wording import reading, verdict, warnings_of

FORMAT = "voxelbeam-evaluation"
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
      others: those of models to compare it with, on the patients that both have.
      series: a dataset's series.csv, for groups by scanner and plane.
      run: the directory of the training run that made the predictions.
      level: of every interval.
      seed: of bootstrap and permutation.

    Raises:
      ContractError: the patients are all of one class, or a file does not fit.
      UsageError: a file does not exist.
    """
    truth, scores = predictions.labels, predictions.scores
    try:
        metrics = estimate_of(truth, scores, level=level)
    except ValueError as error:
        raise ContractError(str(error)) from error
    n, positive = metrics["n"], metrics["positive"]
    facts = run_facts(run) if run else None
    resamples, permutations = (max(200, min(most, _BUDGET // n)) for most in (2000, 10_000))
    drawn = bootstrap(truth, scores, resamples=resamples, seed=seed, rates=_RATES)
    shuffled = permutation_test(
        truth, scores, strata=predictions.folds, permutations=permutations, seed=seed
    )
    counts, edges = np.histogram(shuffled.null, bins=40)
    modalities = facts["modalities"] if facts else None
    of_series = read_groups(series, predictions.keys, modalities) if series else {}
    by_seed = _groups("seed", {str(one): ~np.isnan(s) for one, s in predictions.seeds.items()},
                      predictions, level, predictions.seeds)  # fmt: skip
    groups = [
        *(_fold_groups(predictions, level)),
        *([by_seed] if len(predictions.seeds) > 1 else []),
        *(_groups(by, members, predictions, level) for by, members in of_series.items()),
    ]
    few = min(positive, n - positive) < 2  # no variance of a class of one
    evaluation = {
        "format": FORMAT,
        "name": predictions.name,
        **metrics,
        "prevalence": positive / n,
        "verdict": verdict(metrics),
        "intervals": {
            "newcombe": metrics["auc_interval"],
            "delong": None if few else list(delong_interval(truth, scores, level)),
            "bootstrap": list(percentile_interval(drawn.auc, level)),
        },
        "bootstrap": {"resamples": resamples, "seed": seed},
        "permutation": {
            "p_value": shuffled.p_value,
            "permutations": permutations,
            "null_mean": shuffled.null_mean,
            "null_sd": float(shuffled.null.std()),
            "within_folds": predictions.folds is not None,
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        },
        "average_precision": {
            "value": float(average_precision_score(truth, scores)),
            "interval": list(percentile_interval(drawn.average_precision, level)),
            "at_random": positive / n,
        },
        **_calibration(predictions, level, seed),
        "operating_points": _operating_points(predictions, level),
        "curves": _curves(predictions, drawn.sensitivity, level),
        "histogram": _histogram(predictions),
        "groups": groups,
        "seeds": _seed_spread(by_seed["groups"]),
        "learning_curves": read_histories(run) if run else {},
        "run": facts,
        "comparisons": comparisons_of(predictions, others, level),
        "without_label": list(predictions.without_label),
        "without_prediction": list(predictions.without_prediction),
    }
    return {
        **evaluation,
        "reading": reading(evaluation),
        "warnings": warnings_of(predictions, evaluation),
    }


def _calibration(predictions: Predictions, level: float, seed: int) -> dict[str, Any]:
    probabilities, logits = predictions.probabilities, predictions.logits
    if probabilities is None or logits is None:
        return {"log_loss": None, "calibration": None}
    truth = predictions.labels
    share = float(truth.mean())
    bins = calibration_bins(truth, probabilities, level=level)
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


def _operating_points(predictions: Predictions, level: float) -> list[dict[str, Any]]:
    scores = predictions.scores if predictions.probabilities is None else predictions.probabilities
    fixed = None if predictions.probabilities is None else 0.5
    return [
        {
            **dataclasses.asdict(point),
            "chosen_here": point.name != f"{fixed:g}" if fixed is not None else True,
            **{
                name: {
                    "value": hits / of if of else None,
                    "interval": list(wilson_interval(hits, of, level)) if of else None,
                    "of": of,
                }
                for name, (hits, of) in point.shares().items()
            },
        }
        for point in operating_points(predictions.labels, scores, fixed=fixed)
    ]


def _curves(predictions: Predictions, sensitivity: Floats, level: float) -> dict[str, Any]:
    truth, scores = predictions.labels, predictions.scores
    rates, hits = _roc(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores)
    # By rising recall, and without the point that no threshold gives.
    recall, precision = thinned(recall[-2::-1], precision[-2::-1])
    low, high = np.quantile(sensitivity, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {
        "roc": {
            "false_positive_rate": rates.tolist(),
            "sensitivity": hits.tolist(),
            "band": {
                "false_positive_rate": _RATES.tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
            },
        },
        "precision_recall": {"recall": recall.tolist(), "precision": precision.tolist()},
    }


def _roc(truth: npt.NDArray[np.int64], scores: Floats) -> tuple[Floats, Floats]:
    """False positive rates and sensitivities, thinned."""
    rates, hits, _ = roc_curve(truth, scores, drop_intermediate=False)
    return thinned(rates, hits)


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


def _fold_groups(predictions: Predictions, level: float) -> list[dict[str, Any]]:
    folds = predictions.folds
    if folds is None:
        return []
    members = {str(fold): folds == fold for fold in np.unique(folds)}
    return [_groups("fold", members, predictions, level)]


def _groups(
    by: str,
    members: Mapping[str, npt.NDArray[np.bool_]],
    predictions: Predictions,
    level: float,
    scores: Mapping[int, Floats] | None = None,
) -> dict[str, Any]:
    """The AUC of each group; one that has no AUC says why.

    Args:
      by: what they are grouped by.
      members: group → which patients, (n,).
      predictions: of all patients.
      level: of the intervals.
      scores: of each group in the same order, where they are not the predictions' own.
    """
    found = []
    own = list(scores.values()) if scores else [predictions.scores] * len(members)
    for (name, inside), values in zip(members.items(), own, strict=True):
        truth = predictions.labels[inside]
        one: dict[str, Any] = {"name": name, "n": truth.size, "positive": int(truth.sum())}
        if 0 < one["positive"] < one["n"]:
            measured = estimate_of(truth, values[inside], level=level)
            one.update(auc=measured["auc"], auc_interval=measured["auc_interval"])
        else:
            one["not_measurable"] = f"all {'positive' if one['positive'] else 'negative'}"
        found.append(one)
    return {"by": by, "groups": found}


def _seed_spread(groups: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    areas = [one["auc"] for one in groups if "auc" in one]
    if len(areas) < 2:
        return None
    return {
        "auc_mean": float(np.mean(areas)),
        "auc_sd": float(np.std(areas, ddof=1)),
        "auc_min": min(areas),
        "auc_max": max(areas),
    }


def comparisons_of(
    predictions: Predictions, others: Sequence[Predictions], level: float = 0.95
) -> list[dict[str, Any]]:
    """DeLong's paired test against each other model, on the patients both have.

    Raises:
      ContractError: labels differ, or the common patients are too few of a class.
    """
    found: list[dict[str, Any]] = []
    for other in others:
        mine, theirs = predictions.common(other)
        truth = predictions.labels[mine]
        if (truth != other.labels[theirs]).any():
            raise ContractError(f"{predictions.name} and {other.name} have different labels")
        first, second = predictions.scores[mine], other.scores[theirs]
        try:
            test = delong_test(truth, first, second, level)
        except ValueError as error:
            raise ContractError(
                f"{predictions.name} and {other.name} in common: {error}"
            ) from error
        one, another = (
            estimate_of(truth, first, level=level),
            estimate_of(truth, second, level=level),
        )
        rates, hits = _roc(truth, second)
        found.append(
            {
                "name": other.name,
                "n": one["n"],
                "positive": one["positive"],
                "auc": one["auc"],
                "auc_interval": one["auc_interval"],
                "other_auc": another["auc"],
                "other_auc_interval": another["auc_interval"],
                "difference": test.difference,
                "difference_interval": list(test.interval),
                "z": test.z,
                "p_value": test.p_value,
                "roc": {"false_positive_rate": rates.tolist(), "sensitivity": hits.tolist()},
            }
        )
    for one, adjusted in zip(found, holm([one["p_value"] for one in found]), strict=True):
        one["p_value_holm"] = adjusted
    return found
