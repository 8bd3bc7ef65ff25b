"""Depthwise convolutions whose kernel's gradient costs no more than the convolution.

oneDNN has a fast gradient of a depthwise kernel where the kernel is at most three columns wide and
lies within the map; every other goes to one that is fifty times slower: 5×5 kernels everywhere, and
any kernel on the small maps at a network's end. Here maps are padded first, taps that would only
ever meet padding are left out, and a wide kernel's gradient is taken three columns at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_WIDEST = 3  # columns that the fast gradient takes


def depthwise(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """The sums of Keras's depthwise convolution, and of the project's in 3D.

    Args:
      x: (batch, row, column, channel) or (batch, row, column, slice, channel), float32; all but the
        batch is known.
      kernel: as many axes of taps, then (channel, 1); float32.
      stride: along every axis.
      padding: "same" or "valid".
    """
    pads, taps = [], []
    for length, size in zip(x.shape[1:-1], kernel.shape, strict=False):
        first, last, before, after = _met(int(length), int(size), stride, padding)
        taps.append(slice(first, last + 1))
        pads.append((before, after))
    kernel = kernel[tuple(taps)]
    x = tf.pad(x, [(0, 0), *pads, (0, 0)])
    result: tf.Tensor = (_volumes if len(pads) == 3 else _planes)(stride)(x, kernel)
    return result


def _met(length: int, size: int, stride: int, padding: str) -> tuple[int, int, int, int]:
    """The first and the last tap that meet the map anywhere, and the padding that those need."""
    if padding == "valid":
        return 0, size - 1, 0, 0
    out = -(-length // stride)
    total = max((out - 1) * stride + size - length, 0)
    before = total // 2
    first, last = max(before - (out - 1) * stride, 0), min(length - 1 + before, size - 1)
    return first, last, before - first, max((out - 1) * stride + last - before + 1 - length, 0)


def _planes(stride: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A "valid" convolution of (batch, row, column, channel)."""

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (
                _map_gradient(tf.shape(x), kernel, upstream, stride),
                _kernel_gradient(x, kernel.shape, upstream, stride),
            )

        return _plane(x, kernel, stride), gradient

    joined: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.custom_gradient(convolve)
    return joined


def _volumes(stride: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A "valid" convolution of (batch, row, column, slice, channel): planes, with rows as batch.

    Plane i of the kernel meets rows i, i + stride, ...: those of phase i % stride, from the
    i // stride-th on.
    """

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        size, (rows, *plane) = int(kernel.shape[0]), x.shape[1:]
        out = (rows - size) // stride + 1
        met = (size - 1) // stride + out  # rows of a phase
        # Phases lie side by side, so that a plane's rows are copied whole.
        x = tf.pad(x, [(0, 0), (0, max(met * stride - rows, 0)), (0, 0), (0, 0), (0, 0)])
        x = tf.reshape(x[:, : met * stride], (-1, met, stride * plane[0], *plane[1:]))

        def taken(number: int) -> tf.Tensor:
            first, phase = number // stride, number % stride * plane[0]
            part = x[:, first : first + out, phase : phase + plane[0]]
            return tf.reshape(part, (-1, *plane))

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            upstream = tf.reshape(upstream, (-1, *upstream.shape[2:]))
            kernels, maps = [], []
            for number in range(size):
                part = taken(number)
                kernels.append(_kernel_gradient(part, kernel.shape[1:], upstream, stride))
                part = _map_gradient(tf.shape(part), kernel[number], upstream, stride)
                first, phase = number // stride, number % stride
                around = [(first, met - first - out), (phase, stride - 1 - phase)]
                part = tf.reshape(part, (-1, out, 1, *plane))
                maps.append(tf.pad(part, [(0, 0), *around, (0, 0), (0, 0), (0, 0)]))
            whole = tf.reshape(tf.add_n(maps), (-1, met * stride, *plane))[:, :rows]
            behind = max(rows - met * stride, 0)  # never met
            return tf.pad(whole, [(0, 0), (0, behind)] + [(0, 0)] * 3), tf.stack(kernels)

        parts = [_plane(taken(number), kernel[number], stride) for number in range(size)]
        total = tf.add_n(parts)
        return tf.reshape(total, (-1, out, *total.shape[1:])), gradient

    joined: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = tf.custom_gradient(convolve)
    return joined


def _plane(x: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "VALID")


def _map_gradient(
    shape: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor, stride: int
) -> tf.Tensor:
    strides = [1, stride, stride, 1]
    return tf.nn.depthwise_conv2d_backprop_input(shape, kernel, upstream, strides, "VALID")


def _kernel_gradient(
    x: tf.Tensor, shape: tf.TensorShape, upstream: tf.Tensor, stride: int
) -> tf.Tensor:
    """Of a kernel (row, column, channel, 1), a few columns at a time."""
    rows, columns, channels, _ = shape
    within, parts = (int(upstream.shape[2]) - 1) * stride, []
    for first in range(0, columns, _WIDEST):
        width = min(_WIDEST, columns - first)
        parts.append(
            tf.nn.depthwise_conv2d_backprop_filter(
                x[:, :, first : first + within + width],
                [rows, width, channels, 1],
                upstream,
                [1, stride, stride, 1],
                "VALID",
            )
        )
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
