"""The benchmark of claims: its stand-in for training, its limits, and a small run of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import honesty
from _repetitions import (
    BEFORE,
    CELLS,
    KINDS,
    PERMUTATIONS,
    RULES,
    Cell,
    Measured,
    epochs_of,
    measure,
    permuted_within,
)
from _stand_in import FOLDS, areas, cohorts_of, cross_validate, logits, slopes_of

from beam_jobs.common.cli import UsageError

SILENT = Cell(truth=0.5, n=60, positive=0.5, epochs=15)
SPEAKING = Cell(truth=0.65, n=60, positive=0.5, epochs=15)


def test_slopes_are_those_of_the_cross_entropy() -> None:
    draws = np.random.default_rng(0)
    weights = [draws.normal(size=(2, *shape)) for shape in ((3, 4), (4,), (5,))]
    features, labels = draws.normal(size=(2, 6, 3)), draws.integers(0, 2, (2, 6))

    def loss() -> float:
        raw = logits(tuple(weights), features)  # type: ignore[arg-type]
        return float(np.logaddexp(0, np.where(labels == 1, -raw, raw)).mean(axis=1).sum())

    slopes = slopes_of(weights, features, labels)  # type: ignore[arg-type]
    for part, slope in zip(weights, slopes, strict=True):
        for place in np.ndindex(part.shape):
            kept, step = part[place], 1e-6
            part[place] = kept + step
            above = loss()
            part[place] = kept - step
            below = loss()
            part[place] = kept
            assert slope[place] == pytest.approx((above - below) / (2 * step), abs=1e-6)


def test_a_patient_is_scored_by_the_network_of_the_fold_that_left_it_out() -> None:
    draws = np.random.default_rng(1)
    cohorts = cohorts_of(3, 60, 0.3, 1.5, draws)
    runs = cross_validate(cohorts, 4, draws, repeats=2, modality=1)
    for patient in (0, 17, 41):
        fold = cohorts.folds[2, patient]
        weights = tuple(part[3, 2, 1, fold] for part in runs.weights)
        own = logits(weights, cohorts.features[2, 1, [patient]])
        assert runs.held_out[2, 1, 3, patient] == pytest.approx(float(own[0]), rel=1e-5)


def test_a_folds_own_labels_do_not_move_its_scores() -> None:
    cohorts = cohorts_of(3, 60, 0.3, 1.5, np.random.default_rng(1))
    labels = np.tile(cohorts.labels, (3, 2, 1))
    labels[cohorts.folds[:, None].repeat(2, axis=1) == 0] = 0
    one, other = (
        cross_validate(cohorts, 2, np.random.default_rng(2), repeats=2, labels=truth).held_out
        for truth in (None, labels)
    )
    inside = (cohorts.folds == 0)[:, None, None].repeat(2, axis=1).repeat(3, axis=2)
    np.testing.assert_array_equal(one[inside], other[inside])
    assert (one[~inside] != other[~inside]).all()


def test_networks_learn_where_there_is_something_to_learn() -> None:
    draws = np.random.default_rng(3)
    runs = cross_validate(cohorts_of(4, 60, 0.5, 2.0, draws), 15, draws)
    assert runs.fresh_auc(np.full((4, FOLDS), 14)).mean() > 0.9
    held_out = areas(runs.cohorts.labels, runs.held_out[:, 0, 14])
    assert held_out.mean() > 0.9


def test_epochs_are_those_that_the_rules_say() -> None:
    draws = np.random.default_rng(4)
    runs = cross_validate(cohorts_of(2, 60, 0.5, 0.5, draws), 20, draws, repeats=3)
    chosen = epochs_of(runs)
    assert set(chosen) == {*RULES, BEFORE}
    assert (chosen["last"] == 19).all()
    assert (chosen["mean"] == 20).all()
    assert (chosen["crossfit"] % 2 == 1).all()  # ten candidates of twenty: every second, the last
    folds, labels = runs.cohorts.folds[0], runs.cohorts.labels
    inside = folds == 1
    by_epoch = areas(labels[inside], runs.held_out[0, 0, :-1, inside].T)
    assert by_epoch[chosen[BEFORE][0, 1]] == by_epoch.max()


def test_labels_are_permuted_within_folds() -> None:
    cohorts = cohorts_of(2, 60, 0.3, 0.0, np.random.default_rng(5))
    found = permuted_within(cohorts, np.random.default_rng(6))
    assert found.shape == (2, PERMUTATIONS, 60)
    for row, folds in enumerate(cohorts.folds):
        for fold in range(FOLDS):
            inside = folds == fold
            counts = found[row][:, inside].sum(axis=1)
            assert (counts == cohorts.labels[inside].sum()).all()
    assert len({tuple(one) for one in found[0]}) == PERMUTATIONS


def test_a_level_that_is_broken_is_missed() -> None:
    def cell(better: int, covering: int, differing: int) -> dict[Cell, Measured]:
        silent, speaking = Measured(), Measured()
        for number in range(100):
            for rule in RULES:
                low = 0.51 if number < better else 0.49
                silent.told[rule].add(0.55, (low, 0.7), 0.5)
                high = 0.7 if number < covering else 0.6
                speaking.told[rule].add(0.65, (0.55, high), 0.65)
            silent.differ[KINDS[0]].append(number < differing)
        return {SILENT: silent, SPEAKING: speaking}

    def missed(*counts: int) -> set[str]:
        limits = honesty.limits_of(cell(*counts), 100)
        return {limit.figure.split(",")[0] for limit in limits if not limit.holds}

    assert missed(2, 96, 5) == set()
    assert missed(12, 96, 5) == {"better than chance without signal"}
    assert missed(2, 80, 5) == {"covered with signal"}
    assert missed(2, 96, 20) == {"equal models differ"}


def test_an_unknown_cell_is_one_line() -> None:
    with pytest.raises(UsageError, match="--cells 7/: no such cell"):
        honesty.main(["--cells", "7/"])


@pytest.mark.slow
def test_claims_hold_over_whole_repeated_runs_and_those_of_before_did_not() -> None:
    repetitions = 200
    assert {SILENT, SPEAKING} < set(CELLS)
    cells = {cell: measure(cell, repetitions, seed=1) for cell in (SILENT, SPEAKING)}
    for limit in honesty.limits_of(cells, repetitions):
        assert limit.holds, f"{limit.figure}: {limit.value} ({limit.bound})"
    silent = cells[SILENT].told
    assert silent[BEFORE].better > 10
    assert silent["last"].auc == pytest.approx(0.5, abs=0.025)
    # What the stand-in is calibrated to: real small networks had 1.7 times Newcombe's variance.
    assert 1.4 < silent["last"].sd ** 2 / SILENT.variance < 2.3
