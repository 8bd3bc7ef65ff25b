"""Repetitions of one stack told apart by how numbers and times run, where no element names them."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.geometry import Array

# An image and the number of its place along the normal, from 0.
Placed = tuple[SliceHeader, int]
Part = list[Placed]

# So many images over one a place have to fit a pattern of numbers before it is believed.
_EVIDENCE = 4
# Packages of one volume, at most.
_MOST_PACKAGES = 8
# By what times of one volume's slices may pause, and those of slices one after another differ.
_PAUSE, _UNSTEADY = 3.0, 1.25


def by_numbers(images: Part, places: int) -> Iterator[list[Part]]:
    """Partitions, the surest first.

    Args:
      images: with their places; every place from 0 to the highest is taken.
      places: how many there are.
    """
    yield from _by_rank(images, places, _number, pause=1.0, unsteady=1.0)
    for value in (_acquisition_time, _trigger_time):
        yield from _by_rank(images, places, value, pause=_PAUSE, unsteady=_UNSTEADY)
    yield from _by_packages(images)
    yield from _by_numbering(images, places)


def grouped(images: Part, keys: Sequence[Hashable]) -> list[Part]:
    """Images of equal keys."""
    parts: dict[Hashable, Part] = defaultdict(list)
    for placed, key in zip(images, keys, strict=True):
        parts[key].append(placed)
    return list(parts.values())


def _number(header: SliceHeader) -> float | None:
    return header.instance_number


def _trigger_time(header: SliceHeader) -> float | None:
    return header.trigger_time


def _acquisition_time(header: SliceHeader) -> float | None:
    """Seconds since midnight."""
    text = header.acquisition_time
    try:
        return int(text[:2]) * 3600 + int(text[2:4]) * 60 + float(text[4:])
    except ValueError:
        return None


def _by_rank(
    images: Part,
    places: int,
    value: Callable[[SliceHeader], float | None],
    *,
    pause: float,
    unsteady: float,
) -> Iterator[list[Part]]:
    """The first image of every place, the second, and so on, by a number or a time.

    Only where all places have equally many, and the values rise in regular steps from repetition to
    repetition or from place to place: in any other order, or over a gap where files are missing,
    images of two repetitions would be taken for one.

    Args:
      images: with their places.
      places: how many there are.
      value: of an image.
      pause: by what factor a step within a repetition may exceed the usual one.
      unsteady: the same for steps from place to place.
    """
    at: list[list[tuple[float, Placed]]] = [[] for _ in range(places)]
    for header, place in images:
        found = value(header)
        if found is None:
            return
        at[place].append((found, (header, place)))
    if len({len(here) for here in at}) > 1:
        return
    for here in at:
        here.sort(key=lambda item: item[0])
    at.sort(key=lambda here: here[0][0])
    values = np.array([[value for value, _ in here] for here in at])
    by_repetition = _rising(values.T, pause)
    by_place = bool((np.diff(values) > 0).all()) and _rising(values, pause)
    by_place = by_place and _regular(np.diff(values[:, 0]), unsteady)
    if by_repetition or by_place:
        yield [[placed for _, placed in rank] for rank in zip(*at, strict=True)]


def _rising(groups: Array, pause: float) -> bool:
    """Whether values rise from group to group and, in one order and regular steps, within each.

    Args:
      groups: (groups, values).
      pause: by what factor a step may exceed the usual one.
    """
    steps = np.diff(groups, axis=1)
    apart = (groups[:-1, -1] < groups[1:, 0]).all() and (steps >= 0).all()
    return bool(apart) and _regular(steps, pause)


def _regular(steps: Array, factor: float) -> bool:
    steps = steps[steps > 0]
    return not steps.size or bool(steps.max() <= factor * np.median(steps))


def _by_packages(images: Part) -> Iterator[list[Part]]:
    """By AcquisitionNumbers that count packages: so many in turn hold every place once.

    Files may be missing, but a package is taken for the first of a repetition only where numbers
    begin with it, or skip some before it.
    """
    numbers = [-1 if h.acquisition_number is None else h.acquisition_number for h, _ in images]
    known = sorted(set(numbers))
    low = known[0]
    if low < 0:
        return
    first = {low: low}
    for last, number in itertools.pairwise(known):
        first[number] = first[last] if number == last + 1 else number
    ways = [first]
    if low <= 1:
        for packages in range(2, _MOST_PACKAGES + 1):
            ways.append({n: n - (n - low) % packages for n in known})
    for first in ways:
        package_at: dict[int, int] = {}
        agree = all(
            package_at.setdefault(place, number - first[number]) == number - first[number]
            for (_, place), number in zip(images, numbers, strict=True)
        )
        if agree and len(set(first.values())) > 1 and len(set(package_at.values())) > 1:
            yield grouped(images, [first[number] for number in numbers])
            return


def _by_numbering(images: Part, places: int) -> Iterator[list[Part]]:
    """By InstanceNumbers with gaps, where files are missing: their values, not their ranks.

    Repetition by repetition, a number's place in its repetition tells the slice; slice by slice,
    its place among the slice's images tells the repetition.
    """
    numbers = [header.instance_number for header, _ in images]
    if None in numbers or len(set(numbers)) != len(numbers):
        return
    if len(images) < places + min(places, _EVIDENCE):  # any few images fit some pattern
        return
    low, high = min(n for n in numbers if n is not None), max(n for n in numbers if n is not None)
    most = max(Counter(place for _, place in images).values())
    for start in (1, low) if low > 1 else (low,):
        since = [((header.instance_number or 0) - start, place) for header, place in images]
        slots = {place: number % places for number, place in since}
        if len(set(slots.values())) == places and all(slots[p] == n % places for n, p in since):
            # Where a repetition begins is certain where its slices follow each other, where the
            # first image of all is there, or where numbers end with a whole repetition.
            order = [slots[place] for place in range(places)]
            if order in (sorted(order), sorted(order, reverse=True)) or (
                start == 1 and (low == 1 or (low <= places and high % places == 0))
            ):
                yield grouped(images, [number // places for number, _ in since])
        blocks = {place: number // most for number, place in since}
        if len(set(blocks.values())) == places and all(blocks[p] == n // most for n, p in since):
            yield grouped(images, [number % most for number, _ in since])
