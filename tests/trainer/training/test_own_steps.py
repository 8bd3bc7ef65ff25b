"""Steps of a user's own network: what is refused before the first, and what counts in each."""

from __future__ import annotations

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from tests.trainer.networks.own_networks import HERE
from tests.trainer.training.test_step import _batch, _trainee


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rounded", "no gradient reaches its weights"),
        ("not_a_number", "answers noise with nan"),
        ("mixing", r"gives \(8, 1\) for 2 volumes: \(2, 1\) is needed"),
        ("failing", r"fails on a batch of 2: ValueError: no such patient \(own_networks.py, line"),
    ],
)
@pytest.mark.parametrize("ema", [None, 0.9])
def test_what_no_step_could_train_is_told_before_the_first(
    name: str, said: str, ema: float | None
) -> None:
    with pytest.raises(UsageError, match=rf"^--model {HERE}:{name}: {said}") as raised:
        _trainee(network={"name": f"{HERE}:{name}"}, optimizer={"ema": ema})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_network_of_ones_own_learns_in_every_precision(precision: str) -> None:
    trainee = _trainee(
        network={"name": f"{HERE}:nested"},
        precision=precision,
        optimizer={"learning_rate": 0.01, "clip_norm": 1.0},
    )
    losses = [float(trainee.step(_batch(0), number, 4)) for number in range(15)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_trying_a_network_out_draws_and_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"name": f"{HERE}:Subclassed", "dropout": 0.5}
    tried = _trainee(network=own).state()
    monkeypatch.setattr("trainer.training.step.require_learnable", lambda *_: None)
    untried = _trainee(network=own).state()
    assert all(np.array_equal(a, b) for a, b in zip(tried, untried, strict=True))
