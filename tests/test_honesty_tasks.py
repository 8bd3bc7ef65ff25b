"""The benchmark of claims for classes, findings and values: its stand-in, and a run of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import honesty
from _repetitions import Told
from _stand_in_tasks import MIXES, TARGETS, cohorts_of, cross_validate, logits, slopes_of
from _task_repetitions import RULES, TASK_CELLS, TaskCell, TaskMeasured, measure_task

from beam_jobs.common.cli import UsageError

TASKS = tuple(TARGETS)


@pytest.mark.parametrize("task", TASKS)
def test_slopes_are_those_of_the_tasks_loss(task: str) -> None:
    draws = np.random.default_rng(0)
    weights = [draws.normal(size=(2, *shape)) for shape in ((3, 4), (4,), (5, 3))]
    features = draws.normal(size=(2, 6, 3))
    targets: Any = np.eye(3)[draws.integers(0, 3, (2, 6))]
    if task == "multilabel":
        targets[0, 1, 2] = np.nan
    if task == "regression":
        targets = 3 * draws.normal(size=(2, 6, 3))

    def loss() -> float:
        raw = logits(tuple(weights), features)  # type: ignore[arg-type]
        if task == "multiclass":
            each = np.logaddexp.reduce(raw, axis=-1) - (raw * targets).sum(axis=-1)
        elif task == "multilabel":
            each = np.nansum(np.logaddexp(0, raw) - raw * targets, axis=-1)
        else:
            apart = np.abs(raw - targets)
            each = np.where(apart < 1, apart**2 / 2, apart - 0.5).sum(axis=-1)
        return float(each.mean(axis=1).sum())

    slopes = slopes_of(task, weights, features, targets)  # type: ignore[arg-type]
    for part, slope in zip(weights, slopes, strict=True):
        for place in list(np.ndindex(part.shape))[::3]:
            kept, step = part[place], 1e-6
            part[place] = kept + step
            above = loss()
            part[place] = kept - step
            below = loss()
            part[place] = kept
            assert slope[place] == pytest.approx((above - below) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_patient_is_scored_by_the_network_of_the_fold_that_left_it_out(task: str) -> None:
    draws = np.random.default_rng(1)
    cohorts = cohorts_of(task, 2, 60, "unequal", 1.0, draws)
    runs = cross_validate(cohorts, 3, draws, repeats=2, modality=1)
    for patient in (0, 17, 41):
        fold = cohorts.folds[1, patient]
        weights = tuple(part[2, 1, 1, fold][None] for part in runs.weights)
        own = logits(weights, cohorts.features[1, 1, [patient]][None])[0, 0]
        mean, spread = runs.scale[1, 1, fold]
        assert runs.held_out[1, 1, 2, patient] == pytest.approx(own * spread + mean, rel=1e-4)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("task", TASKS)
def test_folds_are_of_one_size_and_stratified(task: str, mix: str) -> None:
    cohorts = cohorts_of(task, 3, 60, mix, 0.0, np.random.default_rng(2))
    for truth, folds in zip(cohorts.truth, cohorts.folds, strict=True):
        assert np.bincount(folds).tolist() == [12] * 5
        if task == "multiclass":
            counts = [np.bincount(truth[folds == k], minlength=3) for k in range(5)]
            assert np.ptp(counts, axis=0).max() <= 2


def test_a_level_that_is_broken_is_missed() -> None:
    silent = TaskCell(task="multiclass", signal=False, n=60, mix="equal", epochs=15)
    speaking = TaskCell(task="multiclass", signal=True, n=60, mix="equal", epochs=15)
    assert {silent, speaking} < set(TASK_CELLS)

    def missed(better: int, covering: int, differing: int, parts: int) -> set[str]:
        cells = {
            cell: TaskMeasured(told={rule: Told() for rule in RULES}) for cell in (silent, speaking)
        }
        for number in range(100):
            for rule in RULES:
                cells[silent].told[rule].add(0.55, (0.51 if number < better else 0.49, 0.7), 0.5)
                high = 0.7 if number < covering else 0.6
                cells[speaking].told[rule].add(0.65, (0.55, high), 0.65)
            cells[silent].differ["seed"].append(number < differing)
            cells[silent].any_part.append(number < parts)
        limits = honesty.limits_of_tasks(cells, 100)
        return {limit.figure.split(",")[0] for limit in limits if not limit.holds}

    assert missed(2, 96, 5, 5) == set()
    assert missed(12, 96, 5, 5) == {"better than chance"}
    assert missed(2, 80, 5, 5) == {"covered"}
    assert missed(2, 96, 20, 5) == {"equal models differ"}
    assert missed(2, 96, 5, 20) == {"any part better than chance"}


def test_an_unknown_cell_is_one_line() -> None:
    with pytest.raises(UsageError, match="--cells 7/: no such cell"):
        honesty.main(["--task", "multiclass", "--cells", "7/"])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_claims_hold_over_whole_repeated_runs(task: str) -> None:
    cells = {
        cell: measure_task(cell, 150, seed=1)
        for cell in TASK_CELLS
        if (cell.task, cell.n, cell.mix, cell.epochs) == (task, 60, "unequal", 15)
    }
    assert {cell.signal for cell in cells} == {False, True}
    for limit in honesty.limits_of_tasks(cells, 150):
        assert limit.holds, f"{limit.figure}: {limit.value} ({limit.bound})"
    (silent,) = (one for cell, one in cells.items() if not cell.signal)
    # Why the variance is doubled: shared training patients add to what independent ones give.
    assert 1.2 < silent.times < 2.3
    (speaking,) = (one for cell, one in cells.items() if cell.signal)
    assert speaking.told["last"].better > 40
