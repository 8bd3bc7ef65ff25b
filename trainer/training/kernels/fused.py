"""TensorFlow's own operations in place of Keras's, where a step on a CPU gains by them.

Keras normalises a batch in some twenty operations and updates a weight in ten, each of which reads
and writes the whole array, and its sums over all axes but the channels' are slow: together a third
of ResNet10's step. TensorFlow has one operation for each. Layers and optimizer stay what they are,
a user's own too: only the graph of a training step is made of another operation.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from trainer.networks.layers import Conv2D, Conv3D, DepthwiseConv2D, DepthwiseConv3D
from trainer.training.kernels.depthwise import depthwise


@contextlib.contextmanager
def fused(network: keras.Model, optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """A batch is normalised and a weight updated by one operation each, while the block runs.

    Depthwise convolutions are `depthwise`'s, and those of single voxels products of matrices. All
    give Keras's numbers up to rounding. Layers and optimizers that do something else besides
    (masks, other axes, AMSGrad, a subclass) keep their own way, and so do all on several replicas
    and where there is a GPU: there XLA joins operations.

    Args:
      network: whose training step is traced within the block.
      optimizer: which updates it there.
    """
    patched: list[tuple[Any, str]] = []
    alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
    if alone and not tf.config.list_physical_devices("GPU"):
        for layer in network._flatten_layers(include_self=False):
            for name, function in _own(layer):
                setattr(layer, name, functools.partial(function, layer))
                patched.append((layer, name))
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # of LossScaleOptimizer
        if _updates_plainly(inner):
            inner.update_step = functools.partial(_update, inner, {})
            patched.append((inner, "update_step"))
    try:
        yield
    finally:
        for owner, name in patched:
            delattr(owner, name)


def _own(layer: keras.layers.Layer) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Names of a layer's methods, and what takes their place."""
    kind = type(layer)
    if kind in (DepthwiseConv2D, DepthwiseConv3D):
        yield "call", _convolve
    elif kind in (Conv2D, Conv3D) and {*layer.kernel_size, *layer.strides, layer.groups} == {1}:
        yield "convolution_op", _mix
    elif kind is keras.layers.BatchNormalization and not (layer.synchronized or layer.renorm):
        yield "call", _normalise


def _mix(layer: Conv2D | Conv3D, x: Any, kernel: Any) -> Any:
    """A convolution of single voxels: a product of matrices, which costs less around it."""
    entering, leaving = kernel.shape[-2:]
    rows = tf.cast(tf.reshape(x, (-1, entering)), tf.float32)
    mixed = tf.matmul(rows, tf.cast(tf.reshape(kernel, (entering, leaving)), tf.float32))
    return tf.cast(tf.reshape(mixed, (-1, *x.shape[1:-1], leaving)), x.dtype)


def _convolve(layer: DepthwiseConv2D | DepthwiseConv3D, x: Any) -> Any:
    stride = layer.strides if isinstance(layer.strides, int) else layer.strides[0]
    kernel = tf.cast(layer.kernel, tf.float32)
    return tf.cast(depthwise(tf.cast(x, tf.float32), kernel, stride, layer.padding), x.dtype)


def _normalise(
    layer: keras.layers.BatchNormalization, inputs: Any, training: Any = None, mask: Any = None
) -> Any:
    shape = inputs.shape[1:]
    plain = mask is None and None not in shape and layer.axis in (-1, len(shape))
    if not (plain and training and layer.trainable):
        return type(layer).call(layer, inputs, training=training, mask=mask)
    channels = shape[-1]
    x = tf.reshape(tf.cast(inputs, tf.float32), (-1, math.prod(shape[:-1]), 1, channels))
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=layer.gamma if layer.scale else tf.ones((channels,)),
        offset=layer.beta if layer.center else tf.zeros((channels,)),
        mean=tf.zeros((0,)),
        variance=tf.zeros((0,)),
        epsilon=layer.epsilon,
    )
    # What it gives for a moving average divides by one less than the count; Keras's does not.
    count = tf.cast(tf.size(x) // channels, tf.float32)
    found = mean, variance * ((count - 1.0) / count)
    for moving, value in zip((layer.moving_mean, layer.moving_variance), found, strict=True):
        moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
    return tf.cast(tf.reshape(y, (-1, *shape)), layer.compute_dtype)


def _updates_plainly(optimizer: keras.optimizers.Optimizer) -> bool:
    return (
        type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW) and not optimizer.amsgrad
    )


def _update(
    optimizer: keras.optimizers.Adam,
    powers: dict[Any, tuple[Any, Any]],
    gradient: Any,
    weight: Any,
    rate: Any,
) -> None:
    """`powers` of the betas by graph and dtype: made once, not for each of hundreds of weights."""
    if isinstance(gradient, tf.IndexedSlices):
        type(optimizer).update_step(optimizer, gradient, weight, rate)
        return
    index = optimizer._get_variable_index(weight)
    place = tf.compat.v1.get_default_graph(), weight.dtype
    if place not in powers:
        step = tf.cast(optimizer.iterations + 1, weight.dtype)
        powers[place] = optimizer.beta_1**step, optimizer.beta_2**step
    tf.raw_ops.ResourceApplyAdam(
        var=weight.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=powers[place][0],
        beta2_power=powers[place][1],
        lr=tf.cast(rate, weight.dtype),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        epsilon=optimizer.epsilon,
        grad=tf.cast(gradient, weight.dtype),
    )
