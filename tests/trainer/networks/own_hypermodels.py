"""Hypermodels as KerasTuner's guide writes them, of volumes: code of a user's own, for tests."""

from __future__ import annotations

from typing import Any

import keras
import keras_tuner as kt
from keras import layers

SHAPE = (8, 8, 6, 1)


def layered(hp: Any) -> keras.Model:
    """A loop over layers, a switch, a rate on a logarithmic scale."""
    model = keras.Sequential([keras.Input(SHAPE)])
    for i in range(hp.Int("num_layers", 1, 3)):
        units = hp.Int(f"units_{i}", 4, 16, step=4)
        activation = hp.Choice("activation", ["relu", "tanh"])
        model.add(layers.Conv3D(units, 3, padding="same", activation=activation))
    model.add(layers.GlobalAveragePooling3D())
    if hp.Boolean("dropout"):
        model.add(layers.Dropout(hp.Float("rate", 0.1, 0.5, step=0.1, default=0.3)))
    model.add(layers.Dense(1, activation="sigmoid"))
    rate = hp.Float("lr", min_value=1e-4, max_value=1e-2, sampling="log")
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=rate),
        loss="binary_crossentropy",
        metrics=["accuracy"],
    )
    return model


def scoped(hp: Any) -> keras.Model:
    """Conditional scopes, one in another; not compiled."""
    kind = hp.Choice("kind", ["flat", "conv"])
    volume = keras.Input(SHAPE)
    x = volume
    with hp.conditional_scope("kind", ["flat"]):
        if kind == "flat":
            x = layers.Dense(hp.Int("units", 4, 32, sampling="log"))(layers.Flatten()(x))
    with hp.conditional_scope("kind", ["conv"]):
        if kind == "conv":
            pool = hp.Choice("pool", ["avg", "max"])
            x = layers.Conv3D(hp.Choice("filters", [4, 8, 16], default=8), 3)(x)
            with hp.conditional_scope("pool", ["max"]):
                if pool == "max":
                    x = layers.MaxPooling3D(hp.Int("size", 2, 3))(x)
            x = layers.Flatten()(x)
    with hp.name_scope("head"):
        x = layers.Dropout(hp.Float("rate", 0, 0.5))(x)
    hp.Fixed("version", 2)
    return keras.Model(volume, layers.Dense(1)(x))


def flat(hp: Any, units: int = 1, **compiled: Any) -> keras.Model:
    """The least that there is."""
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(units)])
    if compiled:
        model.compile(**compiled)
    return model


def both(hp: Any) -> keras.Model:
    """One that is asked for where two others come together."""
    if hp.Boolean("wide") and hp.Boolean("deep"):
        hp.Int("units", 2, 4)
    hp.Boolean("deep")
    return keras.Model()


class Subclass(kt.HyperModel):
    """A HyperModel with arguments of its own."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(name="subclass")
        self.shape, self.classes = input_shape, num_classes

    def build(self, hp: Any) -> keras.Model:
        """A model of its arguments."""
        model = keras.Sequential([keras.Input(self.shape), layers.Flatten()])
        model.add(layers.Dense(hp.Int("units", 2, 8, step=2), activation="relu"))
        model.add(layers.Dense(self.classes, activation="sigmoid"))
        model.compile("adam", "binary_crossentropy")
        return model


class OwnFit(Subclass):
    """One that trains in its own way."""

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """With another batch."""
        return model.fit(*args, batch_size=hp.Int("batch", 2, 4), **kwargs)


class OwnStep(keras.Model):
    """One with a training step of its own."""

    def train_step(self, data: Any) -> Any: ...


class NeedsMore(Subclass):
    """One with an argument that nobody knows."""

    def __init__(self, blocks: int) -> None: ...


instance = Subclass(SHAPE, 1)
