"""Layers that Keras lacks. All of them are registered, so that .keras files load by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers, ops

from beam_jobs.common.cli import UsageError

register = keras.saving.register_keras_serializable("voxelbeam")


def _in_float32_on_cpu(operation: Callable[..., Any], *tensors: Any) -> Any:
    """`operation` of tensors of one dtype; 16 bits without a GPU are worked on in float32.

    TensorFlow's CPU has no pooling of float16 in 3D and convolves it 200 times more slowly than
    float32. Its weight gradients of bfloat16 convolutions (oneDNN's) hold uninitialised memory
    where a map has few voxels: 3x3x3 on 2x2x2 voxels, and any tap that only ever meets padding. A
    GPU adds up in float32 and rounds once too. Decided at each trace, not in the configuration, so
    that a model trained on a GPU runs elsewhere.
    """
    kind = keras.backend.standardize_dtype(tensors[0].dtype)
    if kind not in ("float16", "bfloat16") or has_gpu():
        return operation(*tensors)
    return ops.cast(operation(*(ops.cast(tensor, "float32") for tensor in tensors)), kind)


def has_gpu() -> bool:
    """Whether there is one that computes."""
    return bool(keras.distribution.list_devices("gpu"))


@contextlib.contextmanager
def under_policy(name: str) -> Iterator[None]:
    """A precision policy for a while."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def precision_kept(of: str) -> Iterator[None]:
    """Refuses a user's code that changes the precision policy, and puts it back.

    Raises:
      UsageError: it did; the message begins with `of`.
    """
    policy = keras.config.dtype_policy()
    try:
        yield
        changed = keras.config.dtype_policy()
    finally:
        keras.config.set_dtype_policy(policy)
    if changed.name != policy.name:
        raise UsageError(
            f"{of} changes the precision from {policy.name} to {changed.name}, by "
            "set_dtype_policy or clear_session: take that away; --precision sets it"
        )


class _SafeConvolution:
    """A Keras convolution that is right in every precision on every device."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return _in_float32_on_cpu(super().convolution_op, inputs, kernel)  # type: ignore[misc]


@register
class Conv2D(_SafeConvolution, layers.Conv2D):
    """Keras's own, in every precision on every device."""


@register
class Conv3D(_SafeConvolution, layers.Conv3D):
    """Keras's own, in every precision on every device."""


@register
class DepthwiseConv2D(layers.DepthwiseConv2D):
    """Keras's own, in every precision on every device; without bias, activation or dilation."""

    def call(self, x: Any) -> Any:
        """(batch, row, column, channel) → the same, each axis divided by the stride."""

        def convolve(x: Any, kernel: Any) -> Any:
            return ops.depthwise_conv(x, kernel, strides=self.strides, padding=self.padding)

        return _in_float32_on_cpu(convolve, x, self.kernel)


@register
class DepthwiseConv3D(layers.Layer):
    """One k×k×k filter a channel, no bias; the same stride along every axis.

    Keras has none, and its grouped Conv3D runs on TensorFlow by compiling each call with XLA. Here
    the k planes of the kernel are k 2D depthwise convolutions over (column, slice), with the rows
    in the batch, added with their shifts: the same sum, from kernels that every backend has.
    """

    def __init__(
        self,
        kernel_size: int,
        strides: int = 1,
        padding: str = "same",
        depthwise_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.depthwise_initializer = keras.initializers.get(depthwise_initializer)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size,) * 3 + (input_shape[-1], 1),
            initializer=self.depthwise_initializer,
        )

    def call(self, x: Any) -> Any:
        """(batch, row, column, slice, channel) → the same, each axis divided by the stride."""
        return _in_float32_on_cpu(self._convolve, x, self.kernel)

    def _convolve(self, x: Any, kernel: Any) -> Any:
        size, stride = self.kernel_size, self.strides
        rows, columns, slices, channels = x.shape[1:]
        out = self._out(rows)
        before = max((out - 1) * stride + size - rows, 0) // 2
        planes = out + (size - 1) // stride
        after = planes * stride - rows - before
        x = ops.pad(x, ((0, 0), (before, after), (0, 0), (0, 0), (0, 0)))
        # Plane i of the kernel meets rows i, i + stride, ...: those of phase i % stride, from the
        # i // stride-th on. A phase is convolved whole, and so kept but once for the gradient.
        phases = [
            ops.reshape(x[:, phase::stride], (-1, columns, slices, channels))
            for phase in range(stride)
        ]
        total = None
        for plane in range(size):
            part = ops.depthwise_conv(
                phases[plane % stride], kernel[plane], strides=stride, padding=self.padding
            )
            part = ops.reshape(part, (-1, planes, *part.shape[1:]))
            part = part[:, plane // stride : plane // stride + out]
            total = part if total is None else total + part
        return total

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], *map(self._out, input_shape[1:4]), input_shape[4])

    def _out(self, length: int) -> int:
        """What is left of an axis."""
        used = 0 if self.padding == "same" else self.kernel_size - 1
        return -(-(length - used) // self.strides)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            # Absent as in the files of versions that know no other.
            **({} if self.padding == "same" else {"padding": self.padding}),
            "depthwise_initializer": keras.initializers.serialize(self.depthwise_initializer),
        }


@register
class EdgeSlices(layers.Layer):
    """Repeats the first slice before it and the last one behind it, so many times each."""

    def __init__(self, before: int, after: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.before, self.after = before, after

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """What is added before and behind each axis, as those of `ZeroPadding3D`."""
        return ((0, 0), (0, 0), (self.before, self.after))

    def call(self, x: Any) -> Any:
        """(batch, row, column, slice, channel) → more slices."""
        parts = [x[:, :, :, :1]] * self.before + [x] + [x[:, :, :, -1:]] * self.after
        return ops.concatenate(parts, axis=3)

    def compute_output_shape(self, input_shape: Any) -> Any:
        slices = input_shape[3] + self.before + self.after
        return (*input_shape[:3], slices, input_shape[4])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "before": self.before, "after": self.after}


@register
class ZeroChannels(layers.Layer):
    """Channels of zeros behind those that there are, up to so many."""

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels

    def call(self, x: Any) -> Any:
        """(batch, ..., n) → (batch, ..., channels)."""
        added = self.channels - x.shape[-1]
        return ops.pad(x, (*((0, 0),) * (len(x.shape) - 1), (0, added)))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channels": self.channels}


class _SafePooling:
    """A Keras pooling for every precision. A maximum is the same in all; a mean is rounded once."""

    def call(self, x: Any) -> Any:
        return _in_float32_on_cpu(super().call, x)  # type: ignore[misc]


@register
class MaxPool3D(_SafePooling, layers.MaxPooling3D):
    """Keras's own, in every precision on every device."""


@register
class AveragePool3D(_SafePooling, layers.AveragePooling3D):
    """Keras's own, in every precision on every device."""


@register
class AttentionPooling(layers.Layer):
    """A mean over all positions with learnt weights (Ilse et al. 2018, attention-based MIL).

    weights = softmax over positions of v · tanh(W x), in float32 whatever the precision policy.
    """

    def __init__(self, units: int = 128, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.units = units

    def build(self, input_shape: Any) -> None:
        self.hidden = self.add_weight(name="hidden", shape=(input_shape[-1], self.units))
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        self.score = self.add_weight(name="score", shape=(self.units, 1))

    def call(self, x: Any) -> Any:
        """(batch, one or more position axes, n) → float32 (batch, n)."""
        x = ops.reshape(x, (-1, _positions(x.shape), x.shape[-1]))
        scores = ops.matmul(ops.tanh(ops.matmul(x, self.hidden) + self.bias), self.score)
        return ops.sum(ops.softmax(scores, axis=1) * x, axis=1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def _positions(shape: Any) -> int:
    count = 1
    for length in shape[1:-1]:
        count *= length
    return count


@register
class ChannelsToBatch(layers.Layer):
    """(batch, row, column, slice, channel) → (batch × channel, row, column, slice, 1)."""

    def call(self, x: Any) -> Any:
        return ops.reshape(ops.transpose(x, (0, 4, 1, 2, 3)), (-1, *x.shape[1:4], 1))


@register
class SlicesToBatch(layers.Layer):
    """(batch, row, column, slice, channel) → (batch × slice, row, column, channel)."""

    def call(self, x: Any) -> Any:
        rows, columns, _, channels = x.shape[1:]
        return ops.reshape(ops.transpose(x, (0, 3, 1, 2, 4)), (-1, rows, columns, channels))


@register
class BatchToSequence(layers.Layer):
    """(batch × length, n) → (batch, length, n): what was folded into the batch comes out again."""

    def __init__(self, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = length

    def call(self, x: Any) -> Any:
        return ops.reshape(x, (-1, self.length, x.shape[-1]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Told, not found out: JAX divides no unknown number of rows by a length."""
        rows = input_shape[0]
        return (None if rows is None else rows // self.length, self.length, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "length": self.length}


@register
class SlicePositions(layers.Layer):
    """Adds a learnt vector a position: attention alone does not know the order of slices."""

    def build(self, input_shape: Any) -> None:
        self.table = self.add_weight(
            name="table",
            shape=input_shape[1:],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, x: Any) -> Any:
        """(batch, slice, n) → the same shape."""
        return x + self.table
