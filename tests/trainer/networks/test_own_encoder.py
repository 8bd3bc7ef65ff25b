"""A slice network's 2D encoder of a user's own: what becomes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from trainer.config.network import NetworkConfig
from trainer.config.user_code import load
from trainer.networks.registry import build_model
from trainer.networks.weights.encoder_weights import encoder_of

Write = Callable[[str, str], Path]
GRID, CHANNELS = (9, 8, 3), 2
ENCODERS = """
import keras
from keras import layers

def a_map(slices, config):
    x = layers.Conv2D(4, 3, name="dense")(slices)  # a name that Keras gives layers of the heads
    return layers.BatchNormalization()(x)
def vector(slices, config):
    return layers.Dense(5)(layers.Flatten(name="encoder")(slices))
def topped(input_shape, classes=1000, include_top=True, weights="imagenet"):
    given = keras.Input(input_shape)
    x = layers.Conv2D(4, 3, strides=2)(layers.Normalization()(layers.Rescaling(1 / 255)(given)))
    if include_top:
        x = layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(given, x)
class Whole(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(6, 3)
        self.drop = layers.Dropout(0.5)
    def call(self, x, training=False):
        return self.drop(self.conv(x), training=training)
def of_volumes(volume, config): return layers.Conv3D(2, 3)(volume)
def by_hp(hp): return None
def folded(slices, config): return keras.ops.reshape(slices, (-1, 4, 4, 3, 3))
"""


def _built(name: str, **settings: Any) -> keras.Model:
    config = NetworkConfig(name="slice_cnn", encoder=f"own_encoders:{name}", **settings)
    return build_model(config, GRID, CHANNELS)


@pytest.mark.parametrize(
    ("name", "features"), [("a_map", 4), ("vector", 5), ("topped", 4), ("Whole", 6)]
)
def test_encoders_of_every_form_give_features_of_a_slice(
    user_module: Write, name: str, features: int
) -> None:
    user_module("own_encoders.py", ENCODERS)
    model = _built(name, head="transformer")
    assert model.get_layer("encoder").output.shape == (None, features)
    assert model.get_layer("encoder").output.dtype == "float32"
    volumes = np.random.default_rng(0).integers(0, 255, (2, *GRID, CHANNELS)).astype(np.uint8)
    assert np.isfinite(np.asarray(model(volumes))).all()


def test_each_slice_is_seen_alone_and_as_it_was_standardised(user_module: Write) -> None:
    user_module("own_encoders.py", ENCODERS)
    model = _built("topped")  # which would scale what is stored
    encoder = encoder_of(model)
    assert not any(isinstance(one, keras.layers.Rescaling) for one in encoder.layers)
    slices = np.random.default_rng(0).normal(size=(3, *GRID[:2], CHANNELS)).astype(np.float32)
    kernel, bias = (np.asarray(weight) for weight in encoder.weights)
    found = np.asarray(encoder(slices))
    wanted = keras.ops.conv(slices, kernel, 2, "valid") + bias
    np.testing.assert_allclose(found, np.mean(wanted, axis=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("of_volumes", r"fails on slices 9x8x2: ValueError: .*\(own_encoders\.py, line 23\)$"),
        ("by_hp", r"takes \(hp\): function\(slices, config\) or function\(input_shape\) is needed"),
        ("nosuch", "has no nosuch"),
        ("folded", "without weights to train"),
    ],
)
def test_an_encoder_that_misfits_is_refused_in_one_line(
    user_module: Write, name: str, message: str
) -> None:
    user_module("own_encoders.py", ENCODERS)
    with pytest.raises(UsageError, match=message) as found:
        _built(name)
    assert str(found.value).startswith(f"--encoder own_encoders:{name}: ")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_an_encoder_starts_from_its_own_weights_of_images(
    user_module: Write, suffix: str, tmp_path: Path
) -> None:
    user_module("own_encoders.py", ENCODERS)
    trained = load("own_encoders:topped", flag="--encoder")((32, 32, 3), classes=10)
    file = tmp_path / f"trained{suffix}"
    (trained.save_weights if suffix == ".weights.h5" else trained.save)(file)
    model = _built("topped", encoder_weights=str(file))
    kernel = np.asarray(trained.layers[3].kernel)
    mean = np.repeat(kernel.mean(axis=2, keepdims=True) * 3 / 2, 2, axis=2)
    np.testing.assert_allclose(np.asarray(encoder_of(model).weights[0]), mean, rtol=1e-5)
    assert "2 of 2 arrays" in model.started_from
    with pytest.raises(UsageError, match=r"--encoder_weights: .*trained.* takes \(3, 3, 2, 6\)$"):
        _built("Whole", encoder_weights=str(file))
