"""What the networks are made of: the options of a NetworkConfig applied to Keras layers.

The rank of the tensor decides between 2D and 3D: volumes are (batch, row, column, slice, channel),
slices (batch, row, column, channel).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
from keras import layers

from trainer.config.network import NetworkConfig
from trainer.networks.layers import AttentionPooling, Conv2D, Conv3D, EdgeSlices, MaxPool3D

# Batch statistics are averaged over about 1 / (1 - momentum) steps. A cohort has few steps an
# epoch: with Keras's 0.99 the averages trail the weights by many epochs, and a network that has
# learnt its training folds predicts held-out patients no better than chance (measured on phantoms:
# AUC 0.3 at a training loss of 0.001).
MOMENTUM = 0.8


def fan_out_normal() -> keras.Initializer:
    """He et al. 2015 over outgoing connections, the published start of all networks with ReLU."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="truncated_normal")


def scaled_filters(filters: int, width: float) -> int:
    """`filters * width` to the next multiple of 8, never less than 90 % of it (EfficientNet's)."""
    wanted = filters * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What a network takes over from the one whose weights it starts from; as published without.

    Attributes:
      padding: of residual networks where a stride is: "same" as TensorFlow pads, the odd voxel
        behind; "symmetric" as PyTorch does, as many before as behind.
      edge: beyond the first and the last slice these are repeated, where other networks meet
        zeros: weights of images then see a volume that is one image in all slices as that image.
      stem_stride: of a residual network's first convolution.
      stride_first: a bottleneck's stride is in its first convolution, not in the 3×3×3.
      epsilon: of batch normalisation.
      direct: where a residual network's shapes differ, its shortcuts have no weights (MedicalNet's
        type A): every other voxel, and zeros for the channels that are new.
    """

    padding: str = "same"
    edge: bool = False
    stem_stride: int = 1
    stride_first: bool = False
    epsilon: float = 1e-3
    direct: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Layers as one configuration wants them.

    Attributes:
      config: whose width, depth, dropout and pooling apply.
      synchronized: batch statistics over all replicas instead of each one's own.
      layout: where the weights come from decides it.
    """

    config: NetworkConfig
    synchronized: bool = False
    layout: Layout = Layout()

    def filters(self, published: int, factor: float = 1.0) -> int:
        """The filters of a layer: `published` at width 1."""
        return scaled_filters(published, factor * self.config.width)

    def repeats(self, published: int, factor: float = 1.0) -> int:
        """The blocks of a stage: `published` at depth 1."""
        return math.ceil(factor * self.config.depth * published)

    def rate(self, published: float) -> float:
        """A dropout rate: the network's own, or the one requested."""
        return published if self.config.dropout is None else self.config.dropout

    def dropout(self, x: Any, published: float = 0.0) -> Any:
        """Dropout of single features; no layer at a rate of 0."""
        rate = self.rate(published)
        return layers.Dropout(rate)(x) if rate else x

    def drop_path(self, x: Any, rate: float) -> Any:
        """Stochastic depth (Huang et al. 2016): a patient's whole branch is kept or dropped."""
        shape = (None,) + (1,) * (len(x.shape) - 1)
        return layers.Dropout(rate, noise_shape=shape)(x) if rate else x

    def conv(self, x: Any, filters: int, size: int, stride: int = 1, *, bias: bool = False) -> Any:
        """A convolution that keeps the size but for its stride, 2D or 3D by the rank of `x`."""
        kind = Conv3D if len(x.shape) == 5 else Conv2D
        x, padding = self.padded(x, size, stride)
        return kind(
            filters,
            size,
            strides=stride,
            padding=padding,
            use_bias=bias,
            kernel_initializer=fan_out_normal(),
        )(x)

    def max_pool(self, x: Any, size: int, stride: int = 2) -> Any:
        """Max pooling of what a ReLU gave: zeros, as which padding counts, are its least."""
        x, padding = self.padded(x, size, stride)
        return max_pool(x, size, stride, padding)

    def padded(self, x: Any, size: int, stride: int) -> tuple[Any, str]:
        """(`x` with what its layout pads, the padding that the layer behind it is to do)."""
        added = _symmetric if self.layout.padding == "symmetric" else _same
        pads = [added(length, size, stride) for length in x.shape[1:-1]]
        edges = pads[2] if self.layout.edge and len(x.shape) == 5 else (0, 0)
        if not any(edges) and all(before == (before + after) // 2 for before, after in pads):
            return x, "same"
        if any(edges):
            x, pads[2] = EdgeSlices(*edges)(x), (0, 0)
        kind = layers.ZeroPadding3D if len(x.shape) == 5 else layers.ZeroPadding2D
        return kind(tuple(pads))(x), "valid"

    def norm(self, x: Any, activation: str | None = None) -> Any:
        """BatchNormalization, then an activation."""
        x = layers.BatchNormalization(
            momentum=MOMENTUM, epsilon=self.layout.epsilon, synchronized=self.synchronized
        )(x)
        return layers.Activation(activation)(x) if activation else x

    def excite(self, x: Any, squeezed: int, activation: str) -> Any:
        """Squeeze-and-excitation (Hu et al. 2018): channels weighed by the volume's own mean.

        The mean is float32: summed in float16, a feature map of 65,000 ones overflows.
        """
        pool = layers.GlobalAveragePooling3D if len(x.shape) == 5 else layers.GlobalAveragePooling2D
        gate = pool(keepdims=True, dtype="float32")(x)
        gate = layers.Activation(activation)(self.conv(gate, squeezed, 1, bias=True))
        gate = layers.Activation("sigmoid")(self.conv(gate, x.shape[-1], 1, bias=True))
        return layers.Multiply()([x, gate])

    def pool(self, x: Any) -> Any:
        """A map (batch, ..., n) to one float32 vector a volume, as `config.pooling` says."""
        axes = len(x.shape) - 2
        match self.config.pooling:
            case "attention":
                return AttentionPooling()(x)
            case "max":
                return getattr(layers, f"GlobalMaxPooling{axes}D")()(x)
            case _:
                return getattr(layers, f"GlobalAveragePooling{axes}D")(dtype="float32")(x)


def _same(length: int, size: int, stride: int) -> tuple[int, int]:
    """Voxels that TensorFlow's "same" adds before and behind.

    >>> _same(6, 3, 2), _same(7, 3, 2), _same(7, 3, 1)
    ((0, 1), (1, 1), (1, 1))
    """
    added = max((-(-length // stride) - 1) * stride + size - length, 0)
    return added // 2, added - added // 2


def _symmetric(length: int, size: int, stride: int) -> tuple[int, int]:
    """Voxels that PyTorch with `padding=size // 2` adds before and behind, for an odd `size`.

    TensorFlow's "same" adds as many in all, and half of them before, rounded down.

    >>> _symmetric(6, 3, 2), _symmetric(7, 3, 2), _symmetric(7, 3, 1)
    ((1, 0), (1, 1), (1, 1))
    """
    before = size // 2
    out = (length + 2 * before - size) // stride + 1
    return before, max(0, (out - 1) * stride + size - length - before)


def max_pool(x: Any, size: int, stride: int = 2, padding: str = "same") -> Any:
    """Max pooling, 2D or 3D by the rank of `x`."""
    kind = MaxPool3D if len(x.shape) == 5 else layers.MaxPooling2D
    return kind(size, strides=stride, padding=padding)(x)
