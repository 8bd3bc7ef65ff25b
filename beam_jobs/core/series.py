"""Slice headers to ordered series: grouping, splitting, order, and a reason for every refusal.

    headers --group by UID--> --split into true stacks--> --drop localizers, derived images-->
            --collapse copies, tell repetitions apart--> --order along the normal, check steps-->
            Series | Rejection

Slices are ordered by ImagePositionPatient projected on the slice normal (PS3.3 C.7.6.2.1.1), never
by file name, InstanceNumber or SliceLocation, unless geometry is absent altogether; then the
series is marked (`geometry_known` is False).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.core.dicom.duplicates import Fingerprints, collapse, name_of
from beam_jobs.core.dicom.headers import SliceHeader, group_paths
from beam_jobs.core.geometry import (
    MAX_EXTENT_MM,
    MIN_SPACING_MM,
    Array,
    VolumeGeometry,
    require_plausible_size,
    slice_directions,
)
from beam_jobs.core.nifti.slices import lattice_of
from beam_jobs.core.reasons import Reason, RejectedError, Rejection
from beam_jobs.core.repetitions import (
    Left,
    Repetitions,
    left_of_copies,
    left_of_incomplete,
    repetitions_of,
    start_of,
    whole_of,
)
from beam_jobs.core.stacks import kind_of, parts_of, places_of, split_stacks, unplaced_parts_of

# Positions are decimal strings, often rounded to 1e-2 mm or worse: a stack whose slices lie within
# this share of a step of an even ladder is even.
EVEN_TOLERANCE = 0.05
# A gap of up to this many steps (three slices missing) is interpolated; beyond it is refused.
MAX_GAP_STEPS = 4.01
# Slices may lie off the stack's line by this share of the pixel spacing.
OFF_LINE = 0.5
# What a series' pixels may take, though its files are small: blank images take next to nothing, a
# lossy codec leaves a twentieth of others. Decoding more would take minutes, or all memory.
ALWAYS_BYTES = 512 << 20
MOST_EXPANSION = 50
# The origin of a frame of reference is arbitrary, but not kilometres away.
MAX_POSITION_MM = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One stack of parallel slices in spatial order.

    Attributes:
      headers: the slices, ascending along the slice normal; a NIfTI file's in its own order, which
        may descend.
      geometry: the regular lattice the stack is read on. For an uneven stack it has the median
        step, and the slices lie at `offsets` on it.
      offsets: slice index (float) of each header on `geometry`; 0, 1, 2, ... for an even stack, or
        the other way round.
      geometry_known: False when positions were absent and the order is that of InstanceNumber.
    """

    headers: tuple[SliceHeader, ...]
    geometry: VolumeGeometry
    offsets: tuple[float, ...]
    geometry_known: bool = True

    # Pickled field by field: values that all slices have are written once, and none is a call.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "headers": tuple(zip(*self.headers, strict=True))}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        headers = tuple(map(SliceHeader._make, zip(*state["headers"], strict=True)))
        self.__dict__.update(state, headers=headers)

    @property
    def first(self) -> SliceHeader:
        """The first slice's header, for what all slices share."""
        return self.headers[0]

    @property
    def even(self) -> bool:
        """Whether the slices lie on the lattice themselves."""
        return tuple(sorted(self.offsets)) == tuple(float(k) for k in range(len(self.headers)))

    @property
    def paths(self) -> tuple[str, ...]:
        """The series' files."""
        return group_paths(self.headers)


def assemble(headers: Iterable[SliceHeader]) -> tuple[list[Series], list[Rejection]]:
    """Sorts slice headers, of any number of series in any order, into ordered stacks.

    Args:
      headers: what `index_files` found.

    Returns:
      The series (sorted by series UID, then by time as far as it is known) and a rejection for
      every file left out, be it by rule (localizer, derived image, exact duplicate) or for a fault.
      Every file stands in exactly one of them, unless it holds several stacks or repetitions.
    """
    groups: dict[tuple[str, str, str], list[SliceHeader]] = defaultdict(list)
    for header in headers:
        file = header.path if header.is_nifti else ""  # which is a series
        groups[header.study_uid, header.series_uid, file].append(header)
    series: list[Series] = []
    rejections: list[Rejection] = []
    for (_, series_uid, _), members in sorted(groups.items(), key=lambda item: item[0]):
        # Input order must not matter: ties below are broken by path and frame.
        members.sort(key=lambda header: header.key)
        found: list[Series] = []
        # Stacks left out for one reason are one rejection: two hundred mosaics stored twice.
        unused: dict[tuple[Reason, str], list[SliceHeader]] = defaultdict(list)
        whole = members[0].is_nifti
        for stack in [members] if whole else split_stacks(members):
            volumes, left = _volume_of_file(stack) if whole else _volumes(stack)
            found += volumes
            for images, reason, detail in left:
                unused[reason, detail] += images
        if len(found) > 1:
            found.sort(key=lambda volume: start_of(volume.headers))
        series += found
        rejections += [
            Rejection(
                paths=group_paths(images), reason=reason, detail=detail, series_uid=series_uid
            )
            for (reason, detail), images in unused.items()
        ]
    return series, rejections


def _volume_of_file(images: list[SliceHeader]) -> tuple[list[Series], list[Left]]:
    """The series of a NIfTI file, on the lattice that its header tells."""
    first = images[0]
    try:
        if min(first.rows or 0, first.columns or 0, len(images)) < 2:
            raise RejectedError(Reason.TOO_FEW_SLICES, "one voxel thick, at least two required")
        _require_backed(images)
        geometry, offsets = lattice_of(images)
        found = Series(headers=tuple(images), geometry=geometry, offsets=offsets)
    except RejectedError as error:
        return [], [(images, error.reason, str(error))]
    return [found], []


def _volumes(stack: list[SliceHeader]) -> tuple[list[Series], list[Left]]:
    """The series of one stack, and what is left of it."""
    kind = kind_of(stack[0])
    if kind == "localizer":
        return [], [(stack, Reason.LOCALIZER, "ImageType (0008,0008) says localizer")]
    if kind == "derived":
        return [], [(stack, Reason.DERIVED_IMAGE, "ImageType (0008,0008) says derived view")]
    placed = bool(stack[0].position or stack[0].orientation)
    names: list[Hashable] = [name_of(header) for header in stack]
    normal = np.zeros(3)
    try:
        if placed:
            normal = _normal(stack[0])
            places = places_of(_positions(stack) @ normal, stack[0].pixel_spacing)
            names = list(zip(places.tolist(), names, strict=True))
    except RejectedError as error:
        return [], [(stack, error.reason, str(error))]
    prints = Fingerprints()
    once = collapse(stack, names, prints, named=True)
    left = left_of_copies(once)
    if placed:
        found, more = _separated(once.kept, normal, prints, once.contradicted)
        left += more
    else:
        found = unplaced_parts_of(once.kept)
    volumes: list[Series] = []
    for images in found:
        try:
            volumes.append(_order(images, normal) if placed else _order_without_geometry(images))
        except RejectedError as error:
            left.append((images, error.reason, str(error)))
    return volumes, left


def _separated(
    images: Sequence[SliceHeader], normal: Array, prints: Fingerprints, contradicted: int
) -> tuple[list[Sequence[SliceHeader]], list[Left]]:
    """The volumes among a stack's images, and what is left: by sure elements first."""
    heights = _positions(images) @ normal
    parted = parts_of(images, heights)
    if parted is None:
        places = places_of(heights, images[0].pixel_spacing).tolist()
        found, left = repetitions_of(list(zip(images, places, strict=True)), prints, contradicted)
        return _headers_of(found), left
    parts, repeated = parted
    volumes: list[Sequence[SliceHeader]] = []
    left = []
    for part in parts:
        within, more = _separated([images[k] for k in part], normal, prints, contradicted)
        volumes += within
        left += more
    if repeated and len(volumes) > 1:
        found = whole_of(volumes, [_positions(volume) @ normal for volume in volumes])
        return _headers_of(found), left + left_of_incomplete(found)
    return volumes, left


def _headers_of(found: Repetitions) -> list[Sequence[SliceHeader]]:
    return [[header for header, _ in part] for part in found.whole]


def _normal(header: SliceHeader) -> Array:
    """The slice normal, (3,).

    Raises:
      RejectedError: the orientation is none.
    """
    try:
        return slice_directions(header.orientation)[2]
    except ValueError as error:
        raise RejectedError(Reason.INVALID_GEOMETRY, str(error)) from error


def _order(images: Sequence[SliceHeader], normal: Array) -> Series:
    """The series of images that lie at different places.

    Raises:
      RejectedError: they are no volume.
    """
    along_column, along_row, _ = slice_directions(images[0].orientation)
    positions = _positions(images)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    kept = [images[index] for index in order]
    places, heights = positions[order], along[order]
    if len(kept) < 2:
        raise RejectedError(Reason.TOO_FEW_SLICES, "one slice place, at least two required")
    offsets, step = _ladder(heights)
    spacing = _pixel_spacing(kept[0])
    line = _slice_step(places, offsets, normal, step, OFF_LINE * min(spacing))
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[0]
    affine[:3, 1] = along_column * spacing[1]
    affine[:3, 2] = line
    affine[:3, 3] = places[0]
    count = round(offsets[-1]) + 1
    shape = (kept[0].rows or 0, kept[0].columns or 0, count)
    _require_backed(kept)
    require_plausible_size(shape, np.linalg.norm(affine[:3, :3], axis=0))
    try:
        geometry = VolumeGeometry(shape=shape, affine=affine)
    except ValueError as error:
        raise RejectedError(Reason.INVALID_GEOMETRY, str(error)) from error
    return Series(headers=tuple(kept), geometry=geometry, offsets=tuple(offsets))


def _positions(stack: Sequence[SliceHeader]) -> Array:
    """ImagePositionPatient of each slice, (slices, 3) LPS mm."""
    positions = np.array([header.position for header in stack if len(header.position) == 3])
    if len(positions) < len(stack) or not np.isfinite(positions).all():
        raise RejectedError(
            Reason.INVALID_GEOMETRY,
            "ImagePositionPatient (0020,0032) must be three finite numbers",
        )
    if np.abs(positions).max() > MAX_POSITION_MM:
        raise RejectedError(
            Reason.INVALID_GEOMETRY,
            f"ImagePositionPatient (0020,0032) is over {MAX_POSITION_MM / 1e6:.0f} km away",
        )
    return positions


def _pixel_spacing(header: SliceHeader) -> tuple[float, float]:
    spacing = header.pixel_spacing
    if len(spacing) != 2 or not all(MIN_SPACING_MM < each < MAX_EXTENT_MM for each in spacing):
        raise RejectedError(
            Reason.INVALID_GEOMETRY, "PixelSpacing (0028,0030) must be two positive lengths in mm"
        )
    return spacing[0], spacing[1]


def _require_backed(images: Sequence[SliceHeader]) -> None:
    """Refuses a volume whose pixels would take far more than its files.

    Raises:
      RejectedError: they would.
    """
    first = images[0]
    pixels = (first.rows or 0) * (first.columns or 0) * len(images)
    needed = pixels * -(-(first.bits_allocated or 0) // 8)
    if needed <= ALWAYS_BYTES:
        return
    stored = sum({header.path: header.file_size for header in images}.values())
    if needed > MOST_EXPANSION * stored:
        raise RejectedError(
            Reason.TOO_LARGE, f"{stored} bytes of files claim {needed} bytes of pixels"
        )


def _ladder(heights: Array) -> tuple[list[float], float]:
    """Slice offsets in steps, and the step in mm along the normal.

    An even stack gets whole offsets and the mean step; a stack with missing or uneven slices gets
    true offsets on a ladder of the median step.

    Raises:
      RejectedError: a gap is larger than `MAX_GAP_STEPS` median steps.
    """
    count = len(heights)
    mean = float(heights[-1] - heights[0]) / (count - 1)
    ideal = heights[0] + mean * np.arange(count)
    if np.abs(heights - ideal).max() <= EVEN_TOLERANCE * mean:
        return [float(k) for k in range(count)], mean
    steps = np.diff(heights)
    median = float(np.median(steps))
    if steps.max() > MAX_GAP_STEPS * median:
        raise RejectedError(
            Reason.GAP_TOO_LARGE,
            f"a gap of {steps.max():.2f} mm between slices {median:.2f} mm apart; "
            f"at most {MAX_GAP_STEPS:.0f} steps are interpolated",
        )
    # Fit the ladder to the stack's length, so that first and last slice lie on it.
    rungs = max(round(float(heights[-1] - heights[0]) / median), 1)
    step = float(heights[-1] - heights[0]) / rungs
    return [float(offset) for offset in (heights - heights[0]) / step], step


def _slice_step(
    places: Array, offsets: Sequence[float], normal: Array, step: float, tolerance: float
) -> Array:
    """The vector from slice to slice, LPS mm; off the normal in a sheared stack (gantry tilt).

    Raises:
      RejectedError: the slices do not lie on one line within `tolerance` mm.
    """
    steps = np.asarray(offsets)
    line = (places[-1] - places[0]) / steps[-1]
    off = np.abs(places - (places[0] + steps[:, None] * line))
    off -= np.abs((places - (places[0] + steps[:, None] * line)) @ normal)[:, None] * np.abs(normal)
    if off.max() > tolerance:
        raise RejectedError(
            Reason.NOT_A_STACK,
            f"slices lie up to {off.max():.2f} mm off a straight line, "
            f"at most {tolerance:.2f} mm is accepted",
        )
    # Decimal strings give a straight stack a shear of rounding noise: a step along the normal
    # within a thousandth of a step is meant to be one.
    straight = normal * step
    return straight if np.abs(line - straight).max() < 1e-6 * abs(step) else line


def _order_without_geometry(stack: Sequence[SliceHeader]) -> Series:
    """The last resort: InstanceNumber order, axial axes assumed, and the series marked."""
    stack = sorted(stack, key=lambda header: (header.instance_number or 0, header.path))
    numbers = [header.instance_number for header in stack]
    if len(stack) < 2:
        raise RejectedError(Reason.TOO_FEW_SLICES, "one image, at least two slices required")
    if None in numbers or len(set(numbers)) != len(numbers):
        raise RejectedError(
            Reason.INVALID_GEOMETRY,
            "no ImagePositionPatient (0020,0032), and InstanceNumber (0020,0013) does not order",
        )
    first = stack[0]
    spacing = _pixel_spacing(first) if first.pixel_spacing else (1.0, 1.0)
    step = abs(first.spacing_between_slices or first.slice_thickness or 1.0)
    shape = (first.rows or 0, first.columns or 0, len(stack))
    _require_backed(stack)
    if not MIN_SPACING_MM < step < MAX_EXTENT_MM:
        raise RejectedError(Reason.INVALID_GEOMETRY, f"slices {step:g} mm apart")
    require_plausible_size(shape, np.array([*spacing, step]))
    try:
        geometry = VolumeGeometry.canonical(shape, (*spacing, step), (0.0, 0.0, 0.0))
    except ValueError as error:
        raise RejectedError(Reason.INVALID_GEOMETRY, str(error)) from error
    return Series(
        headers=tuple(stack),
        geometry=geometry,
        offsets=tuple(float(k) for k in range(len(stack))),
        geometry_known=False,
    )
