"""How fast a run goes, by its first steps."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf

from trainer.training.environment import Pace
from trainer.training.epoch import FirstSteps


def test_a_runs_pace_is_that_of_its_first_steps_but_the_one_that_makes_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def infer(volume: Any) -> tf.Tensor:
        clock[0] += 3.0
        return volume

    told: list[Pace] = []
    stepped = FirstSteps(
        members=5, epochs=10, candidates=4, steps=20, predictions=2, infer=infer, tell=told.append
    )
    for seconds in (60.0, 9.0, 11.0, 10.0, 99.0):
        stepped(seconds, {"volume": tf.zeros(1)})
    assert told == [Pace(epoch_seconds=206.0, end_seconds=24.0, members=5, epochs=10)]
    assert told[0].seconds == 5 * (10 * 206 + 24)
