"""What of a volume is head, not air, and how far it reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.geometry import Array
from beam_jobs.core.reduction import Float32

# Voxels a statistic is taken over: enough for a percentile, few enough to be free.
SAMPLE = 60_000
# Share of the range that resampling may add to an exact background: weights of 1e-16 where a
# triangle ends, sums of weights beside 1, positions in float32. Less than a step of 12 bits.
ROUNDING = 1e-4


def foreground_threshold(values: npt.NDArray[Any], rounding: float = ROUNDING) -> float:
    """What is above it is head, not air: a tenth of the way up the robust intensity range.

    The range is the 2nd to 98th percentile of the values above the minimum, so that the exact
    background of a skull-stripped volume does not count. Source: S. Smith, "Fast robust automated
    brain extraction", Human Brain Mapping 17 (2002), thresholds t2, t98 and t.

    Args:
      values: (n,) or of any shape, none of them NaN.
      rounding: share of the whole range up to which values are the minimum.
    """
    bottom = float(values.min())
    above = values[values > bottom + rounding * (float(values.max()) - bottom)]
    if not above.size:
        return bottom
    low, high = percentiles(above, (2, 98))
    return low + 0.1 * (high - low)


def percentiles(values: npt.NDArray[Any], wanted: tuple[float, float]) -> tuple[float, float]:
    """`np.percentile` to the bit, without most of its fixed cost, which small series feel.

    Args:
      values: (n,), n >= 1, none of them NaN.
      wanted: 0 to 100.
    """
    last = len(values) - 1
    ranks = [last * (percent / 100) for percent in wanted]
    below = [min(int(rank), max(last - 1, 0)) for rank in ranks]
    sorted_there = np.partition(values, sorted({*below, *(min(k + 1, last) for k in below)}))
    found = []
    for rank, index in zip(ranks, below, strict=True):
        low, high = sorted_there[index], sorted_there[min(index + 1, last)]
        step, share = float(high - low), rank - index
        # Which of the two is nearer: numpy's rounding.
        found.append(float(low) + step * share if share < 0.5 else float(high) - step * (1 - share))
    return found[0], found[1]


def foreground_extent(
    values: Float32, affine: Array, rounding: float = ROUNDING
) -> tuple[Array, Array]:
    """Lower and upper end of the foreground along each patient axis, LPS mm, two of shape (3,).

    An axis' ends are the outermost 4 mm bins that hold at least a tenth of the foreground
    voxels of its fullest bin: scattered noise and single black slices move neither.

    Args:
      values: (row, column, slice) of some lattice.
      affine: 4x4, that lattice's indices to LPS mm.
      rounding: as `foreground_threshold` has it.
    """
    stride = max(1, int(np.ceil((values.size / SAMPLE) ** (1 / 3))))
    sample = np.ascontiguousarray(values[::stride, ::stride, ::stride])
    indices = np.argwhere(sample > foreground_threshold(sample, rounding)) * stride
    if not len(indices):
        indices = np.array([[0, 0, 0], np.asarray(values.shape) - 1])
    points = indices @ affine[:3, :3].T + affine[:3, 3]
    ends = np.empty((2, 3))
    for axis, along in enumerate(np.ascontiguousarray(points.T)):
        bins = np.floor((along - along.min()) / 4.0).astype(int)
        counts = np.bincount(bins)
        full = np.flatnonzero(counts >= counts.max() / 10)
        kept = along[(bins >= full[0]) & (bins <= full[-1])]
        ends[:, axis] = kept.min(), kept.max()
    return ends[0], ends[1]
