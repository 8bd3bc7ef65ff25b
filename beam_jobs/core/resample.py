"""Anti-aliased resampling of a stack of slices onto a grid in patient space.

Where the stack's axes are parallel to the grid's, resampling is separable and streamed: the stack
is reduced along its own axes (`reduction`), onto a lattice that the grid is cut out of. An oblique
or sheared stack is first reduced in the same way, then resliced linearly through the full affine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from beam_jobs.core.dicom.pixels import StoredSlice
from beam_jobs.core.geometry import Array, VolumeGeometry
from beam_jobs.core.reasons import Reason, RejectedError
from beam_jobs.core.reduction import AxisWeights, Float32, axis_weights, reduce_stack

# An axis counts as parallel when, over the whole stack, it strays less than this share of a voxel
# of the grid.
_PARALLEL_TOLERANCE = 0.05
# Voxels of the grid's spacing that any stack may fill: a body of 1 m³ at 2.5 mm. A larger one is as
# large itself; what is small and claims to be metres wide would only cost memory.
_ALWAYS_VOXELS = 64 << 20
_MOST_ENLARGED = 8
_MOST_WEIGHTS = 1 << 25


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Resampled:
    """A stack on a grid.

    Attributes:
      array: (row, column, slice) float32 values; 0 outside the stack.
      inside: (row, column, slice) whether the voxel lies within the stack.
      everywhere: whether all of them do.
      geometry: the grid.
    """

    array: Float32
    inside: npt.NDArray[np.bool_]
    everywhere: bool
    geometry: VolumeGeometry


GridChoice = Callable[[Float32, Array], VolumeGeometry]


def resample_stack(
    slices: Iterable[StoredSlice],
    geometry: VolumeGeometry,
    offsets: Sequence[float],
    spacing: tuple[float, float, float],
    choose_grid: GridChoice,
) -> Resampled:
    """Resamples a stack onto a canonical grid, reading each slice once.

    Args:
      slices: the stack in order.
      geometry: the stack's lattice.
      offsets: slice index of each slice on that lattice (uneven stacks: not whole numbers), all
        ascending or all descending.
      spacing: mm between rows, columns and slices of the canonical grid.
      choose_grid: called with the stack at reduced resolution, (row, column, slice) of its own
        lattice or of the grid's, and that lattice's 4x4 affine; returns the grid. A grid that
        does not depend on voxels ignores both.

    Returns:
      The stack on the grid that `choose_grid` returned.
    """
    axes = _parallel_axes(geometry, spacing)
    if axes is None:
        return _resample_oblique(slices, geometry, offsets, spacing, choose_grid)
    return _resample_parallel(slices, geometry, offsets, spacing, choose_grid, axes)


# Patient axis (x, y, z) of the canonical grid's (row, column, slice): to posterior, left, superior.
_CANONICAL = (1, 0, 2)


def _parallel_axes(
    geometry: VolumeGeometry, spacing: tuple[float, float, float]
) -> tuple[int, int, int] | None:
    """The patient axis of each stack axis, or None when the stack is oblique or sheared."""
    directions = geometry.affine[:3, :3]
    axes = np.argmax(np.abs(directions), axis=0)
    if sorted(axes) != [0, 1, 2]:
        return None
    step = np.empty(3)
    step[list(_CANONICAL)] = spacing
    strays = np.abs(directions) * (np.asarray(geometry.shape) - 1)
    strays[axes, range(3)] = 0.0
    if (strays.sum(axis=1) > _PARALLEL_TOLERANCE * step).any():
        return None
    return int(axes[0]), int(axes[1]), int(axes[2])


def _resample_parallel(
    slices: Iterable[StoredSlice],
    geometry: VolumeGeometry,
    offsets: Sequence[float],
    spacing: tuple[float, float, float],
    choose_grid: GridChoice,
    axes: tuple[int, int, int],
) -> Resampled:
    step = np.empty(3)
    step[list(_CANONICAL)] = spacing
    middle = geometry.centre
    weights: list[AxisWeights] = []
    first = np.empty(3)
    count = np.empty(3, dtype=int)
    for index, axis in enumerate(axes):
        size = geometry.shape[index]
        places = np.sort(offsets) if index == 2 else np.arange(size, dtype=np.float64)
        pitch = geometry.affine[axis, index]
        positions = middle[axis] + (places - (size - 1) / 2) * pitch
        # All grids of this spacing share one lattice through the patient's origin, so that the
        # whole stack can be reduced before its foreground, and with it the grid, is known.
        lattice = _lattice_over(positions, abs(pitch), step[axis])
        _require_axis(len(places), len(lattice))
        first[axis], count[axis] = lattice[0], len(lattice)
        ascending = np.sign(pitch)
        weights.append(axis_weights(ascending * positions, ascending * lattice, step[axis]))
    _require_size(weights, geometry)
    stack = reduce_stack(slices, weights[0], weights[1], _as_they_come(weights[2], offsets))
    # From (slices, rows, columns) of the stack to the canonical (row, column, slice).
    order = [(axes[2], axes[0], axes[1]).index(axis) for axis in _CANONICAL]
    full = stack.transpose(order)
    inside_axes = {axis: weights[index].inside for index, axis in enumerate(axes)}
    lattice_geometry = VolumeGeometry.canonical(
        (int(full.shape[0]), int(full.shape[1]), int(full.shape[2])), spacing, first
    )
    grid = choose_grid(full, lattice_geometry.affine)
    return _crop(full, [inside_axes[axis] for axis in _CANONICAL], lattice_geometry, grid)


def _require_axis(inputs: int, outputs: int) -> None:
    """Refuses an axis whose table of weights would take more than any scanner's image needs.

    Raises:
      RejectedError: it would.
    """
    if inputs * outputs > _MOST_WEIGHTS:
        raise RejectedError(
            Reason.TOO_LARGE, f"{inputs} samples along a side, for {outputs} of the grid's"
        )


def _require_size(weights: Sequence[AxisWeights], geometry: VolumeGeometry) -> None:
    """Refuses a stack of few voxels that would fill far more of the grid's lattice.

    Raises:
      RejectedError: it would.
    """
    outputs = math.prod(len(axis.matrix) for axis in weights)
    inputs = math.prod(geometry.shape)
    if outputs > max(_ALWAYS_VOXELS, _MOST_ENLARGED * inputs):
        raise RejectedError(
            Reason.TOO_LARGE, f"{inputs} voxels would fill {outputs} of the grid's spacing"
        )


def _lattice_over(positions: Array, pitch: float, step: float) -> Array:
    """Multiples of `step` that cover positions and half a pitch beyond."""
    low = np.ceil((positions.min() - pitch / 2) / step - 1e-9)
    high = np.floor((positions.max() + pitch / 2) / step + 1e-9)
    if high < low:
        low = high = np.round(positions.mean() / step)
    return np.arange(low, high + 1) * step


def _crop(
    full: Float32,
    inside: Sequence[npt.NDArray[np.bool_]],
    lattice: VolumeGeometry,
    grid: VolumeGeometry,
) -> Resampled:
    """Cuts the grid out of an array on the same lattice, zeros where it reaches beyond."""
    shift = np.rint(lattice.to_index(grid.affine[:3, 3])).astype(int)
    source, target, within = [], [], []
    for axis in range(3):
        low = max(0, int(shift[axis]))
        high = max(low, min(full.shape[axis], int(shift[axis]) + grid.shape[axis]))
        place = slice(low - int(shift[axis]), high - int(shift[axis]))
        source.append(slice(low, high))
        target.append(place)
        # The lattice's points within a stack are neighbours, for a stack has no holes.
        covered = np.flatnonzero(inside[axis][low:high]) + place.start
        within.append(slice(covered[0], covered[-1] + 1) if covered.size else slice(0))
    array = full[tuple(source)]
    if array.shape != grid.shape:
        # In the memory order of `full`: turning float voxels round costs more than making them.
        array = np.zeros_like(full, shape=grid.shape)
        array[tuple(target)] = full[tuple(source)]
    everywhere = within == [slice(0, size) for size in grid.shape]
    if everywhere:
        mask = np.broadcast_to(np.True_, grid.shape)
    else:
        mask = np.zeros_like(array, dtype=bool)
        mask[tuple(within)] = True
    return Resampled(array=array, inside=mask, everywhere=everywhere, geometry=grid)


def _resample_oblique(
    slices: Iterable[StoredSlice],
    geometry: VolumeGeometry,
    offsets: Sequence[float],
    spacing: tuple[float, float, float],
    choose_grid: GridChoice,
) -> Resampled:
    """Reduces along the stack's own axes, then reslices linearly through the affine."""
    step = np.empty(3)
    step[list(_CANONICAL)] = spacing
    weights, first, pitch = [], np.empty(3), np.empty(3)
    for index in range(3):
        size = geometry.shape[index]
        native = geometry.spacing[index]
        direction = geometry.affine[:3, index] / native
        # The grid's step as seen along this axis.
        seen = float(np.sqrt(((direction * step) ** 2).sum()))
        # The reslicing below interpolates linearly over `coarse`, which blurs too: both together
        # make the wanted width (variances of triangles add).
        coarse = max(native, 0.6 * seen)
        width = np.sqrt(max(seen**2 - coarse**2, 0.0))
        places = np.sort(offsets) if index == 2 else np.arange(size, dtype=np.float64)
        if size == 1 or (coarse == native and (index != 2 or _whole(offsets))):
            wanted, width = np.arange(size, dtype=np.float64) * native, 0.0
        else:
            count = max(int(np.ceil((size - 1) * native / coarse)) + 1, 2)
            coarse = (size - 1) * native / (count - 1)
            wanted = np.arange(count, dtype=np.float64) * coarse
        _require_axis(len(places), len(wanted))
        weights.append(axis_weights(places * native, wanted, width))
        first[index] = wanted[0] / native
        pitch[index] = (wanted[1] - wanted[0]) / native if len(wanted) > 1 else 1.0
    _require_size(weights, geometry)
    stack = reduce_stack(slices, weights[0], weights[1], _as_they_come(weights[2], offsets))
    to_native = np.diag([*pitch, 1.0])
    to_native[:3, 3] = first
    affine = geometry.affine @ to_native
    # (slices, rows, columns) of the reduced stack, not transposed: indexing does it.
    grid = choose_grid(stack.transpose(1, 2, 0), affine)
    transform = (np.linalg.inv(affine) @ grid.affine)[[2, 0, 1, 3]]
    array = ndimage.affine_transform(
        stack,
        transform[:3, :3],
        offset=transform[:3, 3],
        output_shape=grid.shape,
        output=np.float32,
        order=1,
        mode="nearest",
        prefilter=False,
    )
    inside = _inside(np.linalg.inv(geometry.affine) @ grid.affine, grid.shape, geometry.shape)
    array[~inside] = 0.0
    everywhere = bool(inside.all())
    return Resampled(array=array, inside=inside, everywhere=everywhere, geometry=grid)


def _whole(offsets: Sequence[float]) -> bool:
    return all(offset == index for index, offset in enumerate(sorted(offsets)))


def _as_they_come(weights: AxisWeights, offsets: Sequence[float]) -> AxisWeights:
    """Weights of ascending slices, turned round where these come descending."""
    if offsets[0] <= offsets[-1]:
        return weights
    return dataclasses.replace(weights, matrix=weights.matrix[:, ::-1])


def _inside(
    transform: Array, shape: tuple[int, int, int], within: tuple[int, int, int]
) -> npt.NDArray[np.bool_]:
    """Which voxels of a grid, taken by `transform` to indices of a stack, lie within the stack."""
    axes = [np.arange(size, dtype=np.float32) for size in shape]
    inside = np.ones(shape, dtype=bool)
    for index, size in enumerate(within):
        row = transform[index].astype(np.float32)
        place = (
            (row[0] * axes[0] + row[3])[:, None, None]
            + (row[1] * axes[1])[None, :, None]
            + (row[2] * axes[2])[None, None, :]
        )
        inside &= (place >= -0.5) & (place <= size - 0.5)
    return inside
