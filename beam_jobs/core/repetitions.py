"""The repetitions of one stack: dynamics, directions, averages, images of several kinds.

Every place of the stack is imaged several times, and something in the headers says which images
belong together. What that is differs from maker to maker: an element that is the same for all
slices of a repetition, two such elements together, or the order of numbers and times. A partition
counts only where it gives whole repetitions: every place once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from beam_jobs.core.dicom.duplicates import (
    Collapsed,
    Fingerprint,
    Fingerprints,
    collapse,
    description_of,
    name_of,
)
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.reasons import Reason

# An image and the number of its place along the normal, from 0.
Placed = tuple[SliceHeader, int]
Part = list[Placed]
# Images that no series is made of, why, and the detail.
Left = tuple[Sequence[SliceHeader], Reason, str]

# Elements that are the same for all slices of a repetition, by some maker. A file of several images
# is a repetition where it holds one volume. Times come last: of slices acquired one after another
# they say little.
_ELEMENTS = (
    "temporal_position",
    "acquisition_number",
    "volume_index",
    "path",
    "gradient_number",
    "diffusion_direction",
    "image_type",
    "sequence_name",
    "inversion_time",
    "flip_angle",
    "repetition_time",
    "trigger_time",
    "acquisition_time",
)
_MOST_TOGETHER = 3
# So many images over one a place have to fit a pattern of numbers before it is believed.
_EVIDENCE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repetitions:
    """What the images of one stack are.

    Attributes:
      places: how many places the whole ones have.
      whole: repetitions that hold every place once, the earliest first.
      incomplete: those that lack some.
      mixed: images that nothing separates, several at one place.
    """

    places: int
    whole: list[Part] = dataclasses.field(default_factory=list)
    incomplete: list[Part] = dataclasses.field(default_factory=list)
    mixed: list[Part] = dataclasses.field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is left over."""
        return not self.incomplete and not self.mixed

    @property
    def images(self) -> int:
        """How many images are in whole repetitions."""
        return sum(map(len, self.whole))


def repetitions_of(placed: Part) -> tuple[Repetitions, list[Left]]:
    """The repetitions of a stack, copies collapsed first, and what is left over.

    Args:
      placed: the stack's images, sorted.

    Images of one name (SOPInstanceUID) are copies where their pixels are equal. Of others that is
    less sure: two black images of two repetitions are equal, too. So these are compared only where
    repetitions cannot be told apart with them, and whole repetitions with each other; black ones
    only where hardly any place is imaged twice.
    """
    place_of = {(header.path, header.frame): place for header, place in placed}
    if len(set(place_of.values())) == len(placed):
        return Repetitions(places=len(placed), whole=[placed]), []

    def with_places(headers: Sequence[SliceHeader]) -> Part:
        return [(header, place_of[header.path, header.frame]) for header in headers]

    prints = Fingerprints()
    keys = [(place, name_of(header)) for header, place in placed]
    named = collapse([header for header, _ in placed], keys, prints, named=True)
    left = left_of_copies(named)
    images = with_places(named.kept)
    found = separate(images)
    if not found.complete:
        alike = [(place, description_of(header)) for header, place in images]
        extra = len(images) - len({place for _, place in images})
        fewer = collapse(named.kept, alike, prints, blank=3 * extra < len(images))
        again = separate(with_places(fewer.kept))
        if fewer.copies and (again.complete or again.images >= found.images):
            found = again
            left += left_of_copies(fewer)
    whole, repeated = _without_copies(found.whole, prints)
    if repeated:
        found = dataclasses.replace(found, whole=whole)
        left += left_of_copies(Collapsed(kept=(), copies=_images_of(repeated)))
    repetitions = len(found.whole) + len(found.incomplete)
    if found.incomplete:
        what = f"lack some of the {found.places} places of the others"
        if not found.whole:
            what = f"hold none of them all {found.places} places"
        detail = f"{len(found.incomplete)} of {repetitions} repetitions {what}"
        left.append((_images_of(found.incomplete), Reason.INCOMPLETE_REPETITION, detail))
    if found.mixed:
        images_left = _images_of(found.mixed)
        detail = f"{len(images_left)} images, several at one place that nothing else tells apart"
        if named.contradicted:
            detail = (
                f"{named.contradicted} images have the SOPInstanceUID (0008,0018) and the place of "
                "another, and other pixels"
            )
        left.append((images_left, Reason.CONFLICTING_DUPLICATES, detail))
    return found, left


def _images_of(parts: Iterable[Part]) -> tuple[SliceHeader, ...]:
    return tuple(header for part in parts for header, _ in part)


def left_of_copies(found: Collapsed) -> list[Left]:
    """What collapsing sets apart, and why."""
    left: list[Left] = []
    if found.copies:
        detail = "same place and same pixels as another image of the series"
        left.append((found.copies, Reason.EXACT_DUPLICATE, detail))
    for image, error in found.damaged:
        left.append(([image], error.reason, f"{error}; another copy was used"))
    return left


def separate(images: Part) -> Repetitions:
    """The repetitions of a stack.

    Args:
      images: with their places; every place from 0 to the highest is taken.

    Returns:
      The first partition that leaves nothing over; else that with most images in whole repetitions;
      else, where nothing separates the images, all of them as `mixed`.
    """
    places = len({place for _, place in images})
    if places == len(images):
        return Repetitions(places=places, whole=[images])
    best = Repetitions(places=places, mixed=[images])
    if places < 2:
        return best
    for parts in _partitions(images, places):
        found = _judged(parts, places)
        if found.complete:
            return found
        # One without whole repetitions says more than none at all, but less than any with.
        if (found.images, len(found.incomplete)) > (best.images, len(best.incomplete)):
            best = found
    return best


def _without_copies(
    whole: Sequence[Part], fingerprints: Fingerprints
) -> tuple[list[Part], list[Part]]:
    """Repetitions, and those that hold at every place what an earlier one holds there.

    Pixels are read only as far as repetitions are alike.
    """
    at = [{place: header for header, place in part} for part in whole]
    middle = (
        max(map(len, whole), default=0) // 2
    )  # at the ends of a stack images are alike for being black
    alike = [list(range(len(whole)))]
    for place in sorted({place for part in at for place in part}, key=lambda p: abs(p - middle)):
        alike = list(_apart(alike, [part.get(place) for part in at], fingerprints))
    copies = {index for group in alike for index in group[1:]}
    return (
        [part for index, part in enumerate(whole) if index not in copies],
        [part for index, part in enumerate(whole) if index in copies],
    )


def _apart(
    alike: Sequence[Sequence[int]], images: Sequence[SliceHeader | None], fingerprints: Fingerprints
) -> Iterator[list[int]]:
    """Of each group of indices those whose images are the same, two at least."""
    for group in alike:
        described: dict[Hashable, dict[int, SliceHeader]] = defaultdict(dict)
        for index in group:
            image = images[index]
            if image is not None:
                described[description_of(image)][index] = image
        for found in described.values():
            if len(found) > 1:
                fingerprints.read(found.values())
                same: dict[Hashable, list[int]] = defaultdict(list)
                for index, image in found.items():
                    seen = fingerprints.of(image)
                    same[seen if isinstance(seen, Fingerprint) else index].append(index)
                yield from (indices for indices in same.values() if len(indices) > 1)


def _partitions(images: Part, places: int) -> Iterator[list[Part]]:
    """Ways to tell repetitions apart, the surest first."""
    beside = _beside(images)
    if len(set(beside)) > 1:
        yield _grouped(images, beside)
    varying = [name for name in _ELEMENTS if len({getattr(h, name) for h, _ in images}) > 1]
    for together in range(1, _MOST_TOGETHER + 1):
        for names in itertools.combinations(varying, together):
            keys = [tuple(getattr(header, name) for name in names) for header, _ in images]
            parts = _grouped(images, keys)
            yield parts
            # What parts too finely by itself does so together with others.
            if together == 1 and len(parts) * places > 2 * len(images):
                varying = [name for name in varying if name != names[0]]
    for value in (_number, _acquisition_time, _trigger_time):
        yield from _by_rank(images, places, value)
    yield from _by_numbering(images, places)


def _beside(images: Part) -> list[tuple[int, ...]]:
    """How far beside the first image each lies within its plane, whole mm: stacks side by side."""
    axes = np.array(images[0][0].orientation).reshape(2, 3)
    positions = np.array([header.position for header, _ in images])
    offsets = np.rint((positions - positions[0]) @ axes.T).astype(int)
    return [tuple(offset) for offset in offsets.tolist()]


def _judged(parts: list[Part], places: int) -> Repetitions:
    """Which parts of a partition are whole.

    Whole is what most repetitions hold, if that is an unbroken run of places (a survey of the whole
    body among head scans does not make these incomplete; every second place, twice, is no volume
    twice); else it is every place.
    """
    held = [frozenset(place for _, place in part) for part in parts]
    clean = [len(here) == len(part) for here, part in zip(held, parts, strict=True)]
    counts = Counter(here for here, once in zip(held, clean, strict=True) if once)
    required = frozenset(range(places))
    if counts:
        commonest, count = counts.most_common(1)[0]
        unbroken = max(commonest) - min(commonest) + 1 == len(commonest)
        if count > len(parts) / 2 and len(commonest) > 1 and unbroken:
            required = commonest
    whole: list[Part] = []
    incomplete: list[Part] = []
    mixed: list[Part] = []
    for part, here, once in zip(parts, held, clean, strict=True):
        (mixed if not once else whole if here >= required else incomplete).append(part)
    if not whole and (mixed or 2 * sum(map(len, parts)) < places * len(parts)):
        # Crumbs: what parts the images so finely is no repetition.
        return Repetitions(places=places, mixed=[list(itertools.chain(*parts))])
    return Repetitions(
        places=len(required),
        whole=sorted(whole, key=lambda part: start_of([header for header, _ in part])),
        incomplete=incomplete,
        mixed=mixed,
    )


def start_of(headers: Sequence[SliceHeader]) -> tuple[Any, ...]:
    """When a volume began, to sort by: its time, else whatever counts, else where it is stored."""
    numbers = [header.instance_number for header in headers if header.instance_number is not None]
    return (
        min(header.acquisition_time for header in headers),
        min(header.temporal_position or 0 for header in headers),
        min(numbers, default=0),
        min(header.acquisition_number or 0 for header in headers),
        min(header.trigger_time or 0.0 for header in headers),
        min(header.volume_index for header in headers),
        min((header.path, header.frame) for header in headers),
    )


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
    images: Part, places: int, value: Callable[[SliceHeader], float | None]
) -> Iterator[list[Part]]:
    """The first image of every place, the second, and so on, by a number or a time.

    Only where all places have equally many, and the values rise from repetition to repetition or
    from place to place: in any other order images of two repetitions would be taken for one.
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
    ranks = list(zip(*at, strict=True))
    by_repetition = _rising([[value for value, _ in rank] for rank in ranks])
    by_place = _rising([[value] for here in at for value, _ in here])
    if by_repetition or by_place:
        yield [[placed for _, placed in rank] for rank in ranks]


def _rising(groups: Sequence[Sequence[float]]) -> bool:
    """Whether all values of a group lie below all values of the next."""
    return all(max(one) < min(other) for one, other in itertools.pairwise(groups))


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
                yield _grouped(images, [number // places for number, _ in since])
        blocks = {place: number // most for number, place in since}
        if len(set(blocks.values())) == places and all(blocks[p] == n // most for n, p in since):
            yield _grouped(images, [number % most for number, _ in since])


def _grouped(images: Part, keys: Sequence[Hashable]) -> list[Part]:
    parts: dict[Hashable, Part] = defaultdict(list)
    for placed, key in zip(images, keys, strict=True):
        parts[key].append(placed)
    return list(parts.values())
