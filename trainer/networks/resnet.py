"""3D residual networks as MONAI builds them, so that results can be set beside its own.

ResNet: the layout of MedicalNet (Chen et al. 2019): 7×7×7 at stride 1, max pooling, four stages,
shortcuts by a 1×1×1 convolution with bias; ResNet50's bottlenecks have their stride in the 3×3×3.
SE-ResNet50: stride 2 at the start, the bottleneck's stride in its first convolution, shortcuts
without bias, squeeze-and-excitation in every block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers

from trainer.networks.blocks import Parts, max_pool
from trainer.networks.layers import AveragePool3D, ZeroChannels

_STAGES = (64, 128, 256, 512)


def resnet(
    blocks: tuple[int, int, int, int], *, bottleneck: bool = False
) -> Callable[[Any, Parts], Any]:
    """A ResNet: standardised volume → features (batch, 512), of bottlenecks (batch, 2048)."""
    add_block = _bottleneck if bottleneck else _basic

    def features(x: Any, parts: Parts) -> Any:
        x = parts.norm(parts.conv(x, parts.filters(64), 7, parts.layout.stem_stride), "relu")
        x = parts.max_pool(x, 3)
        for stage, (filters, published) in enumerate(zip(_STAGES, blocks, strict=True)):
            for block in range(parts.repeats(published)):
                stride = 2 if stage and not block else 1
                x = add_block(x, parts, parts.filters(filters), stride)
        return parts.dropout(parts.pool(x))

    return features


def se_resnet50(x: Any, parts: Parts) -> Any:
    """Standardised volume → features (batch, 2048)."""
    x = parts.norm(parts.conv(x, parts.filters(64), 7, 2), "relu")
    x = max_pool(x, 3)
    for stage, (filters, published) in enumerate(zip(_STAGES, (3, 4, 6, 3), strict=True)):
        for block in range(parts.repeats(published)):
            x = _se_bottleneck(x, parts, parts.filters(filters), 2 if stage and not block else 1)
    return parts.dropout(parts.pool(x))


def _basic(x: Any, parts: Parts, filters: int, stride: int) -> Any:
    branch = parts.norm(parts.conv(x, filters, 3, stride), "relu")
    branch = parts.norm(parts.conv(branch, filters, 3))
    return _join(branch, x, parts, stride, bias=True)


def _bottleneck(x: Any, parts: Parts, filters: int, stride: int) -> Any:
    first, second = (stride, 1) if parts.layout.stride_first else (1, stride)
    branch = parts.norm(parts.conv(x, filters, 1, first), "relu")
    branch = parts.norm(parts.conv(branch, filters, 3, second), "relu")
    branch = parts.norm(parts.conv(branch, 4 * filters, 1))
    return _join(branch, x, parts, stride, bias=True)


def _se_bottleneck(x: Any, parts: Parts, filters: int, stride: int) -> Any:
    branch = parts.norm(parts.conv(x, filters, 1, stride), "relu")
    branch = parts.norm(parts.conv(branch, filters, 3), "relu")
    branch = parts.norm(parts.conv(branch, 4 * filters, 1))
    branch = parts.excite(branch, 4 * filters // 16, "relu")
    return _join(branch, x, parts, stride, bias=False)


def _join(branch: Any, x: Any, parts: Parts, stride: int, *, bias: bool) -> Any:
    """Branch plus shortcut; the shortcut is a projection wherever the shapes differ."""
    if parts.layout.direct:
        x = AveragePool3D(1, strides=stride)(x) if stride != 1 else x
        x = ZeroChannels(branch.shape[-1])(x) if x.shape[-1] != branch.shape[-1] else x
    elif stride != 1 or x.shape[-1] != branch.shape[-1]:
        x = parts.norm(parts.conv(x, branch.shape[-1], 1, stride, bias=bias))
    return layers.Activation("relu")(layers.Add()([branch, x]))
