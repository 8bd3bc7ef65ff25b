"""Vectors are numbered alike within a tolerance, whatever they are."""

import math
import random

import pytest

from beam_jobs.core.dicom.near import Near


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3, 6])
def test_what_is_within_the_tolerance_has_one_number_and_nothing_else(dimensions):
    rng = random.Random(dimensions)
    near = Near(1e-3)
    for number in range(50 if dimensions else 1):
        vector = [0.01 * number + rng.uniform(-1e-3, 1e-3) for _ in range(dimensions)]
        assert near.number(vector) == number
        assert near.number([x + rng.uniform(-0.9e-3, 0.9e-3) for x in vector]) == number


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e308])
def test_what_is_no_length_is_told_apart_from_lengths_only(value):
    near = Near(2e-3)
    assert near.number((value, 1.0)) == -1
    assert near.number((1.0, 1.0)) == 0
    assert near.number((1.0, value)) == -1
