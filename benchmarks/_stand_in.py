"""A stand-in for whole cross-validated training runs: thousands of small networks side by side.

Patients are Gaussian features of falling size, of which the first few know the label. The network
has one hidden layer, wide enough to learn its training patients by heart, and Adam on shuffled
batches of 8 as the trainer has. Over repetitions without signal its AUC varies as that of small 3D
networks does: 1.6 to 2 times what a formula for independent patients says. A run of 5 folds and
100 epochs takes some 20 ms.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.folds import assign_folds

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]
Weights = tuple[Singles, ...]
"""Of N networks: (N, inputs, width) and (N, width) of the hidden layer, (N, width + 1) after it."""

FOLDS = 5
MODALITIES = 2  # alike, and independent given the label
INPUTS = 20  # of a modality
INFORMATIVE = 4
_FRESH = 50  # patients of each class that no network is trained on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is made: width of its hidden layer, Adam's rate, patients a step."""

    width: int = 16
    learning_rate: float = 1e-2
    batch: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Cohorts:
    """C cohorts of n patients, with new patients of each.

    Attributes:
      labels: 0 or 1, (n,).
      folds: each cohort's own, dealt as conversion deals them, (C, n).
      features: (C, modality, n, inputs).
      fresh_labels, fresh: the new patients', (m,) and (C, modality, m, inputs).
    """

    labels: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64]
    features: Singles
    fresh_labels: npt.NDArray[np.int64]
    fresh: Singles


def cohorts_of(
    count: int, n: int, positive: float, shift: float, draws: np.random.Generator
) -> Cohorts:
    """Draws cohorts; `shift` is between the classes' means of an informative feature, in SD."""
    labels = np.zeros(n, np.int64)
    labels[: round(positive * n)] = 1
    fresh_labels = np.repeat([0, 1], _FRESH)
    names = {str(patient): int(label) for patient, label in enumerate(labels)}
    size = 1 / np.arange(1.0, INPUTS + 1)
    size /= np.sqrt(np.mean(size**2))

    def features(truth: npt.NDArray[np.int64]) -> Singles:
        found = draws.standard_normal((count, MODALITIES, truth.size, INPUTS), np.float32)
        found[..., :INFORMATIVE] += np.float32(shift) * (truth - 0.5)[:, None].astype(np.float32)
        return found * size.astype(np.float32)

    dealt = [assign_folds(names, FOLDS, int(seed)) for seed in draws.integers(2**31, size=count)]
    return Cohorts(
        labels=labels,
        folds=np.array([[fold[name] for name in names] for fold in dealt]),
        features=features(labels),
        fresh_labels=fresh_labels,
        fresh=features(fresh_labels),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CrossValidated:
    """C cohorts, each cross-validated R times.

    Attributes:
      cohorts: the patients.
      modality: trained on.
      held_out: logits by the networks that did not see the patient, (C, R, epochs + 1, n); the last
        ones are of the mean of the weights over the last third of the epochs.
      weights: the networks' of the same epochs, each (epochs + 1, C, R, fold, ...).
    """

    cohorts: Cohorts
    modality: int
    held_out: Floats
    weights: Weights

    def fresh_auc(self, epochs: Places) -> Floats:
        """Mean AUC over new patients of the folds' networks at these epochs: (C, fold) to (C,)."""
        row, fold = np.indices(epochs.shape)
        chosen = tuple(part[epochs, row, 0, fold] for part in self.weights)
        scores = logits(chosen, self.cohorts.fresh[:, None, self.modality])
        found: Floats = areas(self.cohorts.fresh_labels, scores).mean(axis=1)
        return found


def areas(labels: npt.NDArray[np.int64], scores: Floats | Singles) -> Floats:
    """AUC along the last axis, all patients of which have these labels."""
    up, down = scores[..., labels == 1, None], scores[..., None, labels == 0]
    found: Floats = (up > down).mean(axis=(-2, -1)) + (up == down).mean(axis=(-2, -1)) / 2
    return found


def cross_validate(
    cohorts: Cohorts,
    epochs: int,
    draws: np.random.Generator,
    *,
    recipe: Recipe | None = None,
    repeats: int = 1,
    modality: int = 0,
    labels: npt.NDArray[np.int64] | None = None,
) -> CrossValidated:
    """Trains a network for every cohort, repeat and fold.

    Args:
      cohorts: the patients; every fold has as many.
      epochs: passes over the training patients.
      draws: first weights and orders.
      recipe: of the networks.
      repeats: runs that share the folds and differ in all that is drawn.
      modality: trained on.
      labels: (C, repeats, n), where a repeat has its own instead of the cohort's.
    """
    count, n = cohorts.folds.shape
    by_fold = np.argsort(cohorts.folds, axis=1, kind="stable").reshape(count, FOLDS, -1)
    learnt = np.array(
        [[np.delete(folds, k, axis=0).ravel() for k in range(FOLDS)] for folds in by_fold]
    )
    if labels is None:
        labels = np.broadcast_to(cohorts.labels, (count, repeats, n))
    row, repeat, fold = (part.ravel() for part in np.indices((count, repeats, FOLDS)))
    features = cohorts.features[:, modality]
    after = _train(
        features, labels[row, repeat].astype(np.float32), row, learnt[row, fold], epochs, draws,
        recipe or Recipe(),
    )  # fmt: skip
    third = after[-max(1, epochs // 3) :]
    after.append(tuple(np.mean(parts, axis=0) for parts in zip(*third, strict=True)))
    unseen = features[row[:, None], by_fold[row, fold]]
    scores = np.array([logits(weights, unseen) for weights in after], np.float64)
    scores = np.moveaxis(scores.reshape(epochs + 1, count, repeats, n), 0, 2)
    place = np.argsort(by_fold.reshape(count, n), axis=1)[:, None, None]
    shape = (epochs + 1, count, repeats, FOLDS)
    return CrossValidated(
        cohorts=cohorts,
        modality=modality,
        held_out=np.take_along_axis(scores, place, axis=-1),
        weights=tuple(
            np.array(part).reshape(*shape, *part[0].shape[1:]) for part in zip(*after, strict=True)
        ),
    )


def logits(weights: Weights, features: Singles) -> Singles:
    """Of networks for patients of their own: (..., patients, inputs) to (..., patients)."""
    kernel, bias, out = weights
    hidden = np.maximum(features @ kernel + bias[..., None, :], 0)
    found: Singles = (hidden @ out[..., :-1, None])[..., 0] + out[..., -1:]
    return found


def _train(
    features: Singles,
    labels: Singles,
    cohort: Places,
    patients: Places,
    epochs: int,
    draws: np.random.Generator,
    recipe: Recipe,
) -> list[Weights]:
    """Weights after each epoch of N networks.

    Args:
      features: (C, n, inputs).
      labels: each network's, (N, n).
      cohort: each network's, (N,).
      patients: trained on, (N, training patients).
      epochs, draws, recipe: as `cross_validate`.
    """
    networks, count = patients.shape
    width, inputs = recipe.width, features.shape[-1]

    def drawn(*shape: int) -> Singles:
        size = np.float32(np.sqrt(2 / shape[0]))
        return draws.standard_normal((networks, *shape), np.float32) * size

    weights = [drawn(inputs, width), np.zeros((networks, width), np.float32), drawn(width + 1)]
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
            slopes = slopes_of(weights, features[cohort[:, None], chosen], labels[row, chosen])
            step += 1
            rate = recipe.learning_rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            for weight, mean, square, slope in zip(weights, means, squares, slopes, strict=True):
                mean += np.float32(0.1) * (slope - mean)
                square += np.float32(0.001) * (slope * slope - square)
                weight -= np.float32(rate) * mean / (np.sqrt(square) + np.float32(1e-7))
        after.append(tuple(weight.copy() for weight in weights))
    return after


def slopes_of(
    weights: list[Singles], features: Singles, labels: Singles
) -> tuple[Singles, Singles, Singles]:
    """Of the mean binary cross-entropy by the weights; features (N, batch, inputs)."""
    kernel, bias, out = weights
    raw = features @ kernel + bias[:, None]
    hidden = np.maximum(raw, 0)
    logit = (hidden @ out[:, :-1, None])[..., 0] + out[:, -1:]
    error = ((1 + np.tanh(logit / 2)) / 2 - labels) / np.float32(labels.shape[1])
    of_raw = error[..., None] * out[:, None, :-1] * (raw > 0)
    of_out = (error[:, None] @ hidden)[:, 0]
    return (
        features.transpose(0, 2, 1) @ of_raw,
        of_raw.sum(axis=1),
        np.concatenate([of_out, error.sum(axis=1, keepdims=True)], axis=1),
    )
