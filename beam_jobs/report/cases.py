"""A record's share of a dataset's report: its numbers, and its pictures small enough to carry.

A patient's slices travel as one JPEG sprite, which a page decodes when they are shown. Written
for a contact sheet of hundreds of patients in one file: the byte budget decides size and quality.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from beam_jobs.core.cohort.target import Label
from beam_jobs.core.manifest import ShardEntry
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import read_shard

LEVELS = 256
# What is above it is head for the choice of a picture: a tenth of the stored range.
_BRIGHT = LEVELS // 10
# Pictures of the whole dataset, base64 included; the page around them is small.
_ALL_PICTURES = 54_000_000
# One patient's: more cannot be seen.
_PATIENT_PICTURES = 500_000
_THUMBNAIL_HEIGHT = 96
_THUMBNAIL_BYTES = 5_000
# Below about this many bits a pixel JPEG shows more of itself than of the head.
_BITS_A_PIXEL = 0.55
_MOST_SIDE, _MOST_SLICES = 256, 80
_LEAST_SIDE, _LEAST_SLICES = 48, 8
# Qualities, best first, and how large a file each makes next to the trial's (measured on heads).
_QUALITIES = {
    90: 1.38,
    80: 1.0,
    70: 0.82,
    60: 0.71,
    50: 0.63,
    40: 0.55,
    30: 0.47,
    20: 0.36,
    10: 0.23,
}
_TRIAL = 80
# From so many bits a pixel on, the best quality fits nearly always.
_BITS_FOR_BEST = 2.0
_BLOCK = 8  # of JPEG: tiles of whole blocks do not bleed into each other
_TURNED = 256  # voxels of a slice

Bytes = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PicturePlan:
    """How much of a volume is shown.

    Attributes:
      reduce: a picture's pixel stands for this many voxels along rows and columns.
      step: every how many slices one is shown.
      budget: bytes of a patient's sprite before base64.
    """

    reduce: int
    step: int
    budget: int

    @classmethod
    def for_dataset(cls, schema: RecordSchema, patients: int) -> PicturePlan:
        """The plan under which all patients' pictures stay within the page's budget.

        About two fifths of a grid are head; the rest is cropped away.
        """
        whole = min(_PATIENT_PICTURES, _ALL_PICTURES // max(patients, 1) - _THUMBNAIL_BYTES)
        budget = max(whole, 2_000) * 3 // 4
        rows, columns, slices = schema.shape
        reduce = math.ceil(max(rows, columns) / _MOST_SIDE)
        step = math.ceil(slices / _MOST_SLICES)

        def bits(reduce: int, step: int) -> float:
            pixels = rows * columns / reduce**2 * slices / step * len(schema.modalities)
            return budget * 8 / (pixels * 0.4)

        while bits(reduce, step) < _BITS_A_PIXEL:
            if max(rows, columns) / (reduce + 1) >= _LEAST_SIDE:
                reduce += 1
            elif slices / (step + 1) >= _LEAST_SLICES:
                step += 1
            else:
                break
        return cls(reduce=reduce, step=step, budget=budget)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CaseFacts:
    """What the report counts of one record.

    Attributes:
      patient_id, label, fold, present: as in the record.
      levels: (channel, 256) voxels at each level of the stored range.
      blank_slices: per channel, slices of the prepared volume that are 0 throughout.
      slice: the slice with the largest foreground, all channels together.
      spacing: mm between rows, columns and slices, from the affine.
      ends: patient directions at a slice's left, right, top and bottom, from the affine.
      first_mm: where slice 0 lies along the slice axis, LPS mm.
      covariates: as in the record.
    """

    patient_id: str
    label: Label | None
    fold: int | None
    present: tuple[bool, ...]
    levels: npt.NDArray[np.int64]
    blank_slices: tuple[int, ...]
    slice: int
    spacing: tuple[float, float, float]
    ends: str
    first_mm: float
    covariates: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """One patient's pictures, for a page to put together again.

    Attributes:
      thumbnail: base64 of a JPEG, all channels at `CaseFacts.slice` side by side.
      sprite: base64 of a JPEG of tiles: each present channel's slices, channel after channel.
      tile: (width, height) of a tile in pixels.
      across: tiles in a row of the sprite.
      box: (first row, first column, rows, columns) of the grid that a tile shows, voxels.
      first: the first slice shown.
      count: slices shown of each channel, `PicturePlan.step` apart.
    """

    thumbnail: str
    sprite: str
    tile: tuple[int, int]
    across: int
    box: tuple[int, int, int, int]
    first: int
    count: int


def report_shard(
    shard: ShardEntry, *, directory: str, schema: RecordSchema, plan: PicturePlan | None
) -> list[tuple[CaseFacts, Pictures | None]]:
    """Facts and, where a plan says how, pictures of a shard's patients, in file order.

    Raises:
      ContractError: the shard is not what the manifest says; the message names it.
    """
    found = []
    for case in read_shard(directory, shard, schema):
        planes = as_levels(case)
        facts = facts_of(case, planes)
        found.append((facts, pictures_of(planes, facts, plan) if plan else None))
    return found


def as_levels(case: PreparedCase) -> Bytes:
    """(channel, slice, row, column) uint8: the stored range in 256 levels."""
    volume = _channels_first(case.volume)
    if volume.dtype == np.uint8:
        return volume
    if volume.dtype == np.uint16:
        return ((volume.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    scaled = np.clip(volume.astype(np.float32), 0.0, 1.0)
    return np.asarray(np.rint(scaled * 255), dtype=np.uint8)


def _channels_first(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(row, column, slice, channel) as (channel, slice, row, column), in memory too."""
    rows, columns, slices, channels = volume.shape
    voxels = volume.reshape(rows * columns, slices * channels)
    turned = np.empty(voxels.shape[::-1], dtype=volume.dtype)
    # Part by part, so that what is read and what is written stay in the processor's cache.
    for start in range(0, rows * columns, _TURNED):
        turned[:, start : start + _TURNED] = voxels[start : start + _TURNED].T
    by_slice = turned.reshape(slices, channels, rows, columns)
    return np.ascontiguousarray(by_slice.swapaxes(0, 1))


def facts_of(case: PreparedCase, planes: Bytes) -> CaseFacts:
    """Counts one case."""
    counts = list(map(_counts, planes))
    flat = planes.reshape(*planes.shape[:2], -1)
    lit = flat.any(axis=2)
    # numpy counts a whole array by the processor's vectors, along an axis one by one.
    bright = [sum(map(np.count_nonzero, channels > _BRIGHT)) for channels in flat.swapaxes(0, 1)]
    axes = case.affine[:3, :3]
    row, column, slice_ = (float(step) for step in np.linalg.norm(axes, axis=0))
    return CaseFacts(
        patient_id=case.patient_id,
        label=case.label,
        fold=case.fold,
        present=case.present,
        levels=np.array(counts, dtype=np.int64),
        blank_slices=tuple(int(count) for count in (~lit).sum(axis=1)),
        slice=int(np.argmax(bright)),
        spacing=(row, column, slice_),
        ends=_letter(-axes[:, 1])
        + _letter(axes[:, 1])
        + _letter(-axes[:, 0])
        + _letter(axes[:, 0]),
        first_mm=float(case.affine[:3, 3] @ axes[:, 2] / slice_),
        covariates=case.covariates,
    )


def _counts(channel: Bytes) -> npt.NDArray[np.int64]:
    """(256,) voxels at each level.

    Pillow counts bytes four times as fast as numpy's bincount, but slowly where neighbours are the
    same: of zeros, most of a head's volume, it is spared what eight at a time can be left out.
    """
    voxels = channel.reshape(-1)
    words = voxels[: voxels.size // 8 * 8].view(np.uint64)
    lit = np.append(words[words != 0].view(np.uint8), voxels[words.nbytes :])
    counts = np.zeros(LEVELS, dtype=np.int64)
    if lit.size:
        counts[:] = Image.fromarray(lit[np.newaxis]).histogram()
    counts[0] += voxels.size - lit.size
    return counts


def _letter(direction: npt.NDArray[np.float64]) -> str:
    """Where a direction in patient LPS mostly leads: one of L R P A S I."""
    axis = int(np.abs(direction).argmax())
    return ("LR", "PA", "SI")[axis][int(direction[axis] < 0)]


def pictures_of(planes: Bytes, facts: CaseFacts, plan: PicturePlan) -> Pictures:
    """A case's thumbnail and sprite, cropped to what is bright in any channel.

    Args:
      planes: (channel, slice, row, column).
      facts: the same case's.
      plan: how much of it is shown.
    """
    there = [channel for channel, present in enumerate(facts.present) if present] or [0]
    shown = planes if len(there) == len(planes) else planes[there]
    head = shown.max(axis=0) > _BRIGHT // 2
    slices = _range(head.any(axis=(1, 2)), 1)
    rows = _range(head.any(axis=(0, 2)), _BLOCK * plan.reduce)
    columns = _range(head.any(axis=(0, 1)), _BLOCK * plan.reduce)
    picked = range(slices.start - slices.start % plan.step, slices.stop, plan.step)
    tiles = _padded(shown[:, picked.start : picked.stop : picked.step], rows, columns)
    if plan.reduce > 1:
        shape = (*tiles.shape[:2], len(rows) // plan.reduce, plan.reduce, -1, plan.reduce)
        tiles = np.rint(tiles.reshape(shape).mean(axis=(3, 5), dtype=np.float32)).astype(np.uint8)
    sheet, across = _sheet(tiles.reshape(-1, *tiles.shape[2:]))
    sprite = _within(sheet, plan.budget)
    if len(sprite) > plan.budget and min(tiles.shape[2:]) >= 2 * _BLOCK:
        # Noise, mostly: no quality is low enough at this size.
        return pictures_of(planes, facts, dataclasses.replace(plan, reduce=2 * plan.reduce))
    return Pictures(
        thumbnail=_base64(_jpeg(_strip(planes, facts, rows, columns), 70)),
        sprite=_base64(sprite),
        tile=(tiles.shape[3], tiles.shape[2]),
        across=across,
        box=(rows.start, columns.start, len(rows), len(columns)),
        first=picked.start,
        count=len(picked),
    )


def _range(lit: npt.NDArray[np.bool_], multiple: int) -> range:
    """From the first to the last that is lit, widened around them to a multiple.

    Begins on the grid and leaves it only where the grid is shorter than that.
    """
    found = np.flatnonzero(lit)
    start, stop = (int(found[0]), int(found[-1]) + 1) if found.size else (0, len(lit))
    length = math.ceil((stop - start) / multiple) * multiple
    start = max(0, min(start - (length - (stop - start)) // 2, len(lit) - length))
    return range(start, start + length)


def _padded(planes: Bytes, rows: range, columns: range) -> Bytes:
    """The box of rows and columns, black where it leaves the grid."""
    box = planes[..., rows.start : rows.stop, columns.start : columns.stop]
    short = (len(rows) - box.shape[-2], len(columns) - box.shape[-1])
    return np.pad(box, [(0, 0)] * (planes.ndim - 2) + [(0, short[0]), (0, short[1])])


def _sheet(tiles: Bytes) -> tuple[Bytes, int]:
    """Tiles in rows of a nearly square sheet, and how many a row has."""
    count, height, width = tiles.shape
    across = min(count, max(1, round(math.sqrt(count * height / width))))
    down = math.ceil(count / across)
    filled = np.zeros((across * down, height, width), dtype=np.uint8)
    filled[:count] = tiles
    sheet = filled.reshape(down, across, height, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(sheet.reshape(down * height, across * width)), across


def _strip(planes: Bytes, facts: CaseFacts, rows: range, columns: range) -> Bytes:
    """Every channel at the chosen slice, side by side in true proportions; absent ones black."""
    row_mm, column_mm, _ = facts.spacing
    height = _THUMBNAIL_HEIGHT
    # A square of the patient, so that all thumbnails are of one shape.
    side = max(len(rows) * row_mm, len(columns) * column_mm)
    size = (
        max(1, round(height * len(columns) * column_mm / side)),
        max(1, round(height * len(rows) * row_mm / side)),
    )
    strip = np.zeros((height, height * len(planes)), dtype=np.uint8)
    top, left = (height - size[1]) // 2, (height - size[0]) // 2
    for channel, plane in enumerate(_padded(planes[:, facts.slice], rows, columns)):
        picture = Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)
        start = channel * height + left
        strip[top : top + size[1], start : start + size[0]] = np.asarray(picture)
    return strip


def _within(sheet: Bytes, budget: int) -> bytes:
    """The best JPEG of at most `budget` bytes, the worst quality when none is so small.

    Encoding takes most of a report's time, so one trial foretells which quality will fit. Where
    there is room the best one comes first: if its own size leaves the room that a trial's, which is
    smaller, would have to leave, a trial would choose it too.
    """
    best = max(_QUALITIES)
    if 8 * budget >= _BITS_FOR_BEST * sheet.size:
        found = _jpeg(sheet, best, small=False)
        if _QUALITIES[best] * len(found) <= budget:
            return found
    trial = _jpeg(sheet, _TRIAL)
    fitting = [
        quality
        for quality, relative in _QUALITIES.items()
        if relative * len(trial) <= budget or quality == min(_QUALITIES)
    ]
    for quality in fitting:
        found = trial if quality == _TRIAL else _jpeg(sheet, quality)
        if len(found) <= budget:
            break
    return found


def _jpeg(picture: Bytes, quality: int, *, small: bool = True) -> bytes:
    """A JPEG; `small` is the same picture in a thirtieth less, for more than twice the time."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=small)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
