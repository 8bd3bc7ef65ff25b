"""One series UID is not one volume: the true stacks among slice headers."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.dicom.near import Near
from beam_jobs.core.geometry import Array

_LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT"})
_DERIVED_TYPES = frozenset(
    {"PROJECTION IMAGE", "MIP", "MINIP", "SCREEN SAVE", "REFORMATTED", "CSA MPR", "MOSAIC MPR"}
)


# Slices nearer to each other than this share of the median step claim the same place.
SAME_PLACE = 0.02
# Positions of a part's slices may lie off its ladder by this share of a step (motion correction).
_OFF_RUNG = 0.2
# A ladder with more rungs missing is none: any few slices would make one.
_FILLED = 0.7

# Elements that differ between repetitions of one volume.
_REPETITIONS = ("temporal_position", "volume_index", "gradient_number", "diffusion_direction")
# Elements that differ between acquisitions, or between images of several kinds.
_KINDS = (
    "series_number",
    "image_type",
    "echo_number",
    "contrast_agent",
    "inversion_time",
    "flip_angle",
    "repetition_time",
    "series_description",
    "protocol_name",
)
# Interleaved packages of one volume have these of their own, too.
_UNSURE = ("acquisition_number",)
# Of times and angles, by what ratio (natural logarithm) they differ at least; gating varies TR.
_TIMES = {"inversion_time": 0.05, "flip_angle": 0.05, "repetition_time": 0.2}


def split_stacks(headers: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """The true stacks among the headers of one series UID, by what never differs within a volume.

    What may also be a sloppy header is not looked at here, see `parts_of`.
    """
    stacks: dict[tuple[object, ...], list[SliceHeader]] = defaultdict(list)
    # 2e-3 is a tenth of a degree; a spacing that differs less than 1e-3 mm moves no pixel of a
    # row by one; echoes lie further apart than 0.02 ms. Rounding stays below all of these.
    orientations, spacings, echoes = Near(2e-3), Near(1e-3), Near(0.02)
    for header in headers:
        key = (
            header.rows,
            header.columns,
            spacings.number(header.pixel_spacing),
            orientations.number(header.orientation) if len(header.orientation) == 6 else -1,
            bool(header.position),
            -1 if header.echo_time is None else echoes.number((header.echo_time,)),
            _complex_component(header.complex_component, header.image_type),
            header.b_value or 0.0,  # images without diffusion weighting say 0 or nothing
            header.stack_id,
            # A mosaic is a whole volume; where the scanner follows the head, each lies elsewhere.
            header.sop_uid if header.tiles else "",
            kind_of(header),
        )
        stacks[key].append(header)
    return list(stacks.values())


def places_of(heights: Array, pixel_spacing: Sequence[float]) -> npt.NDArray[np.int64]:
    """The numbers of the images' places along the normal, from 0.

    Args:
      heights: (images,) mm along the normal.
      pixel_spacing: mm, for what is nearer than slices ever are.
    """
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    # Positions of repetitions differ by rounding; no slices are so much nearer than pixels.
    apart = steps[steps > max(1e-3, SAME_PLACE * min(pixel_spacing, default=0.0))]
    same_place = max(SAME_PLACE * float(np.median(apart)), 1e-4) if apart.size else 1e-4
    places = np.zeros(len(heights), dtype=np.int64)
    places[order[1:]] = np.cumsum(steps > same_place)
    return places


class Ladder(NamedTuple):
    """Evenly spaced places, some of which may be missing.

    Attributes:
      places: how many there are.
      step: mm.
      complete: whether none is missing.
    """

    places: int
    step: float
    complete: bool


def ladder_of(heights: Array, pixel_spacing: Sequence[float]) -> Ladder | None:
    """The ladder that images lie on, None where they lie on none."""
    places = places_of(heights, pixel_spacing)
    _, first = np.unique(places, return_index=True)
    steps = np.diff(heights[first])
    if not steps.size:
        return None
    step = float(np.median(steps))
    rungs = np.maximum(np.rint(steps / step), 1)
    if np.abs(steps / step - rungs).max() > _OFF_RUNG or steps.size < _FILLED * rungs.sum():
        return None
    return Ladder(steps.size + 1, step, bool(rungs.max() == 1))


def parts_of(headers: Sequence[SliceHeader], heights: Array) -> tuple[list[list[int]], bool] | None:
    """The indices of images that are no one volume, by the first element that tells them apart.

    An element does so where all images tell it and its parts are stacks that stand by themselves.
    It does not where its values rather run through one volume, as sloppy headers have it.

    Args:
      headers: of one stack.
      heights: (images,) mm along the normal.

    Returns:
      The parts, and whether they are repetitions of each other; None where nothing tells images
      apart: they may still be repetitions that nothing but numbers and times tells apart.
    """
    stack: _Stack | None = None
    for name in (*_REPETITIONS, *_KINDS, *_UNSURE):
        keys = _told(headers, name)
        if keys is None:
            continue
        stack = stack or _Stack(headers, heights)
        parts: dict[Hashable, list[int]] = defaultdict(list)
        for index, key in enumerate(keys):
            parts[key].append(index)
        if (name not in _UNSURE or stack.ladder is None) and stack.falls_into(
            list(parts.values()), sure=name not in _UNSURE, repeated=name in _REPETITIONS
        ):
            return list(parts.values()), name in _REPETITIONS
    return None


def unplaced_parts_of(headers: Sequence[SliceHeader]) -> list[Sequence[SliceHeader]]:
    """Volumes of images without positions: whatever tells several images each apart does so."""
    for name in (*_REPETITIONS, *_KINDS, *_UNSURE):
        keys = _told(headers, name)
        if keys is not None and min(Counter(keys).values()) > 1:
            parts: dict[Hashable, list[SliceHeader]] = defaultdict(list)
            for header, key in zip(headers, keys, strict=True):
                parts[key].append(header)
            return [found for part in parts.values() for found in unplaced_parts_of(part)]
    return [headers]


def _told(headers: Sequence[SliceHeader], name: str) -> list[Hashable] | None:
    """The values of an element; None where it has one only, or some image does not tell it."""
    values = [getattr(header, name) for header in headers]
    if len(set(values)) == 1:
        return None
    if name == "contrast_agent":
        values = [bool(value) for value in values]
    elif None in values or "" in values or () in values:
        return None
    elif name in _TIMES:
        near = Near(_TIMES[name])
        values = [near.number((math.log(value),)) if value > 0 else -1 for value in values]
    return values if len(set(values)) > 1 else None


class _Stack:
    """Images that an element may tell apart."""

    def __init__(self, headers: Sequence[SliceHeader], heights: Array) -> None:
        self._headers = headers
        self._heights = heights
        self._spacing = headers[0].pixel_spacing
        self._places = places_of(heights, self._spacing)
        self._count = int(self._places.max()) + 1
        self.ladder = ladder_of(heights, self._spacing)

    def falls_into(self, parts: Sequence[Sequence[int]], *, sure: bool, repeated: bool) -> bool:
        """Whether these are volumes of their own.

        Args:
          parts: indices of the images of each value of an element.
          sure: whether images of two values are never one volume's, if they are not sloppy.
          repeated: whether the element counts repetitions.
        """
        distinct = self._count == len(self._headers)
        ladders = [ladder_of(self._heights[part], self._spacing) for part in map(list, parts)]
        standing = [each for each in ladders if each is not None]
        if len(standing) < len(parts) and not (
            sure and self._falls_apart(parts, len(standing), distinct=distinct)
        ):
            return False
        if self.ladder is None or not standing:
            return True
        step = float(np.median([each.step for each in standing]))
        if step < 1.5 * self.ladder.step:
            # One beside the other: a volume lies where it likes, repetitions in one place.
            return not (repeated and distinct and self._numbered_along(evenly=True))
        # They interleave: slices of one volume, or volumes of which one lies between the other.
        first = self._headers[0]
        declared = first.spacing_between_slices or first.slice_thickness
        if declared and abs(declared - step) < abs(declared - self.ladder.step):
            return True
        return distinct and not self._numbered_along(evenly=False)

    def _falls_apart(
        self, parts: Sequence[Sequence[int]], standing: int, *, distinct: bool
    ) -> bool:
        """Whether parts are volumes though not all stand by themselves: images are missing."""
        if 4 * standing >= 3 * len(parts) and (not distinct or self.ladder is None):
            return True
        # Of places imaged several times a repetition holds most, a value of each slice one.
        held = [len(set(self._places[list(part)].tolist())) for part in parts]
        return not distinct and bool(
            np.mean(held) >= self._count / 2 and np.median(held) >= min(2, self._count)
        )

    def _numbered_along(self, *, evenly: bool) -> bool:
        """Whether numbers run along the places as those of one volume do."""
        numbers = [self._headers[k].instance_number for k in np.argsort(self._heights).tolist()]
        if None in numbers:
            return False
        steps = np.diff(np.array(numbers, dtype=np.float64))
        return bool(((steps > 0).all() or (steps < 0).all()) and not (evenly and np.ptp(steps)))


@functools.lru_cache(256)
def _complex_component(component: str, image_type: tuple[str, ...]) -> str:
    """Magnitude, phase, real or imaginary part, where ImageType says so (PS3.3 C.8.3.1.1.1)."""
    names = {"P": "P", "PHASE": "P", "R": "R", "REAL": "R", "I": "I", "IMAGINARY": "I"}
    # ComplexImageComponent (0008,9208) of enhanced objects, PS3.3 C.8.13.3.1.1.
    for value in (component, *image_type[2:]):
        if value in names:
            return names[value]
    return "M"


def kind_of(header: SliceHeader) -> str:
    """ "localizer", "derived" or "" for an image that may be a volume's slice."""
    return _kind(header.image_type)


@functools.lru_cache(256)
def _kind(image_type: tuple[str, ...]) -> str:
    kinds = {value.upper() for value in image_type}
    if kinds & _LOCALIZER_TYPES:
        return "localizer"
    if kinds & _DERIVED_TYPES:
        return "derived"
    return ""
