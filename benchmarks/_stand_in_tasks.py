"""The stand-in of `_stand_in` for classes, findings and values: as many outputs as the task has.

Patients are Gaussian features of falling size, of which the first few know the label. Classes and
findings are common and rare, findings come together and some are not known, values are normal or
have heavy tails. Networks learn by cross-entropy, by that of each known finding, or by Huber's loss
of values standardised by the training patients.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from _stand_in import FOLDS, INPUTS, MODALITIES, Floats, Places, Recipe, Singles, Weights

from beam_jobs.core.cohort.target import Target
from trainer.data.targets import targets_of
from trainer.metrics.tasks.measure import measure_of

TARGETS = {
    "multiclass": Target(task="multiclass", labels=("grade",), classes=("2", "3", "4")),
    "multilabel": Target(task="multilabel", labels=("edema", "necrosis", "bleeding")),
    "regression": Target(task="regression", labels=("volume",), unit="ml"),
}
MIXES = ("equal", "unequal")
_SHARES = {"equal": (1 / 3, 1 / 3, 1 / 3), "unequal": (0.6, 0.25, 0.15)}  # of the classes
_PREVALENCES = {"equal": (0.5, 0.5, 0.5), "unequal": (0.5, 0.3, 0.15)}  # of the findings
_UNKNOWN = 0.1  # of a finding
_FRESH = 150  # patients that no network is trained on


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cohorts:
    """C cohorts of n patients of one task, with new patients of each.

    Attributes:
      target: what labels say.
      truth: each cohort's labels, as `data.targets.truth_of` has them, (C, n[, labels]).
      folds: each cohort's own, stratified as conversion's are, (C, n).
      features: (C, modality, n, inputs).
      fresh_truth, fresh: the new patients', (C, m[, labels]) and (C, modality, m, inputs).
    """

    target: Target
    truth: npt.NDArray[Any]
    folds: npt.NDArray[np.int64]
    features: Singles
    fresh_truth: npt.NDArray[Any]
    fresh: Singles


def cohorts_of(
    task: str, count: int, n: int, mix: str, shift: float, draws: np.random.Generator
) -> Cohorts:
    """Draws cohorts; `shift` is what a class, a finding or an SD of a value moves a feature by."""
    target = TARGETS[task]
    truth, fresh_truth = (
        _labels(task, count, n, mix, draws),
        _labels(task, count, _FRESH, mix, draws),
    )
    if task == "multilabel":
        truth[draws.random(truth.shape) < _UNKNOWN] = np.nan
    size = 1 / np.arange(1.0, INPUTS + 1)
    size /= np.sqrt(np.mean(size**2))

    def features(labels: npt.NDArray[Any]) -> Singles:
        shape = (count, MODALITIES, labels.shape[1], INPUTS)
        found = draws.standard_normal(shape, np.float32)
        known: npt.NDArray[Any] = np.stack(
            [np.nan_to_num(targets_of(target, one)) for one in labels]
        )
        known = known - known.mean(axis=1, keepdims=True)
        if task == "regression":  # ranks: heavy tails are in the label alone
            known = known.argsort(axis=1).argsort(axis=1) / labels.shape[1] * 3.4 - 1.7
            known = np.repeat(known, 3, axis=2) / 2
        found[..., : known.shape[2]] += np.float32(shift) * known[:, np.newaxis].astype(np.float32)
        return found * size.astype(np.float32)

    folds = np.stack([_dealt(target, one, draws) for one in truth])
    return Cohorts(target=target, truth=truth, folds=folds, features=features(truth),
                   fresh_truth=fresh_truth, fresh=features(fresh_truth))  # fmt: skip


def _labels(
    task: str, count: int, n: int, mix: str, draws: np.random.Generator
) -> npt.NDArray[Any]:
    if task == "multiclass":
        sizes = np.floor(np.array(_SHARES[mix]) * n).astype(int)
        sizes[0] += n - sizes.sum()
        return np.tile(np.repeat(np.arange(3), sizes), (count, 1))
    if task == "multilabel":
        shared, own = draws.standard_normal((count, n, 1)), draws.standard_normal((count, n, 3))
        places = ((shared + own) / np.sqrt(2)).argsort(axis=1).argsort(axis=1)
        there: npt.NDArray[Any] = places < np.round(np.array(_PREVALENCES[mix]) * n)
        return there.astype(np.float64)
    if mix == "equal":
        return draws.standard_normal((count, n))
    return draws.standard_t(2.5, (count, n))


def _dealt(
    target: Target, truth: npt.NDArray[Any], draws: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Folds of one size, dealt class by class, set by set, or quantile by quantile."""
    key = targets_of(target, truth)
    if target.task == "multilabel":
        key = np.nan_to_num(key) @ np.array([[1.0], [2.0], [4.0]], np.float32)
    elif target.task == "multiclass":
        key = key @ np.array([[0.0], [1.0], [2.0]], np.float32)
    else:
        key = np.floor(key.argsort(axis=0).argsort(axis=0) / len(truth) * 10)
    order = np.lexsort((draws.random(len(truth)), key[:, 0]))
    folds = np.empty(len(truth), np.int64)
    folds[order] = draws.permuted(
        np.tile(np.arange(FOLDS), (len(truth) // FOLDS, 1)), axis=1
    ).ravel()
    return folds


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidated:
    """C cohorts, each cross-validated R times.

    Attributes:
      cohorts: the patients.
      held_out: answers by the networks that did not see the patient, (C, R, epochs, n, outputs).
      weights: the networks' after each epoch, each (epochs, C, R, fold, ...).
      scale: mean and SD of the training patients' values, (C, R, fold, 2); 0 and 1 of others.
      modality: trained on.
    """

    cohorts: Cohorts
    held_out: Floats
    weights: Weights
    scale: Floats
    modality: int

    def fresh(self, row: int, epoch: int = -1) -> Floats:
        """Answers of the first repeat's networks for new patients, (fold, m, outputs)."""
        chosen = tuple(part[epoch, row, 0] for part in self.weights)
        answers = logits(chosen, self.cohorts.fresh[row, self.modality][np.newaxis])
        mean, spread = self.scale[row, 0].T
        found: Floats = answers * spread[:, None, None] + mean[:, None, None]
        return found

    def fresh_score(self, row: int, epoch: int = -1) -> float:
        """Mean score on new patients of the folds' networks."""
        target, truth = self.cohorts.target, self.cohorts.fresh_truth[row]
        one = target.task == "regression"
        each = self.fresh(row, epoch)
        score = measure_of(target).score
        return float(np.mean([score(truth, found[:, 0] if one else found) for found in each]))


def cross_validate(
    cohorts: Cohorts,
    epochs: int,
    draws: np.random.Generator,
    *,
    recipe: Recipe | None = None,
    repeats: int = 1,
    modality: int = 0,
    truth: npt.NDArray[Any] | None = None,
) -> CrossValidated:
    """Trains a network for every cohort, repeat and fold.

    Args:
      cohorts: the patients; every fold has as many.
      epochs: passes over the training patients.
      draws: first weights and orders.
      recipe: of the networks.
      repeats: runs that share the folds and differ in all that is drawn.
      modality: trained on.
      truth: (C, repeats, n[, labels]), where a repeat has its own instead of the cohort's.
    """
    count, n = cohorts.folds.shape
    target = cohorts.target
    by_fold = np.argsort(cohorts.folds, axis=1, kind="stable").reshape(count, FOLDS, -1)
    learnt = np.array(
        [[np.delete(folds, k, axis=0).ravel() for k in range(FOLDS)] for folds in by_fold]
    )
    if truth is None:
        truth = np.repeat(cohorts.truth[:, np.newaxis], repeats, axis=1)
    flat = truth.reshape(count * repeats, *truth.shape[2:])
    targets = np.stack([targets_of(target, one) for one in flat]).reshape(count, repeats, n, -1)
    row, repeat, fold = (part.ravel() for part in np.indices((count, repeats, FOLDS)))
    wanted = targets[row, repeat]  # (N, n, outputs)
    scale = np.zeros((row.size, 2))
    scale[:, 1] = 1
    if target.task == "regression":
        own = np.take_along_axis(wanted[..., 0], learnt[row, fold], axis=1)
        scale = np.stack([own.mean(axis=1), own.std(axis=1)], axis=1)
        wanted = (wanted - scale[:, :1, np.newaxis]) / scale[:, 1:, np.newaxis]
    features = cohorts.features[:, modality]
    after = _train(target.task, features, wanted.astype(np.float32), row, learnt[row, fold],
                   epochs, draws, recipe or Recipe())  # fmt: skip
    unseen = features[row[:, None], by_fold[row, fold]]
    scores = np.array([logits(weights, unseen) for weights in after], np.float64)
    scores = scores * scale[:, 1, None, None] + scale[:, 0, None, None]
    scores = np.moveaxis(scores.reshape(epochs, count, repeats, n, -1), 0, 2)
    place = np.argsort(by_fold.reshape(count, n), axis=1)[:, None, None, :, None]
    shape = (epochs, count, repeats, FOLDS)
    return CrossValidated(
        cohorts=cohorts,
        held_out=np.take_along_axis(scores, place, axis=3),
        weights=tuple(
            np.array(part).reshape(*shape, *part[0].shape[1:]) for part in zip(*after, strict=True)
        ),
        scale=scale.reshape(count, repeats, FOLDS, 2),
        modality=modality,
    )


def logits(weights: Weights, features: Singles) -> Singles:
    """Of networks for patients of their own: (N, patients, inputs) to (N, patients, outputs)."""
    kernel, bias, out = weights
    hidden = np.maximum(features @ kernel + bias[..., None, :], 0)
    found: Singles = hidden @ out[..., :-1, :] + out[..., -1:, :]
    return found


def _train(
    task: str,
    features: Singles,
    targets: Singles,
    cohort: Places,
    patients: Places,
    epochs: int,
    draws: np.random.Generator,
    recipe: Recipe,
) -> list[Weights]:
    """Weights after each epoch of N networks, as `_stand_in` trains them.

    Args:
      task: whose loss is learnt from.
      features: (C, n, inputs).
      targets: each network's, (N, n, outputs), NaN unknown.
      cohort: each network's, (N,).
      patients: trained on, (N, training patients).
      epochs, draws, recipe: as `cross_validate`.
    """
    networks, count = patients.shape
    width, inputs = recipe.width, features.shape[-1]

    def drawn(*shape: int) -> Singles:
        size = np.float32(np.sqrt(2 / shape[0]))
        return draws.standard_normal((networks, *shape), np.float32) * size

    weights = [drawn(inputs, width), np.zeros((networks, width), np.float32),
               drawn(width + 1, targets.shape[-1])]  # fmt: skip
    weights[2][:, -1] = 0
    means, squares = ([np.zeros_like(one) for one in weights] for _ in range(2))
    row = np.arange(networks)[:, None]
    after: list[Weights] = []
    step = 0
    for _ in range(epochs):
        order = draws.random(patients.shape, np.float32).argsort(axis=1)
        order = np.take_along_axis(patients, order, axis=1)
        for start in range(0, count, recipe.batch):
            chosen = order[:, start : start + recipe.batch]
            slopes = slopes_of(
                task, weights, features[cohort[:, None], chosen], targets[row, chosen]
            )
            step += 1
            rate = recipe.learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            for weight, mean, square, slope in zip(weights, means, squares, slopes, strict=True):
                mean += np.float32(0.1) * (slope - mean)
                square += np.float32(0.001) * (slope * slope - square)
                weight -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(1e-7))
        after.append(tuple(weight.copy() for weight in weights))
    return after


def slopes_of(
    task: str, weights: list[Singles], features: Singles, targets: Singles
) -> tuple[Singles, Singles, Singles]:
    """Of the mean loss by the weights; features (N, batch, inputs), targets (N, batch, outputs)."""
    kernel, bias, out = weights
    raw = features @ kernel + bias[:, None]
    hidden = np.maximum(raw, 0)
    answers = hidden @ out[:, :-1] + out[:, -1:]
    if task == "multiclass":
        shares = np.exp(answers - answers.max(axis=-1, keepdims=True))
        error = shares / shares.sum(axis=-1, keepdims=True) - targets
    elif task == "multilabel":
        error = np.nan_to_num((1 + np.tanh(answers / 2)) / 2 - targets)
    else:
        error = np.clip(answers - targets, -1, 1)
    error = error / np.float32(targets.shape[1])
    of_raw = error @ out[:, :-1].transpose(0, 2, 1) * (raw > 0)
    return (
        features.transpose(0, 2, 1) @ of_raw,
        of_raw.sum(axis=1),
        np.concatenate(
            [hidden.transpose(0, 2, 1) @ error, error.sum(axis=1, keepdims=True)], axis=1
        ),
    )
