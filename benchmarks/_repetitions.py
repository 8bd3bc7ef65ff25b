"""Whole cross-validated runs of the stand-in, repeated: what the trainer's own code tells of them.

Epochs are chosen, AUCs estimated and models compared by the trainer's functions. "Before" is what
version 0.2 did: each fold's best epoch on that very fold, logits pooled, Newcombe's interval.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from _stand_in import (
    FOLDS,
    Cohorts,
    CrossValidated,
    Floats,
    Places,
    Recipe,
    areas,
    cohorts_of,
    cross_validate,
)
from sklearn.metrics import average_precision_score

from trainer.metrics.auc import newcombe_variance
from trainer.metrics.comparisons import delong_test
from trainer.metrics.epoch_choice import candidate_epochs, crossfit
from trainer.metrics.estimate import OUT_OF_FOLD_FACTOR, estimate_of
from trainer.metrics.resampling import bootstrap, percentile_interval
from trainer.metrics.roc_and_calibration import wilson_interval

REPEATS = 3
PERMUTATIONS = 39
BEFORE = "before"
RULES = ("last", "mean", "crossfit", "last x3", "crossfit x3")  # those that must hold
FURTHER = ("average precision", "sensitivity")
KINDS = ("seed", "modality", "recipe")
OTHER_RECIPE = Recipe(width=8, learning_rate=3e-3)
# Between the classes' means, in SD: the last epoch's expected AUC is then near the one named.
SHIFTS = {(15, 0.65): 0.44, (15, 0.75): 0.64, (100, 0.65): 0.50, (100, 0.75): 0.71}
_BLOCK = 25  # cohorts at a time: some 50 MB of weights


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """Cohorts of a kind; `truth` is the last epoch's expected AUC, roughly, 0.5 for no signal."""

    truth: float
    n: int
    positive: float
    epochs: int

    @property
    def shift(self) -> float:
        return SHIFTS.get((self.epochs, self.truth), 0.0)

    @property
    def variance(self) -> float:
        """Newcombe's at an AUC of 0.5."""
        positive = round(self.positive * self.n)
        return newcombe_variance(0.5, [(positive, self.n - positive)])

    @property
    def names(self) -> tuple[str, ...]:
        return str(self.n), f"{self.positive:.0%}", str(self.epochs)


CELLS = tuple(
    Cell(truth=truth, n=n, positive=positive, epochs=epochs)
    for truth, n, positive, epochs in itertools.product(
        (0.5, 0.65, 0.75), (60, 110), (0.5, 0.3), (15, 100)
    )
)


class Told:
    """What repetitions told by one rule: a score, its interval, and the score on new patients."""

    def __init__(self, chance: float = 0.5) -> None:
        self.chance = chance
        self._rows: list[tuple[float, float, float, float]] = []

    def add(self, value: float, interval: Sequence[float], fresh: float = math.nan) -> None:
        self._rows.append((value, interval[0], interval[1], fresh))

    @property
    def columns(self) -> Floats:
        """AUC, lower and upper limit, AUC on new patients: (4, repetitions)."""
        return np.array(self._rows).T

    @property
    def auc(self) -> float:
        return float(self.columns[0].mean())

    @property
    def sd(self) -> float:
        return float(self.columns[0].std())

    @property
    def better(self) -> float:
        return 100 * float((self.columns[1] > self.chance).mean())

    @property
    def worse(self) -> float:
        return 100 * float((self.columns[2] < self.chance).mean())

    @property
    def expected(self) -> float:
        """The procedure's expected AUC: of its networks on new patients."""
        return float(self.columns[3].mean())

    def covered(self, truth: float | None = None) -> float:
        _, low, high, _ = self.columns
        truth = self.expected if truth is None else truth
        return 100 * float(((low <= truth) & (truth <= high)).mean())

    def to_json(self) -> dict[str, float]:
        return {
            "auc": self.auc, "sd": self.sd, "expected": self.expected, "better": self.better,
            "worse": self.worse, "covered": self.covered(),
        }  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class Measured:
    """A cell's repetitions: by rule; significant or not, by kind of two equal models."""

    told: dict[str, Told] = dataclasses.field(default_factory=lambda: defaultdict(Told))
    differ: dict[str, list[bool]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0

    def share(self, kind: str) -> float:
        """In how many of 100 repetitions the two models differ significantly."""
        return 100 * float(np.mean(self.differ[kind]))


def measure(cell: Cell, repetitions: int, seed: int, *, further: bool = False) -> Measured:
    """Repeats a cell's runs.

    Args:
      cell: the kind of cohort.
      repetitions: cohorts.
      seed: of everything.
      further: the intervals of average precision and sensitivity too.
    """
    measured, start = Measured(), time.process_time()
    draws = np.random.default_rng([seed, CELLS.index(cell)])
    for first in range(0, repetitions, _BLOCK):
        count = min(_BLOCK, repetitions - first)
        cohorts = cohorts_of(count, cell.n, cell.positive, cell.shift, draws)
        runs = cross_validate(cohorts, cell.epochs, draws, repeats=REPEATS)
        other = {"modality": cross_validate(cohorts, cell.epochs, draws, modality=1)}
        if not cell.shift:  # where every model's expected AUC is 0.5
            other["recipe"] = cross_validate(cohorts, cell.epochs, draws, recipe=OTHER_RECIPE)
        _tell(measured, cohorts, runs, other)
        if further:
            _tell_further(measured, cohorts, runs, first)
    measured.seconds = time.process_time() - start
    return measured


def _tell(
    measured: Measured, cohorts: Cohorts, runs: CrossValidated, other: Mapping[str, CrossValidated]
) -> None:
    chosen = epochs_of(runs)
    fresh = {rule: runs.fresh_auc(epochs) for rule, epochs in chosen.items()}
    labels = cohorts.labels
    for row, folds in enumerate(cohorts.folds):
        scores = {
            rule: runs.held_out[row][:, epochs[row][folds], np.arange(labels.size)]
            for rule, epochs in chosen.items()
        }
        for rule in RULES:
            told = scores[rule] if rule.endswith(f"x{REPEATS}") else scores[rule][0]
            estimate = estimate_of(labels, told, folds=folds)
            measured.told[rule].add(estimate["auc"], estimate["auc_interval"], fresh[rule][row])
        pooled = scores[BEFORE][0]
        plain = estimate_of(labels, pooled)
        measured.told[BEFORE].add(plain["auc"], plain["auc_interval"], fresh[BEFORE][row])
        pairs = {"seed": (scores["last"][0], scores["last"][1])}
        for kind, model in other.items():
            pairs[kind] = scores["last"][0], model.held_out[row, 0, -2]
        for kind, two in pairs.items():
            p_value = delong_test(labels, *two, folds=(folds, folds)).p_value
            measured.differ[kind].append(p_value is not None and p_value < 0.05)


def epochs_of(runs: CrossValidated) -> dict[str, Places]:
    """By rule, which epoch's networks are scored: (C, fold), the first epoch is 0.

    The epoch after the last one is the mean of the last third's weights.
    """
    epochs = runs.held_out.shape[2] - 1
    count = len(runs.held_out)
    last = np.full((count, FOLDS), epochs - 1)
    return {
        "last": last,
        "mean": last + 1,
        "crossfit": _crossfitted(runs, 1),
        "last x3": last,
        "crossfit x3": _crossfitted(runs, REPEATS),
        BEFORE: _best_on_own_fold(runs),
    }


def _crossfitted(runs: CrossValidated, repeats: int) -> Places:
    cohorts = runs.cohorts
    candidates = np.array(candidate_epochs(runs.held_out.shape[2] - 1)) - 1
    scores = runs.held_out[:, :repeats, candidates]
    losses = np.logaddexp(0, np.where(cohorts.labels == 1, -scores, scores))
    found = []
    for of_patients, folds in zip(losses, cohorts.folds, strict=True):
        chosen = crossfit({k: of_patients[..., folds == k].mean(axis=-1) for k in range(FOLDS)})
        found.append([candidates[chosen[k]] for k in range(FOLDS)])
    return np.array(found)


def _best_on_own_fold(runs: CrossValidated) -> Places:
    labels = runs.cohorts.labels
    return np.array(
        [
            [areas(labels[folds == k], scores[0, :-1, folds == k].T).argmax() for k in range(FOLDS)]
            for scores, folds in zip(runs.held_out, runs.cohorts.folds, strict=True)
        ]
    )


def _tell_further(measured: Measured, cohorts: Cohorts, runs: CrossValidated, first: int) -> None:
    labels = cohorts.labels
    for number, scores in enumerate(runs.held_out[:, 0, -2]):
        drawn = bootstrap(labels, scores, resamples=400, seed=first + number).average_precision
        low, high = percentile_interval(drawn, factor=OUT_OF_FOLD_FACTOR)
        value = float(average_precision_score(labels, scores))
        measured.told[FURTHER[0]].add(value, (float(low), float(high)))
        hits, of = int((scores[labels == 1] > 0).sum()), int(labels.sum())
        interval = wilson_interval(hits, of, factor=OUT_OF_FOLD_FACTOR)
        measured.told[FURTHER[1]].add(hits / of, interval)


def permuted(cell: Cell, repetitions: int, seed: int) -> Told:
    """Repeats runs of the last epoch's networks that `PERMUTATIONS` retrainings decide about."""
    told = Told()
    draws = np.random.default_rng([seed, 1000 + CELLS.index(cell)])
    block = _BLOCK // 3
    for first in range(0, repetitions, block):
        count = min(block, repetitions - first)
        cohorts = cohorts_of(count, cell.n, cell.positive, cell.shift, draws)
        run = cross_validate(cohorts, cell.epochs, draws)
        shuffled = permuted_within(cohorts, draws)
        null = cross_validate(
            cohorts, cell.epochs, draws, repeats=PERMUTATIONS, labels=shuffled
        ).held_out[:, :, -2]
        fresh = run.fresh_auc(np.full((count, FOLDS), cell.epochs - 1))
        for row, folds in enumerate(cohorts.folds):
            without = [
                estimate_of(truth, scores, folds=folds)["auc"]
                for truth, scores in zip(shuffled[row], null[row], strict=True)
            ]
            estimate = estimate_of(
                cohorts.labels, run.held_out[row, 0, -2], folds=folds, null=without
            )
            told.add(estimate["auc"], estimate["auc_interval"], fresh[row])
    return told


def permuted_within(cohorts: Cohorts, draws: np.random.Generator) -> npt.NDArray[np.int64]:
    """Labels permuted within the folds, (C, `PERMUTATIONS`, n)."""
    found = np.tile(cohorts.labels, (len(cohorts.folds), PERMUTATIONS, 1))
    for row, folds in enumerate(cohorts.folds):
        for k in range(FOLDS):
            inside = np.flatnonzero(folds == k)
            found[row][:, inside] = draws.permuted(found[row][:, inside], axis=1)
    return found
