"""The reference cohort's best-known public baseline ("3d_mpmri_cnn")."""

from __future__ import annotations

from typing import Any

from keras import layers

from trainer.networks.blocks import Parts, max_pool
from trainer.networks.layers import Conv3D


def seed_cnn(x: Any, parts: Parts) -> Any:
    """Standardised volume → features (batch, 128).

    Only BatchNormalization's momentum is ours. All convolutions are valid, as published. A grid of
    few slices (16, say) would be used up before the last two: there they keep the size instead,
    with the same parameters.
    """
    for _ in range(2):
        x = Conv3D(parts.filters(64), 3, activation="relu")(x)
        x = parts.norm(max_pool(x, 2, padding="valid"))
    padding = "valid" if min(x.shape[1:4]) >= 5 else "same"
    for filters in (128, 256):
        x = Conv3D(parts.filters(filters), 3, padding=padding, activation="relu")(x)
        x = parts.norm(x)
    x = parts.pool(parts.dropout(x, 0.333))
    x = layers.Dense(parts.filters(128), activation="relu")(x)
    return parts.dropout(x, 0.666)
