"""Weights of a 2D encoder, read from a file into a slice network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from trainer.config.unpacked import require_unpackable
from trainer.networks.stored import load_network

# Of keras.applications' networks: what is no part of the encoder (its input's scaling, its top).
_NOT_ENCODER = (layers.Normalization, layers.Dense)


def encoder_of(model: keras.Model) -> keras.Model:
    """A slice network's 2D encoder: (batch, row, column, channel) → features, weights shared."""
    return keras.Model(model.get_layer("slices").output, model.get_layer("encoder").output)


def load_encoder_weights(model: keras.Model, file: str) -> None:
    """Gives a slice network's encoder the weights of a file, of 2D training on whatever it was.

    Taken are `keras.applications.EfficientNetB0` with or without its top (for
    slice_efficientnet_b0), an encoder that `encoder_of` made, and a whole slice network (.keras
    only). Where the file's images have other channels than the volumes, the first convolution's
    weights are averaged over them and scaled, so that equal channels are answered as before.

    Args:
      model: a slice network as `build_model` made it.
      file: a .keras file, or an .h5 file of weights.

    Raises:
      UsageError: no such file, an unreadable one, or weights of another network.
    """
    if files.stat(file) is None:
        raise UsageError(f"--encoder_weights: {file} is not a file")
    encoder = encoder_of(model)
    with files.fetched(file) as local:
        found = _read(file, local, model.name, encoder)
    wanted = [(weight.path, tuple(weight.shape)) for weight in encoder.weights]
    if len(found) != len(wanted):
        raise UsageError(
            f"--encoder_weights: {file} holds {len(found)} arrays, "
            f"{model.name}'s encoder takes {len(wanted)}"
        )
    found[0] = with_channels(found[0], wanted[0][1][-2])
    for value, (path, shape) in zip(found, wanted, strict=True):
        if value.shape != shape:
            raise UsageError(
                f"--encoder_weights: {file} holds an array {value.shape} "
                f"where {model.name}'s {path} is {shape}"
            )
    encoder.set_weights(found)


def _read(file: str, local: Path, name: str, encoder: keras.Model) -> list[npt.NDArray[Any]]:
    """The arrays of `file`, which lies at `local`, in the encoder's order."""
    try:
        require_unpackable(local)
        if file.endswith(".keras"):
            return _arrays(load_network(local))
    except ContractError as error:
        raise UsageError(f"--encoder_weights: {file}: {error}") from error
    except Exception as error:  # Keras raises zipfile's, h5py's and its own
        raise UsageError(f"--encoder_weights: {file}: not a Keras model: {error}") from error
    failures = []
    for skeleton in _skeletons(name, encoder):
        try:
            skeleton.load_weights(local)
        except Exception as error:
            failures.append(str(error).partition("\n")[0])
        else:
            return _arrays(skeleton)
    raise UsageError(
        f"--encoder_weights: {file} does not hold the {len(encoder.weights)} arrays of {name}'s "
        f"encoder ({failures[0]})"
    )


def _skeletons(name: str, encoder: keras.Model) -> list[keras.Model]:
    """Networks whose weights an .h5 file may hold; such a file does not say what it is of."""
    skeletons = [keras.models.clone_model(encoder)]
    if name == "slice_efficientnet_b0":
        skeletons += [
            keras.applications.EfficientNetB0(
                weights=None, include_top=top, input_shape=(224, 224, 3)
            )
            for top in (False, True)
        ]
    return skeletons


def _arrays(model: keras.Model) -> list[npt.NDArray[Any]]:
    """An encoder's weights, layer after layer, whatever stands before and behind it."""
    names = {layer.name for layer in model.layers}
    if {"slices", "encoder"} <= names:
        model = encoder_of(model)
    return [
        np.asarray(keras.ops.convert_to_numpy(weight))
        for layer in model.layers
        if not isinstance(layer, _NOT_ENCODER)
        for weight in layer.weights
    ]


def with_channels(kernel: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """A first convolution's kernel (..., channel, filter) for so many channels.

    Their mean for each, so scaled that equal channels are answered as before.
    """
    if kernel.ndim < 4 or kernel.shape[-2] == channels:
        return kernel
    mean = kernel.mean(axis=-2, keepdims=True) * (kernel.shape[-2] / channels)
    return np.repeat(mean, channels, axis=-2)
