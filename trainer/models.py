"""Networks in Keras 3, `keras.ops` only: stored volume in, one logit out.

    stored integers (batch, row, column, slice, channel)
      → Standardise: each channel over its foreground, float32, in the graph
      → a network of the registry: features (batch, n)
      → Dense(1): one float32 logit (batch, 1), whatever the precision policy

The sigmoid is outside: losses take logits, and serving calibrates before it squashes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from beam_jobs.core.cli import UsageError

# Batch statistics are averaged over about 1 / (1 - momentum) steps. A cohort has few steps an
# epoch: with Keras's 0.99 the averages trail the weights by many epochs, and a network that has
# learnt its training folds predicts held-out patients no better than chance (measured on phantoms:
# AUC 0.3 at a training loss of 0.001).
_MOMENTUM = 0.8

_SMALLEST_STD = 1e-4  # of the mean: below it a foreground counts as constant (float32 rounding)


@keras.saving.register_keras_serializable("voxelbeam")
class Standardise(layers.Layer):
    """Gives each channel zero mean and unit deviation over its foreground (voxels > 0).

    Background stays exactly 0; so does a channel without foreground or with a constant one.
    Statistics are float32 and two-pass, whatever the stored dtype or the precision policy, and
    belong to one volume: nothing is learnt, nothing leaks from patient to patient.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, volume: Any) -> Any:
        """(batch, row, column, slice, channel), any numeric dtype → the same shape, float32."""
        values = ops.cast(volume, "float32")
        foreground = ops.cast(values > 0, "float32")
        count = ops.maximum(_spatial_sum(foreground), 1.0)
        mean = _spatial_sum(values * foreground) / count
        centred = (values - mean) * foreground
        variance = _spatial_sum(ops.square(centred)) / count
        floor = ops.maximum(_SMALLEST_STD * mean, keras.config.epsilon() ** 2)
        return centred / ops.maximum(ops.sqrt(variance), floor)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def _spatial_sum(values: Any) -> Any:
    """Sum over row, column and slice, kept as axes of 1.

    One axis after the other: TensorFlow adds all voxels of a volume into one float32 in turn,
    which is off by 1e-4 and more for a million of them.
    """
    for axis in (3, 2, 1):
        values = ops.sum(values, axis=axis, keepdims=True)
    return values


def _seed_cnn(x: Any) -> Any:
    """The reference cohort's best-known public baseline ("3d_mpmri_cnn").

    Only BatchNormalization's momentum is ours. All convolutions are valid, as published. A grid of
    few slices (16, say) would be used up before the last two: there they keep the size instead,
    with the same parameters.
    """
    for _ in range(2):
        x = layers.Conv3D(64, 3, activation="relu")(x)
        x = layers.MaxPooling3D(2)(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM)(x)
    padding = "valid" if min(x.shape[1:4]) >= 5 else "same"
    for filters in (128, 256):
        x = layers.Conv3D(filters, 3, padding=padding, activation="relu")(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM)(x)
    x = layers.Dropout(0.333)(x)
    x = layers.GlobalAveragePooling3D()(x)
    x = layers.Dense(128, activation="relu")(x)
    return layers.Dropout(0.666)(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
    """An entry of the registry.

    Attributes:
      features: standardised volume → features (batch, n).
      smallest: least voxels that every axis of the grid must have.
    """

    features: Callable[[Any], Any]
    smallest: int


_NETWORKS = {"seed_cnn": _Network(features=_seed_cnn, smallest=10)}


def build_model(
    name: str, shape: tuple[int, int, int], channels: int, input_dtype: str = "uint8"
) -> keras.Model:
    """Builds a network of the registry with fresh weights under the current precision policy.

    Args:
      name: one of `trainer.config.MODELS`.
      shape: (rows, columns, slices) of the grid.
      channels: modalities a volume has.
      input_dtype: the stored voxel type; volumes go in as they are stored.

    Returns:
      A functional model: (batch, row, column, slice, channel) → float32 logit (batch, 1).

    Raises:
      UsageError: an unknown name, or a grid too small for the network.
    """
    if name not in _NETWORKS:
        raise UsageError(f"unknown model {name!r}; known: {', '.join(_NETWORKS)}")
    network = _NETWORKS[name]
    if min(shape) < network.smallest:
        raise UsageError(
            f"{name} needs at least {network.smallest} voxels along every axis, "
            f"the dataset's grid is {'x'.join(map(str, shape))}"
        )
    volume = keras.Input((*shape, channels), dtype=input_dtype, name="volume")
    features = network.features(Standardise(name="standardise")(volume))
    logit = layers.Dense(1, dtype="float32", name="logit")(features)
    return keras.Model(volume, logit, name=name)
