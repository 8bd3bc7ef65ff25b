"""Slice networks: one 2D encoder for every slice, and a head that joins the slices.

The slices are folded into the batch, so the encoder is a plain run of layers in the model's graph:
no nested model, nothing that cloning or saving treats apart.

    (batch, row, column, slice, channel)
      → "slices"    (batch × slice, row, column, channel)
      → "encoder"   (batch × slice, n), float32
      → (batch, slice, n) → head → features

The heads work in float32 throughout: a volume has few slices, and softmax, normalisation and
recurrence are what half precision harms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers

from trainer.networks.blocks import Parts, max_pool
from trainer.networks.efficientnet import efficientnet_map
from trainer.networks.foreign import own_encoder
from trainer.networks.layers import (
    AttentionPooling,
    BatchToSequence,
    SlicePositions,
    SlicesToBatch,
)

_UNITS = 128  # of the LSTM (64 a direction) and of the transformer's tokens
_TRANSFORMER_LAYERS = 2
_TRANSFORMER_HEADS = 4
_TRANSFORMER_DROPOUT = 0.1


def slice_cnn(x: Any, parts: Parts) -> Any:
    """Standardised volume → features, by a small encoder of four stages."""

    def encoder(x: Any) -> Any:
        for filters in (32, 64, 128, 256):
            for _ in range(parts.repeats(1)):
                x = parts.norm(parts.conv(x, parts.filters(filters), 3), "relu")
            x = max_pool(x, 2)
        return x

    return _slice_network(x, parts, encoder, dropout=0.3)


def slice_efficientnet_b0(x: Any, parts: Parts) -> Any:
    """Standardised volume → features, by EfficientNet B0 in 2D."""
    return _slice_network(x, parts, lambda x: efficientnet_map(x, parts, 0), dropout=0.2)


def _slice_network(x: Any, parts: Parts, encoder: Callable[[Any], Any], *, dropout: float) -> Any:
    count = x.shape[3]
    x = SlicesToBatch(name="slices")(x)
    if parts.config.encoder is None:
        x = layers.GlobalAveragePooling2D(dtype="float32", name="encoder")(encoder(x))
    else:
        x = own_encoder(x, parts)
    x = BatchToSequence(count, dtype="float32")(x)
    return parts.dropout(_HEADS[parts.config.head](x, parts), dropout)


def _mean(x: Any, parts: Parts) -> Any:
    return layers.GlobalAveragePooling1D(dtype="float32")(x)


def _attention(x: Any, parts: Parts) -> Any:
    return AttentionPooling()(x)


def _lstm(x: Any, parts: Parts) -> Any:
    cells = layers.LSTM(_UNITS // 2, dtype="float32")
    return layers.Bidirectional(cells, dtype="float32")(x)


def _transformer(x: Any, parts: Parts) -> Any:
    """Pre-norm encoder layers (Xiong et al. 2020) over the slices, then their mean."""
    rate = parts.rate(_TRANSFORMER_DROPOUT)
    x = SlicePositions(dtype="float32")(layers.Dense(_UNITS, dtype="float32")(x))
    for _ in range(_TRANSFORMER_LAYERS):
        normed = layers.LayerNormalization(dtype="float32")(x)
        attended = layers.MultiHeadAttention(
            _TRANSFORMER_HEADS, _UNITS // _TRANSFORMER_HEADS, dropout=rate, dtype="float32"
        )(normed, normed)
        x = layers.Add(dtype="float32")([x, parts.dropout(attended, _TRANSFORMER_DROPOUT)])
        normed = layers.LayerNormalization(dtype="float32")(x)
        hidden = layers.Dense(2 * _UNITS, activation="gelu", dtype="float32")(normed)
        hidden = layers.Dense(_UNITS, dtype="float32")(hidden)
        x = layers.Add(dtype="float32")([x, parts.dropout(hidden, _TRANSFORMER_DROPOUT)])
    x = layers.LayerNormalization(dtype="float32")(x)
    return layers.GlobalAveragePooling1D(dtype="float32")(x)


_HEADS: dict[str, Callable[[Any, Parts], Any]] = {
    "mean": _mean,
    "attention": _attention,
    "lstm": _lstm,
    "transformer": _transformer,
}
