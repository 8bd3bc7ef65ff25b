"""Repetitions by numbers and times: no gap is bridged, packages are put together."""

import random
import time
from typing import Any

import pytest

from beam_jobs.core.reasons import Reason
from beam_jobs.core.series import assemble
from tests.beam_jobs.core.test_stacks import image, made_of

PLACES = 20


def repetitions(times, number, lost=(), **elements):
    """Images named by their repetition; `number` and the elements are of repetition and place."""
    headers = [
        image(f"{t}-{k:02}", 3.0 * k, number(t, k), **{n: v(t, k) for n, v in elements.items()})
        for t in range(times)
        for k in range(PLACES)
    ]
    return [header for k, header in enumerate(headers) if k not in lost]


def by_repetition(t, k):
    return 1 + t * PLACES + k


@pytest.mark.parametrize(("times", "first"), [(3, 10), (5, 30), (4, 25)])
def test_numbers_that_are_lost_between_two_repetitions_are_not_bridged(times, first):
    lost = range(first, first + PLACES)
    stacks, rejections = assemble(repetitions(times, by_repetition, lost))
    broken = {k // PLACES for k in lost}
    assert made_of(stacks) == [(str(t), PLACES) for t in range(times) if t not in broken]
    assert {rejection.reason for rejection in rejections} == {Reason.INCOMPLETE_REPETITION}


@pytest.mark.parametrize("timed", [False, True])
def test_neither_numbers_slice_by_slice_nor_times_bridge_what_is_lost(timed):
    """Of the lower half the first repetition is lost, of the upper half the second."""
    headers = repetitions(
        3,
        lambda t, k: None if timed else 1 + 3 * k + t,
        [*range(10), *range(PLACES + 10, 2 * PLACES)],
        acquisition_time=lambda t, k: f"1200{t:02}.{5 * k:02}" if timed else "",
    )
    stacks, rejections = assemble(headers)
    assert all(len(names) == 1 for names, _ in made_of(stacks))
    assert rejections


@pytest.mark.parametrize("packages", [2, 3])
@pytest.mark.parametrize("lost", [[], [7], [0, 41, 42]], ids=str)
@pytest.mark.parametrize("told", [lambda t: t, lambda t: 2 * t], ids=["in turn", "with gaps"])
def test_packages_of_repetitions_are_put_together_by_acquisition_numbers(packages, lost, told):
    """Numbers count slices only, each package of each repetition has its own AcquisitionNumber."""
    headers = repetitions(
        4,
        lambda t, k: k + 1,
        lost,
        acquisition_number=lambda t, k: 1 + told(t) * packages + k % packages,
    )
    stacks, rejections = assemble(headers)
    broken = {k // PLACES for k in lost}
    assert made_of(stacks) == [(str(t), PLACES) for t in range(4) if t not in broken]
    assert {r.reason for r in rejections} == ({Reason.INCOMPLETE_REPETITION} if lost else set())


def test_many_elements_that_separate_nothing_cost_seconds_at_most():
    rng = random.Random(0)
    choices: dict[str, list[Any]] = {
        "sequence_name": ["", "a", "b"],
        "acquisition_number": [None, 1, 2, 3],
        "acquisition_time": ["100000", "110000", "120000"],
        "trigger_time": [None, 1.0, 2.0, 3.0],
        "temporal_position": [None, 1, 2, 3],
        "inversion_time": [None, 1.0, 2.0, 3.0],
        "flip_angle": [None, 1.0, 2.0, 3.0],
        "repetition_time": [None, 1.0, 2.0, 3.0],
        "gradient_number": [None, 1, 2, 3],
        "image_type": [(), ("A",), ("B",)],
        "volume_index": [(), (1,), (2,)],
        "diffusion_direction": [(), (1.0,), (2.0,)],
    }
    headers = [
        image(
            f"{k}", 3.0 * (k % 20), None, pixel_length=None,
            **{name: rng.choice(values) for name, values in choices.items()},
        )
        for k in range(10_000)
    ]  # fmt: skip
    start = time.perf_counter()
    stacks, _ = assemble(headers)
    assert not stacks
    assert time.perf_counter() - start < 20  # more than 20 s when every grouping was made
