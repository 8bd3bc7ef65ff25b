"""A stack of slices reduced along its own three axes, each slice once, as it arrives.

Each slice is reduced along its rows and added to the few output planes that it touches, so that the
full-resolution volume never exists.

Kernel: a triangle as wide as the output step (linear interpolation where the grid is finer than
the input), placed at the slices' true positions and corrected so that each output weighs its
inputs to exactly one and to exactly its own position: a linear ramp stays that ramp.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

from beam_jobs.core.dicom.pixels import StoredSlice

Float32 = npt.NDArray[np.float32]

# Outputs multiplied at once: wide enough for BLAS, narrow enough to stay banded. With another
# number BLAS adds up in another order, and the last bits of voxels change.
_BLOCK = 8
# Blocks whose inputs become float32 at once: few enough for the processor's cache.
_TOGETHER = 4


class _Block(NamedTuple):
    """Outputs first..last take inputs low..high by `weights` (outputs, inputs)."""

    first: int
    last: int
    low: int
    high: int
    weights: Float32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AxisWeights:
    """How the samples of one axis make the samples of another.

    Attributes:
      matrix: (outputs, inputs) float32; rows of outputs outside the input are zero.
      inside: (outputs,) whether the output lies within the input, half a step beyond its ends
        included.
      band: (2, outputs) the first input of each output and the one after its last; of outputs
        outside the input, what widens no range: the number of inputs and 0.
    """

    matrix: Float32
    inside: npt.NDArray[np.bool_]
    band: npt.NDArray[np.intp]

    @property
    def blocks(self) -> list[_Block]:
        """The matrix as a band of dense blocks of at most `_BLOCK` outputs."""
        firsts = range(0, len(self.matrix), _BLOCK)
        lows = np.minimum.reduceat(self.band[0], firsts).tolist()
        highs = np.maximum.reduceat(self.band[1], firsts).tolist()
        blocks = []
        for first, low, high in zip(firsts, lows, highs, strict=True):
            if low < high:
                weights = self.matrix[first : first + _BLOCK, low:high].copy()
                blocks.append(_Block(first, first + len(weights), low, high, weights))
        return blocks


def axis_weights(inputs: npt.ArrayLike, outputs: npt.ArrayLike, width: float) -> AxisWeights:
    """Anti-aliased linear weights from samples at `inputs` to samples at `outputs`.

    Args:
      inputs: (n,) ascending positions in mm, n >= 1; uneven steps are honoured.
      outputs: (m,) positions in mm, any order.
      width: half-width of the triangle in mm, usually the output step; where it is less than the
        local input step, the result is linear interpolation.

    Returns:
      Weights whose rows sum to 1 and whose first moment is the output's position. Outputs up to
      half a step beyond the first or last input take that input's value.
    """
    x = np.asarray(inputs, dtype=np.float64)
    wanted = np.asarray(outputs, dtype=np.float64)
    if len(x) == 1:
        inside = np.abs(wanted - x[0]) <= width / 2 + 1e-9
        band = np.stack([np.where(inside, 0, 1), np.where(inside, 1, 0)])
        return AxisWeights(matrix=inside[:, None].astype(np.float32), inside=inside, band=band)
    steps = np.diff(x)
    margins = steps[0] / 2 + 1e-6, steps[-1] / 2 + 1e-6
    inside = (wanted >= x[0] - margins[0]) & (wanted <= x[-1] + margins[1])
    y = np.clip(wanted, x[0], x[-1])
    gap = steps[np.clip(np.searchsorted(x, y, side="right") - 1, 0, len(steps) - 1)]
    # Near an end the triangle narrows, so that it stays symmetric about the output.
    half = np.maximum(gap, np.minimum(width, np.minimum(y - x[0], x[-1] - y) + gap))
    cells = np.empty_like(x)
    cells[1:-1] = (x[2:] - x[:-2]) / 2
    cells[0], cells[-1] = steps[0], steps[-1]
    # The inputs under each output's triangle: a few of many.
    band = np.stack([np.searchsorted(x, y - half), np.searchsorted(x, y + half, side="right")])
    places = band[0][:, None] + np.arange((band[1] - band[0]).max(initial=0))
    beyond = places >= band[1][:, None]
    places[beyond] = 0
    offset = x[places] - y[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(offset) / half[:, None]) * cells[places]
    weights[beyond] = 0.0
    total = weights.sum(axis=1)
    first = (weights * offset).sum(axis=1)
    second = (weights * offset**2).sum(axis=1)
    # w' = w (a + b offset) with sum w' = 1 and sum w' offset = 0.
    determinant = total * second - first**2
    safe = determinant > 1e-12 * total**2 * half**2
    a = np.where(safe, second / np.where(safe, determinant, 1.0), 1.0 / total)
    b = np.where(safe, -first / np.where(safe, determinant, 1.0), 0.0)
    weights *= (a[:, None] + b[:, None] * offset) * inside[:, None]
    matrix = np.zeros((len(y), len(x)), dtype=np.float32)
    output, number = np.nonzero(~beyond)
    matrix[output, places[output, number]] = weights[output, number]
    band[:, ~inside] = [[len(x)], [0]]
    return AxisWeights(matrix=matrix, inside=inside, band=band)


def reduce_stack(
    slices: Iterable[StoredSlice],
    row_weights: AxisWeights,
    column_weights: AxisWeights,
    slice_weights: AxisWeights,
) -> Float32:
    """Resamples a stack along its own three axes, reading each slice once.

    Args:
      slices: the stack in order, (rows, columns) samples each.
      row_weights: from rows to output rows.
      column_weights: from columns to output columns.
      slice_weights: from slices to output slices.

    Returns:
      (output slices, output rows, output columns) float32 of rescaled values; 0 outside.
    """
    outputs, rows = row_weights.matrix.shape
    final, columns = column_weights.matrix.shape
    matrix = slice_weights.matrix
    row_blocks, column_blocks = row_weights.blocks, column_weights.blocks
    touched = [np.flatnonzero(column).tolist() for column in matrix.T]
    last_slices = {plane: index for index, planes in enumerate(touched) for plane in planes}
    result = np.zeros((len(matrix), outputs, final), dtype=np.float32)
    constants = np.zeros(len(matrix), dtype=np.float64)
    passes = _Passes(_Box(rows, 0, columns, 0), row_blocks, column_blocks)
    # Output planes that slices still to come will add to, of the box alone; and finished ones.
    open_planes: dict[int, Float32] = {}
    spare: list[Float32] = []
    for index, stored in enumerate(slices):
        if not touched[index]:
            continue
        lines = np.empty(0, np.float32)
        # A slice of zeros adds nothing but its intercept.
        if not stored.blank or stored.samples.item(0):
            box = _grown(passes.box, stored.samples)
            if box != passes.box:
                old, passes = passes, _Passes(box, row_blocks, column_blocks)
                open_planes = {
                    plane: passes.widened(values, old) for plane, values in open_planes.items()
                }
                spare = []
            lines = passes.rows(stored.samples[box.top : box.bottom, box.left : box.right])
        for plane in touched[index]:
            weight = float(matrix[plane, index])
            constants[plane] += weight * stored.intercept
            if lines.size and plane in open_planes:
                target = open_planes[plane].reshape(-1)
                blas.saxpy(lines.reshape(-1), target, a=weight * stored.slope)
            elif lines.size:
                target = spare.pop() if spare else np.empty_like(lines)
                open_planes[plane] = np.multiply(
                    lines, np.float32(weight * stored.slope), out=target
                )
            if index == last_slices[plane] and plane in open_planes:
                spare.append(open_planes.pop(plane))
                product = passes.columns(spare[-1].T).T
                result[plane, passes.rows.outputs, passes.columns.outputs] = product
    if constants.any():
        inside = row_weights.inside[:, None] & column_weights.inside[None, :]
        result += constants.astype(np.float32)[:, None, None] * inside
    return result


class _Box(NamedTuple):
    """Rows top..bottom and columns left..right of a slice; empty while an end is not after."""

    top: int
    bottom: int
    left: int
    right: int


# Rows and columns by which a box grows: rarely and far, rather than slice by slice.
_GROWTH = 32


# Unsigned integers of the same bytes.
_BITS = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


def _grown(box: _Box, samples: npt.NDArray[np.generic]) -> _Box:
    """The box grown to hold all samples of a slice that are not zero: the rest adds nothing.

    The box never shrinks from slice to slice, so only what lies outside it is searched.
    """
    rows, columns = samples.shape
    bits = np.ascontiguousarray(samples).view(_BITS[samples.itemsize])
    highest = np.maximum.reduce  # of all its kin the fastest
    if box.bottom > box.top:
        flat, width = bits.reshape(-1), box.right - box.left
        # In memory what lies right of the box in one row touches what lies left of it in the next.
        start, end = box.top * columns + box.left, (box.bottom - 1) * columns + box.right
        between = flat[start + width : end].reshape(-1, columns)[:, : columns - width]
        if not (
            (start and highest(flat[:start]))
            or (end < flat.size and highest(flat[end:]))
            or (between.size and highest(between, axis=None))
        ):
            return box
    used_rows = np.flatnonzero(highest(bits, axis=1))
    if not used_rows.size:
        return box
    used_columns = np.flatnonzero(highest(bits, axis=0))
    return _Box(
        min(box.top, int(used_rows[0]) // _GROWTH * _GROWTH),
        max(box.bottom, min(-(-int(used_rows[-1] + 1) // _GROWTH) * _GROWTH, rows)),
        min(box.left, int(used_columns[0]) // _GROWTH * _GROWTH),
        max(box.right, min(-(-int(used_columns[-1] + 1) // _GROWTH) * _GROWTH, columns)),
    )


class _Banded:
    """Multiplies matrices by a band of weights along their first axis, block by block.

    A block's samples become float32 in a buffer that stays in the processor's cache, which a whole
    slice would not; the operands are made once for all slices.

    Attributes:
      outputs: those that are computed; the others would be zero.
      lines: (those outputs, width), the latest product.
    """

    def __init__(self, blocks: Sequence[_Block], low: int, high: int, width: int) -> None:
        """Prepares the products.

        Args:
          blocks: the weights.
          low, high: inputs before and after are zero and not looked at.
          width: columns of the matrices.
        """
        used = [block for block in blocks if block.low < high and low < block.high and width]
        first, last = (used[0].first, used[-1].last) if used else (0, 0)
        self.outputs = slice(first, last)
        self.lines = np.empty((last - first, width), dtype=np.float32)
        groups = [used[at : at + _TOGETHER] for at in range(0, len(used), _TOGETHER)]
        spans = [
            (max(min(block.low for block in group), low), min(max(b.high for b in group), high))
            for group in groups
        ]
        buffer = np.empty(max((e - s for s, e in spans), default=0) * width, dtype=np.float32)
        self._steps = []
        for group, (start, end) in zip(groups, spans, strict=True):
            samples = buffer[: (end - start) * width].reshape(end - start, width)
            operands = []
            for block in group:
                lowest, highest = max(block.low, low), min(block.high, high)
                weights = block.weights[:, lowest - block.low : highest - block.low]
                lines = self.lines[block.first - first : block.last - first]
                # Fortran order sees the transposes: lines.T = samples.T @ weights.T.
                inputs = samples[lowest - start : highest - start].T
                operands.append((inputs, np.asfortranarray(weights.T), lines.T))
            self._steps.append((slice(start - low, end - low), samples, operands))

    def __call__(self, matrix: npt.NDArray[Any]) -> Float32:
        """`lines`, valid until the next call, of inputs low..high: a matrix (high - low, width)."""
        for inputs, samples, operands in self._steps:
            samples[:] = matrix[inputs]
            for left, right, product in operands:
                # alpha, a, b, beta, c, trans_a, trans_b, overwrite_c: by name they would cost as
                # much again as the product.
                blas.sgemm(1.0, left, right, 0.0, product, 0, 0, 1)
        return self.lines


class _Passes:
    """The two passes within planes, of slices that are zero outside a box.

    Attributes:
      box: the box.
      rows: makes lines of a slice's box: output rows, the box's columns.
    """

    def __init__(self, box: _Box, rows: Sequence[_Block], columns: Sequence[_Block]) -> None:
        self.box = box
        self.rows = _Banded(rows, box.top, box.bottom, max(box.right - box.left, 0))
        self._column_blocks = columns

    @functools.cached_property
    def columns(self) -> _Banded:
        """Makes output columns of lines, both turned: a box often grows before a plane is done."""
        return _Banded(self._column_blocks, self.box.left, self.box.right, len(self.rows.lines))

    def widened(self, lines: Float32, old: _Passes) -> Float32:
        """Lines of a smaller box in their place among this one's."""
        wide = np.zeros_like(self.rows.lines)
        top, left = old.rows.outputs.start - self.rows.outputs.start, old.box.left - self.box.left
        wide[top : top + len(lines), left : left + lines.shape[1]] = lines
        return wide
