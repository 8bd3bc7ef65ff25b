"""A network's last feature map, and where its positions lie in the volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from beam_jobs.common.cli import UsageError
from trainer.networks.graph import calls
from trainer.networks.layers import ChannelsToBatch, EdgeSlices, SlicesToBatch
from trainer.networks.registry import Standardise

# What they give is the volume itself.
_VOLUME = (layers.InputLayer, Standardise, ChannelsToBatch, SlicesToBatch)
_PADDING = (layers.ZeroPadding2D, layers.ZeroPadding3D, EdgeSlices)
_CROPPING = (layers.Cropping2D, layers.Cropping3D)
_Grid = list[tuple[float, float]]  # of each axis: the voxel of its first position, and the step


class FeatureMap(NamedTuple):
    """A feature map within a network's graph.

    Attributes:
      tensor: (folded, row, column, slice, channel), or (folded, row, column, channel) where every
        slice is mapped for itself.
      starts: of each axis, the voxel at the centre of what its first position sees.
      strides: of each axis, voxels from one position to the next.
    """

    tensor: Any
    starts: tuple[float, ...]
    strides: tuple[float, ...]


def last_feature_map(model: keras.Model) -> FeatureMap:
    """The last tensor of a graph that has positions, and their places.

    Valid convolutions eat the border: a map stretched over the whole grid would be off by many
    voxels. So the centre of each position's field of view is followed from call to call; what
    changes the size in a way that is not known spreads its positions evenly over what it was given.

    Raises:
      UsageError: there is none: a network that hides its layers, or works on tokens.
    """
    volume = model.inputs[0].shape[1:4]
    places: dict[int, _Grid] = {id(model.inputs[0]): [(0.0, 1.0)] * 3}
    last: tuple[Any, _Grid] | None = None
    for layer, inputs, outputs in calls(model):
        if not inputs or len(outputs) != 1:
            continue
        output = outputs[0]
        rank = len(output.shape)
        source = next((given for given in inputs if id(given) in places), None)
        if rank == 5 and (source is None or len(source.shape) != 5):  # a grid made of tokens
            sizes = zip(volume, output.shape[1:4], strict=True)
            grid = [_spread(0.0, 1.0, *pair) for pair in sizes]
        elif source is None or not (rank == len(source.shape) or isinstance(layer, SlicesToBatch)):
            continue
        elif isinstance(layer, SlicesToBatch):
            grid = places[id(source)][:2]
        else:
            grid = _behind(layer, places[id(source)], source.shape[1:-1], output.shape[1:-1])
        places[id(output)] = grid
        if math.prod(output.shape[1:-1]) > 1 and not isinstance(layer, _VOLUME):
            last = output, grid
    if last is None:
        raise UsageError(
            f"--method gradcam: {model.name} shows no feature map of its own in its graph; "
            "integrated_gradients needs none"
        )
    tensor, grid = last
    return FeatureMap(tensor, tuple(start for start, _ in grid), tuple(step for _, step in grid))


def _behind(layer: Any, grid: _Grid, given: Sequence[int], gives: Sequence[int]) -> _Grid:
    """The places of a layer's output, from those of its input; lengths of each axis."""
    axes = len(grid)
    if isinstance(layer, (*_PADDING, *_CROPPING)):
        padded = isinstance(layer, _PADDING)
        cut = [-pair[0] for pair in layer.padding] if padded else [p[0] for p in layer.cropping]
        pairs = zip(grid, cut, strict=True)
        return [(start + first * step, step) for (start, step), first in pairs]
    kernel = getattr(layer, "kernel_size", None) or getattr(layer, "pool_size", None)
    if kernel is None or "Transpose" in type(layer).__name__:
        triples = zip(grid, given, gives, strict=True)
        return [_spread(*place, length, out) for place, length, out in triples]
    dilation = getattr(layer, "dilation_rate", 1)
    sizes, strides, apart = (_each(value, axes) for value in (kernel, layer.strides, dilation))
    padding = getattr(layer, "padding", "same")
    return [
        _followed(
            *grid[axis],
            (sizes[axis] - 1) * apart[axis] + 1,
            strides[axis],
            padding,
            given[axis],
            gives[axis],
        )
        for axis in range(axes)
    ]


def _followed(
    start: float, step: float, size: int, stride: int, padding: str, length: int, out: int
) -> tuple[float, float]:
    """Start and step behind a convolution or a pooling along one axis."""
    before = 0
    if padding == "same":  # TensorFlow's: the odd voxel goes behind
        before = max((out - 1) * stride + size - length, 0) // 2
    return start + step * ((size - 1) / 2 - before), step * stride


def _spread(start: float, step: float, length: int, out: int) -> tuple[float, float]:
    """Start and step of positions that lie evenly within those they were made of."""
    if out == length:
        return start, step
    wide = step * length / out
    return start + (wide - step) / 2, wide


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value)
