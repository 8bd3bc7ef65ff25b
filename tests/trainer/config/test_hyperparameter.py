"""Values of a choice and of a range: drawn, stepped, and found again when digits were lost."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from trainer.config.hyperparameter import Choice, Range

RANGES = [
    Range(name="x", low=0.0, high=0.6, step=0.1),
    Range(name="x", low=1 / 3, high=2.0),
    Range(name="x", low=1e-5, high=1e-1, scale="log"),
    Range(name="x", low=1e-5, high=1e-1, scale="reverse_log"),
    Range(name="x", low=1e-4, high=1e-1, step=10, scale="log"),
    Range(name="x", low=1, high=8, step=2, scale="reverse_log"),
    Range(name="x", low=-3, high=4, kind=int),
    Range(name="x", low=8, high=64, step=24, kind=int),
    Range(name="x", low=2, high=200, kind=int, scale="log"),
    Range(name="x", low=2, high=64, step=2, kind=int, scale="log"),
]


@pytest.mark.parametrize("one", RANGES)
def test_a_draw_survives_single_precision_and_json_to_the_digit(one):
    rng = random.Random(2)
    for share in (0.0, 1.0, *(rng.random() for _ in range(200))):
        value = one.at(share)
        assert one.low <= value <= one.high
        assert type(value) is one.kind
        assert one.has(value)
        assert one.exact(float(np.float32(value))) == value
        assert json.loads(json.dumps(value)) == value
    assert one.at(0.0) == one.first


@pytest.mark.parametrize("one", RANGES)
def test_the_ends_are_drawn_and_shares_rise_with_the_values(one):
    drawn = {one.at(place / 5000) for place in range(5001)}
    assert min(drawn) == pytest.approx(one.low)
    if one.step is None:
        assert max(drawn) == one.high
    if not math.isinf(one.size):
        assert drawn == set(one.every())
        assert len(drawn) == one.size
    shares = [one.share(value) for value in sorted(drawn)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0)
    assert shares[-1] <= 1


def test_a_log_scale_draws_each_decade_alike_often():
    rng = random.Random(3)
    one = Range(name="x", low=1e-5, high=1e-1, scale="log")
    decades = [math.floor(math.log10(float(one.at(rng.random())))) for _ in range(4000)]
    for decade in (-5, -4, -3, -2):
        assert decades.count(decade) == pytest.approx(1000, abs=120)


def test_true_is_not_one_and_one_is_not_one_point_nought():
    assert Choice(name="x", values=(False, True)).has(True)
    assert not Choice(name="x", values=(False, True)).has(1)
    assert not Choice(name="x", values=(1, 2)).has(True)
    assert not Range(name="x", low=0, high=3, kind=int).has(True)
    assert not Range(name="x", low=0, high=3, kind=int).has(1.0)
    assert not Range(name="x", low=0, high=3).has(1)
    assert not Range(name="x", low=0, high=3).has(3.5)
    with pytest.raises(UsageError, match="x: True is not in the space"):
        Choice(name="x", values=("a", "b")).exact(True)
