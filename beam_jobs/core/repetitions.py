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
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.dicom.duplicates import (
    Collapsed,
    Fingerprint,
    Fingerprints,
    collapse,
    description_of,
)
from beam_jobs.core.dicom.numbering import Part, by_numbers, grouped
from beam_jobs.core.dicom.slice_header import SliceHeader
from beam_jobs.core.geometry import Array
from beam_jobs.core.reasons import Reason
from beam_jobs.core.stacks import ladder_of, places_of

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
# One place in so many may be imaged twice before a series is taken for a confusion.
_REDONE = 10


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


def repetitions_of(
    placed: Part, prints: Fingerprints, contradicted: int = 0
) -> tuple[Repetitions, list[Left]]:
    """The repetitions of a stack, and what is left over.

    Args:
      placed: the stack's images, sorted; of one name (SOPInstanceUID) there are no copies left.
      prints: where pixels are read.
      contradicted: how many images have the name of another, and other pixels.

    Equal images of other names may be copies, or two black images of two repetitions. So these are
    compared only where repetitions cannot be told apart with them, and whole repetitions with each
    other; black ones only where hardly any place is imaged twice.
    """
    found = separate(placed)
    if len(found.whole) == 1 and found.complete:
        return found, []
    left: list[Left] = []
    if not found.complete:
        fewer = _without_equal_images(placed, found, prints)
        if fewer.copies:
            again = separate(_kept(placed, fewer.kept))
            if again.complete or again.images >= found.images:
                found = again
                left += left_of_copies(fewer)
    if found.mixed and not found.whole and not found.incomplete:
        found, dropped = _without_redone(found)
        left += dropped
    whole, repeated = _without_copies(found.whole, prints)
    if repeated:
        found = dataclasses.replace(found, whole=whole)
        left += left_of_copies(Collapsed(kept=(), copies=_images_of(repeated)))
    left += left_of_incomplete(found)
    if found.mixed:
        images_left = _images_of(found.mixed)
        detail = f"{len(images_left)} images, several at one place that nothing else tells apart"
        if contradicted:
            detail = (
                f"{contradicted} images have the SOPInstanceUID (0008,0018) and the place of "
                "another, and other pixels"
            )
        left.append((images_left, Reason.CONFLICTING_DUPLICATES, detail))
    return found, left


def _kept(placed: Part, headers: Iterable[SliceHeader]) -> Part:
    kept = {header.key for header in headers}
    return [image for image in placed if image[0].key in kept]


def _without_equal_images(placed: Part, found: Repetitions, prints: Fingerprints) -> Collapsed:
    """The images less their copies of other names."""
    headers = [header for header, _ in placed]
    # Whatever else a copy's header says: but only where the images are lost otherwise.
    keys: list[Hashable] = [
        place if found.mixed else (place, description_of(header)) for header, place in placed
    ]
    extra = len(placed) - len({place for _, place in placed})
    return collapse(headers, keys, prints, blank=3 * extra < len(placed))


def _without_redone(found: Repetitions) -> tuple[Repetitions, list[Left]]:
    """One volume where hardly any place is imaged twice: a slice that was acquired again.

    The later image is taken where times tell; else none, if that leaves no larger gap than missing
    slices may.
    """
    ((*images,),) = found.mixed
    at: dict[int, Part] = defaultdict(list)
    for header, place in images:
        at[place].append((header, place))
    several = [here for here in at.values() if len(here) > 1]
    if _REDONE * len(several) > found.places:
        return found, []
    dropped: Part = []
    for here in several:
        here.sort(key=lambda image: image[0].acquisition_time)
        times = [header.acquisition_time for header, _ in here]
        dropped += here[:-1] if times[0] and times[-1] > times[-2] else here
    detail = "another image was acquired later at the same place, or nothing tells which was"
    gone = {header.key for header, _ in dropped}
    whole = [image for image in images if image[0].key not in gone]
    return (
        Repetitions(places=found.places, whole=[whole]),
        [(_images_of([dropped]), Reason.CONFLICTING_DUPLICATES, detail)],
    )


def left_of_incomplete(found: Repetitions) -> list[Left]:
    """The repetitions that are not whole, and why not."""
    if not found.incomplete:
        return []
    what = f"lack some of the {found.places} places of the others"
    if not found.whole:
        what = f"hold none of them all {found.places} places"
    repetitions = len(found.whole) + len(found.incomplete)
    detail = f"{len(found.incomplete)} of {repetitions} repetitions {what}"
    return [(_images_of(found.incomplete), Reason.INCOMPLETE_REPETITION, detail)]


def whole_of(volumes: Sequence[Sequence[SliceHeader]], heights: Sequence[Array]) -> Repetitions:
    """Which volumes are whole, of repetitions that are told apart for sure.

    Args:
      volumes: no place twice.
      heights: of the images of each, mm along the normal.
    """
    everywhere = np.concatenate(heights)
    spacing = volumes[0][0].pixel_spacing
    ladder = ladder_of(everywhere, spacing)
    steps = [each.step for each in (ladder_of(here, spacing) for here in heights) if each]
    parts = [[(header, 0) for header in volume] for volume in volumes]
    if ladder and steps and float(np.median(steps)) < 1.5 * ladder.step:
        places = iter(places_of(everywhere, spacing).tolist())
        parts = [[(header, next(places)) for header, _ in part] for part in parts]
        found = _judged(parts, ladder.places)
        return dataclasses.replace(found, incomplete=found.incomplete + found.mixed, mixed=[])
    # Motion correction moves each to places of its own: their number is all to go by.
    counts = Counter(map(len, parts))
    required = max(counts, key=lambda count: (counts[count], count))
    return Repetitions(
        places=required,
        whole=[part for part in parts if len(part) >= required],
        incomplete=[part for part in parts if len(part) < required],
    )


def _images_of(parts: Iterable[Part]) -> tuple[SliceHeader, ...]:
    return tuple(header for part in parts for header, _ in part)


def left_of_copies(found: Collapsed) -> list[Left]:
    """What collapsing sets apart, and why."""
    left: list[Left] = []
    if found.copies:
        detail = "same place and same pixels as another image of the series"
        left.append((found.copies, Reason.EXACT_DUPLICATE, detail))
    if found.lossy:
        detail = "a lossily compressed copy of another image of the series"
        left.append((found.lossy, Reason.EXACT_DUPLICATE, detail))
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
    # At the ends of a stack images are alike for being black.
    middle = max(map(len, whole), default=0) // 2
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
        yield grouped(images, beside)
    codes = _codes(images)
    fine = set()
    for name, values in codes.items():
        parts = grouped(images, values.tolist())
        yield parts
        # What parts too finely by itself does so together with others.
        if len(parts) * places > 2 * len(images):
            fine.add(name)
    at = np.array([place for _, place in images])
    several = [values for name, values in codes.items() if name not in fine]
    for together in range(2, _MOST_TOGETHER + 1):
        for chosen in itertools.combinations(several, together):
            keys = np.zeros(len(images), dtype=np.int64)
            for values in chosen:
                keys = keys * (values.max() + 1) + values
            known, keys = np.unique(keys, return_inverse=True)
            # What `_judged` refuses of thousands of images is seen here at a tenth of the cost.
            if len(known) * places <= 2 * len(images):
                once = np.count_nonzero(np.bincount(keys * places + at))
                if 2 * once >= len(images):
                    yield grouped(images, keys.tolist())
    yield from by_numbers(images, places)


def _codes(images: Part) -> dict[str, npt.NDArray[np.int64]]:
    """The elements that vary, each with a number for each of its values."""
    codes = {}
    for name in _ELEMENTS:
        known: dict[Hashable, int] = {}
        values = [known.setdefault(getattr(header, name), len(known)) for header, _ in images]
        if len(known) > 1:
            codes[name] = np.array(values, dtype=np.int64)
    return codes


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
        min(header.key for header in headers),
    )
