"""DenseNet121 in 3D (Huang et al. 2017), laid out as MONAI's."""

from __future__ import annotations

from typing import Any

from keras import layers

from trainer.networks.blocks import Parts, max_pool
from trainer.networks.layers import AveragePool3D

_GROWTH = 32


def densenet121(x: Any, parts: Parts) -> Any:
    """Standardised volume → features (batch, 1024)."""
    growth = parts.filters(_GROWTH)
    x = parts.norm(parts.conv(x, parts.filters(64), 7, 2), "relu")
    x = max_pool(x, 3)
    for stage, published in enumerate((6, 12, 24, 16)):
        if stage:
            x = parts.conv(parts.norm(x, "relu"), x.shape[-1] // 2, 1)
            x = AveragePool3D(2, padding="same")(x)
        for _ in range(parts.repeats(published)):
            new = parts.conv(parts.norm(x, "relu"), 4 * growth, 1)
            new = parts.conv(parts.norm(new, "relu"), growth, 3)
            x = layers.Concatenate()([x, new])
    return parts.dropout(parts.pool(parts.norm(x, "relu")))
