"""A search's report of ranges: their scales, their ends, and what they are worth."""

from __future__ import annotations

import math
import random

import pytest

from trainer.config.hyperparameter import Range
from trainer.config.search_space import Space
from trainer.config.space_file import space_of
from trainer.reports.study import _ticks, importance_of, page
from trainer.search.study import FinishedTrial

RANGES = {
    "network": ["seed_cnn", "slice_cnn"],
    "fusion": "early",
    **dict.fromkeys(("dropout", "augment", "schedule", "pooling", "head", "depth"), None),
    "width": {"min": 0.25, "max": 1},
    "learning_rate": {"min": 1e-5, "max": 1e-2, "log": True},
    "batch_size": {"min": 2, "max": 16, "step": 2, "log": True},
    "augment.rotation_deg": {"min": 0, "max": 30},
}
REQUEST = {
    **{"tuner": "random", "folds": [0, 1], "seeds": 1, "epochs": 9, "seed": 0},
    "dataset_fingerprint": "f" * 64,
}


def _trials(space: Space, count: int) -> list[FinishedTrial]:
    rng = random.Random(5)
    drawn = [space.drawn(rng) for _ in range(count)]
    return [
        FinishedTrial(
            trial=str(number),
            status="completed",
            reason="",
            objective=0.9 - abs(math.log10(float(values["learning_rate"])) + 3.5) / 5,
            values=values,
            config={"epochs": 9},
            result={"epochs": 9, "seconds": 1.0, "parameters": 1000},
        )
        for number, values in enumerate(drawn)
    ]


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (Range(name="x", low=1e-5, high=1e-2, scale="log"), [1e-5, 1e-4, 1e-3, 1e-2]),
        (Range(name="x", low=3e-5, high=0.02, scale="log"), [3e-5, 1e-4, 1e-3, 1e-2, 0.02]),
        (Range(name="x", low=0.25, high=1), [0.25, 0.4, 0.6, 0.8, 1]),
        (Range(name="x", low=2, high=16, step=2, scale="log", kind=int), [2, 4, 8, 16]),
        (Range(name="x", low=1, high=5, kind=int), [1, 2, 3, 4, 5]),
    ],
)
def test_an_axis_shows_a_ranges_ends_and_round_values_on_its_scale(one, told):
    assert sorted(_ticks(one)) == pytest.approx(told)


def test_the_report_shows_ranges_with_their_scales():
    space = space_of(("T1w",), RANGES)
    text = page("study", REQUEST, space, _trials(space, 8))
    for told in ("of unlimited combinations", "1e-05 to 0.01, log<", "2 to 16, log, factor 2<"):
        assert told in text
    assert "(log)" in text
    assert space.size_text(grid=True) == f"{2 * 10 * 10 * 4 * 10:,} combinations"


def test_the_report_calls_the_objective_what_it_is():
    space, trials = space_of(("T1w",), RANGES), _trials(space_of(("T1w",), RANGES), 3)
    text = page("study", {**REQUEST, "objective": "val_spearman"}, space, trials)
    assert "mean validation Spearman correlation of 0." in text
    assert "Spearman correlation of patients within a fold" in text
    assert "AUC" not in text


@pytest.mark.slow
def test_importance_finds_the_range_that_the_objective_was_made_of():
    space = space_of(("T1w",), RANGES)
    (name, share, _), (_, second, _) = importance_of(space, _trials(space, 60)).worth[:2]
    assert name == "learning_rate"
    assert share > 5 * abs(second)
