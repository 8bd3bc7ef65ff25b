"""EfficientNet (Tan & Le 2019) over volumes or slices.

In 2D the layers follow one another as in `keras.applications`, whose weights therefore fit. In 3D
it is the network of EfficientNet-PyTorch-3D, with the first MBConv at stride 1 as in the paper:
that package's stride of 2 there makes six halvings, and a grid of 32 slices has none left for the
last. The parameters are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers

from trainer.networks.blocks import Parts, fan_out_normal
from trainer.networks.layers import DepthwiseConv2D, DepthwiseConv3D

# Width, depth, dropout of B0 to B7.
_SIZES = (
    (1.0, 1.0, 0.2),
    (1.0, 1.1, 0.2),
    (1.1, 1.2, 0.3),
    (1.2, 1.4, 0.3),
    (1.4, 1.8, 0.4),
    (1.6, 2.2, 0.4),
    (1.8, 2.6, 0.5),
    (2.0, 3.1, 0.5),
)

# Blocks, kernel, stride of the first block, expansion, filters of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_DROP_PATH = 0.2  # of the last block; the first has none, those between are in proportion


def efficientnet(size: int) -> Callable[[Any, Parts], Any]:
    """EfficientNet B`size` in 3D: standardised volume → features (batch, 1280 times width)."""
    dropout = _SIZES[size][2]
    return lambda x, parts: parts.dropout(parts.pool(efficientnet_map(x, parts, size)), dropout)


def efficientnet_map(x: Any, parts: Parts, size: int) -> Any:
    """Volumes or slices → the last feature map, 1/32 of the size along each axis."""
    width, depth, _ = _SIZES[size]
    x = parts.norm(parts.conv(x, parts.filters(32, width), 3, 2), "silu")
    repeats = [parts.repeats(stage[0], depth) for stage in _STAGES]
    drop_path, total, done = parts.rate(_DROP_PATH), sum(repeats), 0
    for (_, kernel, stride, expansion, filters), count in zip(_STAGES, repeats, strict=True):
        for block in range(count):
            x = _mbconv(
                x,
                parts,
                kernel=kernel,
                stride=1 if block else stride,
                expansion=expansion,
                filters=parts.filters(filters, width),
                drop_path=drop_path * done / total,
            )
            done += 1
    return parts.norm(parts.conv(x, parts.filters(1280, width), 1), "silu")


def _mbconv(
    x: Any,
    parts: Parts,
    *,
    kernel: int,
    stride: int,
    expansion: int,
    filters: int,
    drop_path: float,
) -> Any:
    """Inverted bottleneck: widen, convolve each channel alone, weigh the channels, narrow."""
    entering = x.shape[-1]
    branch = x
    if expansion != 1:
        branch = parts.norm(parts.conv(x, entering * expansion, 1), "silu")
    branch = parts.norm(_depthwise(branch, parts, kernel, stride), "silu")
    branch = parts.excite(branch, max(1, entering // 4), "silu")
    branch = parts.norm(parts.conv(branch, filters, 1))
    if stride != 1 or entering != filters:
        return branch
    return layers.Add()([x, parts.drop_path(branch, drop_path)])


def _depthwise(x: Any, parts: Parts, kernel: int, stride: int) -> Any:
    x, padding = parts.padded(x, kernel, stride)
    if len(x.shape) == 5:
        return DepthwiseConv3D(kernel, stride, padding, depthwise_initializer=fan_out_normal())(x)
    return DepthwiseConv2D(
        kernel,
        strides=stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer=fan_out_normal(),
    )(x)
