"""One series UID is not one volume: the true stacks among slice headers."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.geometry import Array

_LOCALIZER_TYPES = frozenset({"LOCALIZER", "SCOUT"})
_DERIVED_TYPES = frozenset(
    {"PROJECTION IMAGE", "MIP", "MINIP", "SCREEN SAVE", "REFORMATTED", "CSA MPR", "MOSAIC MPR"}
)


def split_stacks(headers: Sequence[SliceHeader]) -> list[list[SliceHeader]]:
    """The true stacks among the headers of one series UID."""
    stacks: dict[tuple[object, ...], list[SliceHeader]] = defaultdict(list)
    orientations: list[Array] = []
    # Slices of a series mostly have one orientation, which costs as much as all the rest.
    nearest: dict[tuple[float, ...], int] = {}
    for header in headers:
        if header.orientation not in nearest:
            nearest[header.orientation] = _nearest(header.orientation, orientations)
        key = (
            header.rows,
            header.columns,
            _rounded(header.pixel_spacing),
            nearest[header.orientation],
            bool(header.position),
            header.echo_number,
            None if header.echo_time is None else round(header.echo_time, 3),
            _complex_component(header.complex_component, header.image_type),
            header.b_value,
            header.stack_id,
            # A mosaic is a whole volume; where the scanner follows the head, each lies elsewhere.
            header.sop_uid if header.tiles else "",
            kind_of(header),
        )
        stacks[key].append(header)
    return list(stacks.values())


def _nearest(orientation: tuple[float, ...], known: list[Array]) -> int:
    """Index of the orientation among those seen so far, added when it is new (-1: malformed)."""
    vector = np.asarray(orientation, dtype=np.float64)
    if vector.shape != (6,) or not np.isfinite(vector).all():
        return -1
    for index, other in enumerate(known):
        # 2e-3 is a tenth of a degree: rounding in decimal strings stays far below it.
        if np.abs(vector - other).max() < 2e-3:
            return index
    known.append(vector)
    return len(known) - 1


@functools.lru_cache(256)
def _rounded(spacing: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in spacing)


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
