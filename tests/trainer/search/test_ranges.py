"""Ranges in a search: KerasTuner's own values, and studies over them."""

from __future__ import annotations

import pytest
from keras_tuner.engine import hyperparameters as theirs

from trainer.config.hyperparameter import Range


def test_a_range_steps_as_keras_tuner_does_and_does_not_miss_its_end():
    told = [
        (Range(name="x", low=1e-4, high=1e-1, step=10, scale="log"), theirs.Float),
        (Range(name="x", low=8, high=64, step=24, kind=int), theirs.Int),
        (Range(name="x", low=2, high=64, step=2, kind=int, scale="log"), theirs.Int),
        (Range(name="x", low=1, high=9, kind=int), theirs.Int),
    ]
    for one, kind in told:
        same = kind("x", one.low, one.high, step=one.step, sampling=one.scale)
        assert [*one.grid()] == pytest.approx([*same.values])
    assert [*Range(name="x", low=0.0, high=0.6, step=0.1).grid()] == [
        0,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
    ]


def test_a_grid_takes_ten_even_points_of_a_range_without_a_step_as_keras_tuner_does():
    for scale in ("linear", "log", "reverse_log"):
        one = Range(name="x", low=1e-4, high=1e-1, scale=scale)
        same = theirs.Float("x", 1e-4, 1e-1, sampling=scale)
        assert [*one.grid()] == pytest.approx(sorted(same.values), rel=1e-5)
    few = Range(name="x", low=2, high=5, kind=int, scale="log")
    assert sorted(few.grid()) == sorted(theirs.Int("x", 2, 5, sampling="log").values)
