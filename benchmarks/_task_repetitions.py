"""Whole cross-validated runs of classes, findings and values, repeated: what is told of them.

Epochs are chosen, scores estimated, models compared and intervals of values made by the trainer's
own functions. The rules are the last epoch and the epoch that the other folds choose by their loss,
of one run and of the mean of three.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
from _repetitions import OTHER_RECIPE, REPEATS, Told
from _stand_in import FOLDS, Floats
from _stand_in_tasks import (
    MIXES,
    TARGETS,
    Cohorts,
    CrossValidated,
    cohorts_of,
    cross_validate,
)

from trainer.metrics.epoch_choice import candidate_epochs, crossfit
from trainer.metrics.tasks.conformal import conformal_of
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.measure import measure_of
from trainer.metrics.tasks.paired import task_test

RULES = ("last", "last x3", "crossfit")
KINDS = ("seed", "modality", "recipe")
PERMUTATIONS = 39
_SHIFTS = {"multiclass": 1.0, "multilabel": 1.2, "regression": 1.3}
_PATIENTS = 1500  # of all cohorts at a time: some 50 MB of weights
_SMALLEST = 30  # patients: whose intervals of values are tried too


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class TaskCell:
    """Cohorts of a kind; a mix is of the classes' or findings' shares, or of the values' tails."""

    task: str
    signal: bool
    n: int
    mix: str
    epochs: int

    @property
    def names(self) -> tuple[str, ...]:
        return self.task, str(self.n), self.mix, str(self.epochs), "signal" * self.signal or "none"


TASK_CELLS = tuple(
    TaskCell(task=task, signal=signal, n=n, mix=mix, epochs=epochs)
    for task, signal, n, mix, epochs in itertools.product(
        TARGETS, (False, True), (_SMALLEST, 60, 110, 300), MIXES, (15, 100)
    )
    # So few patients are for intervals of values; so many are slow, and hang on epochs least.
    if (n > _SMALLEST or task == "regression") and (n < 300 or epochs == 15)
)


@dataclasses.dataclass(kw_only=True)
class TaskMeasured:
    """A cell's repetitions.

    Attributes:
      told: by rule.
      any_part: whether any class or finding is told to be better than chance, by Holm's p-values.
      closed: variance without signal that the closed form gives, of the last epoch's.
      differ: by kind of two equal models, significant or not.
      inside: share of new patients within intervals of values, of the mean of the folds' networks.
      inside_one: the same of one fold's network.
      measured: the coverage that the residuals told.
      seconds: of processor time.
    """

    told: dict[str, Told]
    closed: list[float] = dataclasses.field(default_factory=list)
    any_part: list[bool] = dataclasses.field(default_factory=list)
    differ: dict[str, list[bool]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    inside: list[float] = dataclasses.field(default_factory=list)
    inside_one: list[float] = dataclasses.field(default_factory=list)
    measured: list[float] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def share(self, kind: str) -> float:
        """In how many of 100 repetitions the two models differ significantly."""
        return 100 * float(np.mean(self.differ[kind]))

    @property
    def any_told(self) -> float:
        """In how many of 100 repetitions any class or finding is told better than chance."""
        return 100 * float(np.mean(self.any_part))

    def to_json(self) -> dict[str, Any]:
        """Everything measured."""
        values = {}
        if self.inside:
            values = {"inside": float(np.mean(self.inside)),
                      "inside_one": float(np.mean(self.inside_one)),
                      "measured": float(np.mean(self.measured))}  # fmt: skip
        return {
            "rules": {rule: told.to_json() for rule, told in self.told.items()},
            "differ": {kind: self.share(kind) for kind in self.differ},
            "variance_of_closed": self.times,
            "any_part": self.any_told,
            "seconds": self.seconds,
            **values,
        }

    @property
    def times(self) -> float:
        """How often the closed form's variance the last epoch's scores vary by."""
        return self.told["last"].sd ** 2 / float(np.mean(self.closed))


def measure_task(cell: TaskCell, repetitions: int, seed: int) -> TaskMeasured:
    """Repeats a cell's runs."""
    start = time.process_time()
    target = TARGETS[cell.task]
    chance = measure_of(target).chance
    measured = TaskMeasured(told={rule: Told(chance) for rule in RULES})
    draws = np.random.default_rng([seed, TASK_CELLS.index(cell)])
    shift = _SHIFTS[cell.task] if cell.signal else 0.0
    block = max(1, min(25, _PATIENTS // cell.n))
    for first in range(0, repetitions, block):
        count = min(block, repetitions - first)
        cohorts = cohorts_of(cell.task, count, cell.n, cell.mix, shift, draws)
        runs = cross_validate(cohorts, cell.epochs, draws, repeats=REPEATS)
        others = {"modality": cross_validate(cohorts, cell.epochs, draws, modality=1)}
        if not cell.signal:  # where every model's expected score is chance
            others["recipe"] = cross_validate(cohorts, cell.epochs, draws, recipe=OTHER_RECIPE)
        for row in range(count):
            _tell(measured, runs, others, row)
    measured.seconds = time.process_time() - start
    return measured


def _answers(found: Floats, task: str) -> Floats:
    """As estimates take them: values without their one output."""
    return found[..., 0] if task == "regression" else found


def _tell(
    measured: TaskMeasured, runs: CrossValidated, others: dict[str, CrossValidated], row: int
) -> None:
    cohorts = runs.cohorts
    target, truth, folds = cohorts.target, cohorts.truth[row], cohorts.folds[row]
    last = _answers(runs.held_out[row, :, -1], target.task)
    chosen = _crossfitted(cohorts, runs.held_out[row, 0], row)
    crossfitted = _answers(runs.held_out[row, 0][chosen[folds], np.arange(truth.shape[0])],
                           target.task)  # fmt: skip
    fresh = runs.fresh_score(row)
    scores = {}
    for rule, answers in zip(RULES, (last[0], last, crossfitted), strict=True):
        found = estimate_of_task(target, truth, answers, folds=folds)
        scores[rule] = found["score"]
        measured.told[rule].add(found["score"], found["interval"], fresh)
        if rule == "last":
            error = (found["told_from_chance"] - found["chance"]) / 1.959964
            measured.closed.append(error**2 / found["variance_factor"])
            measured.any_part.append(any(one["better_than_chance"] for one in found["parts"]))
    pairs = {"seed": last[1]}
    pairs |= {kind: _answers(run.held_out[row, 0, -1], target.task) for kind, run in others.items()}
    for kind, other in pairs.items():
        theirs = estimate_of_task(target, truth, other, folds=folds)["score"]
        test = task_test(target, truth, (last[0], other), (folds, folds),
                         difference=scores["last"] - theirs)  # fmt: skip
        measured.differ[kind].append(test is not None and (test.p_value or 0) < 0.05)
    if target.task == "regression":
        found = conformal_of(truth, last[0], folds=folds)
        wanted, new = cohorts.fresh_truth[row], runs.fresh(row)[..., 0]
        for share, values in ((measured.inside, new.mean(axis=0)), (measured.inside_one, new[0])):
            share.append(float((np.abs(wanted - values) <= found["half_width"]).mean()))
        measured.measured.append(found["coverage"])


def _crossfitted(cohorts: Cohorts, answers: Floats, row: int) -> npt.NDArray[np.intp]:
    """Each fold's epoch (from 0) by the other folds' losses; answers (epochs, n, outputs)."""
    target, truth, folds = cohorts.target, cohorts.truth[row], cohorts.folds[row]
    candidates = np.array(candidate_epochs(len(answers))) - 1
    loss = measure_of(target).loss
    losses = {
        k: [loss(truth[folds == k], _answers(answers[one, folds == k], target.task))
            for one in candidates]
        for k in range(FOLDS)
    }  # fmt: skip
    chosen = crossfit(losses)
    return np.array([candidates[chosen[k]] for k in range(FOLDS)])


def permuted_task(cell: TaskCell, repetitions: int, seed: int) -> Told:
    """Repeats runs of the last epoch's networks that `PERMUTATIONS` retrainings decide about."""
    told = Told(measure_of(TARGETS[cell.task]).chance)
    draws = np.random.default_rng([seed, 1000 + TASK_CELLS.index(cell)])
    shift = _SHIFTS[cell.task] if cell.signal else 0.0
    target = TARGETS[cell.task]
    for first in range(0, repetitions, 5):
        count = min(5, repetitions - first)
        cohorts = cohorts_of(cell.task, count, cell.n, cell.mix, shift, draws)
        run = cross_validate(cohorts, cell.epochs, draws)
        shuffled = np.repeat(cohorts.truth[:, np.newaxis], PERMUTATIONS, axis=1)
        for row, repeat, k in np.ndindex(count, PERMUTATIONS, FOLDS):
            inside = np.flatnonzero(cohorts.folds[row] == k)
            shuffled[row, repeat, inside] = shuffled[row, repeat, draws.permutation(inside)]
        null = cross_validate(cohorts, cell.epochs, draws, repeats=PERMUTATIONS, truth=shuffled)
        for row, folds in enumerate(cohorts.folds):
            answers = _answers(null.held_out[row, :, -1], cell.task)
            without = [
                estimate_of_task(target, truth, one, folds=folds)["score"]
                for truth, one in zip(shuffled[row], answers, strict=True)
            ]
            own = _answers(run.held_out[row, 0, -1], cell.task)
            found = estimate_of_task(target, cohorts.truth[row], own, folds=folds, null=without)
            told.add(found["score"], found["interval"], run.fresh_score(row))
    return told
