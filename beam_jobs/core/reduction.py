"""A stack of slices reduced along its own three axes, each slice once, as it arrives.

Each slice is reduced along its rows and added to the few output planes that it touches, so that the
full-resolution volume never exists.

Kernel: a triangle as wide as the output step (linear interpolation where the grid is finer than
the input), placed at the slices' true positions and corrected so that each output weighs its
inputs to exactly one and to exactly its own position: a linear ramp stays that ramp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import blas

from beam_jobs.core.dicom.pixels import StoredSlice

Float32 = npt.NDArray[np.float32]

# Output rows multiplied at once: wide enough for BLAS, narrow enough to stay banded.
_BLOCK = 8


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
    """

    matrix: Float32
    inside: npt.NDArray[np.bool_]

    @property
    def blocks(self) -> list[_Block]:
        """The matrix as a band of dense blocks of at most `_BLOCK` outputs."""
        blocks = []
        for first in range(0, len(self.matrix), _BLOCK):
            part = self.matrix[first : first + _BLOCK]
            used = np.flatnonzero(part.any(axis=0))
            if used.size:
                low, high = int(used[0]), int(used[-1]) + 1
                blocks.append(_Block(first, first + len(part), low, high, part[:, low:high].copy()))
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
        return AxisWeights(matrix=inside[:, None].astype(np.float32), inside=inside)
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
    offset = x[None, :] - y[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(offset) / half[:, None]) * cells
    total = weights.sum(axis=1)
    first = (weights * offset).sum(axis=1)
    second = (weights * offset**2).sum(axis=1)
    # w' = w (a + b offset) with sum w' = 1 and sum w' offset = 0.
    determinant = total * second - first**2
    safe = determinant > 1e-12 * total**2 * half**2
    a = np.where(safe, second / np.where(safe, determinant, 1.0), 1.0 / total)
    b = np.where(safe, -first / np.where(safe, determinant, 1.0), 0.0)
    matrix = weights * (a[:, None] + b[:, None] * offset) * inside[:, None]
    return AxisWeights(matrix=matrix.astype(np.float32), inside=inside)


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
    outputs, inputs = row_weights.matrix.shape
    final, columns = column_weights.matrix.shape
    matrix = slice_weights.matrix
    row_blocks, column_blocks = row_weights.blocks, column_weights.blocks
    touched = [np.flatnonzero(column).tolist() for column in matrix.T]
    last_slices = {plane: index for index, planes in enumerate(touched) for plane in planes}
    result = np.zeros((len(matrix), outputs, final), dtype=np.float32)
    constants = np.zeros(len(matrix), dtype=np.float64)
    # Output planes that slices still to come will add to, of the box's columns alone.
    open_planes: dict[int, Float32] = {}
    work = np.empty(inputs * columns, dtype=np.float32)
    reduced = np.empty(outputs * columns, dtype=np.float32)
    turned = np.empty(final * outputs, dtype=np.float32)
    box = _Box(inputs, 0, columns, 0)
    width = first = last = 0
    for index, stored in enumerate(slices):
        if not touched[index]:
            continue
        flat = reduced[:0]
        # A slice of zeros adds nothing but its intercept.
        if not stored.blank or stored.samples.item(0):
            old, box = box, _grown(box, stored.samples)
            height, width = max(box.bottom - box.top, 0), max(box.right - box.left, 0)
            if box[2:] != old[2:]:
                for plane, values in open_planes.items():
                    open_planes[plane] = np.zeros((outputs, width), dtype=np.float32)
                    shift = old.left - box.left
                    open_planes[plane][:, shift : shift + values.shape[1]] = values
            image = work[: height * width].reshape(height, width)
            image[:] = stored.samples[box.top : box.bottom, box.left : box.right]
            lines = reduced[: outputs * width].reshape(outputs, width)
            first, last = _reduce(image, box.top, row_blocks, lines)
            flat = lines[first:last].reshape(-1)
        for plane in touched[index]:
            weight = float(matrix[plane, index])
            constants[plane] += weight * stored.intercept
            if plane not in open_planes:
                open_planes[plane] = np.zeros((outputs, width), dtype=np.float32)
            if flat.size:
                target = open_planes[plane][first:last].reshape(-1)
                blas.saxpy(flat, target, a=weight * stored.slope)
            if index == last_slices[plane]:
                finished = np.ascontiguousarray(open_planes.pop(plane)[first:last].T)
                lanes = turned[: final * (last - first)].reshape(final, last - first)
                start, end = _reduce(finished, box.left, column_blocks, lanes)
                result[plane, first:last, start:end] = lanes[start:end].T
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


def _grown(box: _Box, samples: npt.NDArray[np.generic]) -> _Box:
    """The box grown to hold all samples of a slice that are not zero: the rest adds nothing.

    The box never shrinks from slice to slice, so only what lies outside it is searched.
    """
    rows, columns = samples.shape
    word = next(size for size in (8, 4, 2, 1) if columns * samples.itemsize % size == 0)
    words = np.ascontiguousarray(samples).view(f"u{word}")
    each = word // samples.itemsize
    any_bit = np.bitwise_or.reduce
    if box.bottom > box.top:
        flat, stride = words.reshape(-1), words.shape[1]
        left, right = box.left // each, box.right // each
        # In memory what lies right of the box in one row touches what lies left of it in the next.
        start, end = box.top * stride + left, (box.bottom - 1) * stride + right
        between = flat[start - left + right : end].reshape(-1, stride)[:, : stride - right + left]
        if not (any_bit(flat[:start]) or any_bit(flat[end:]) or any_bit(between, axis=None)):
            return box
    used_rows = np.flatnonzero(any_bit(words, axis=1))
    if not used_rows.size:
        return box
    used_columns = np.flatnonzero(any_bit(words, axis=0))
    return _Box(
        min(box.top, int(used_rows[0]) // _GROWTH * _GROWTH),
        max(box.bottom, min(-(-int(used_rows[-1] + 1) // _GROWTH) * _GROWTH, rows)),
        min(box.left, int(used_columns[0]) * each // _GROWTH * _GROWTH),
        max(box.right, min(-(-int(used_columns[-1] + 1) * each // _GROWTH) * _GROWTH, columns)),
    )


def _reduce(image: Float32, offset: int, blocks: Sequence[_Block], out: Float32) -> tuple[int, int]:
    """out[first:last] = weights @ image along the first axis.

    Args:
      image: (inputs, n), C order: inputs `offset` onwards; those before and after are zero.
      offset: of the image.
      blocks: the weights.
      out: (outputs, n), C order.

    Returns:
      The range of outputs that was written; the others would be zero.
    """
    start, end = 0, 0
    if not image.size:
        return start, end
    for block in blocks:
        first, last = max(block.low, offset), min(block.high, offset + len(image))
        if first >= last:
            continue
        # Fortran order sees the transposes: out.T = image.T @ weights.T.
        blas.sgemm(
            1.0,
            image[first - offset : last - offset].T,
            block.weights[:, first - block.low : last - block.low].T,
            beta=0.0,
            c=out[block.first : block.last].T,
            overwrite_c=True,
        )
        start = start if end else block.first
        end = block.last
    return start, end
