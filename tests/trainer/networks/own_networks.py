"""A user's own networks, as tests name them."""

from __future__ import annotations

import os
from typing import Any

import keras
from keras import layers, ops

from trainer.config.network import NetworkConfig

HERE = "tests.trainer.networks.own_networks"


def feature_map(volume: Any, config: NetworkConfig, growth: int = 8) -> Any:
    """A network of ten lines, of form (volume, config)."""
    x = layers.Conv3D(growth, 3, padding="same", use_bias=False)(volume)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPooling3D(2)(layers.Activation("relu")(x))
    x = layers.Conv3D(2 * growth, 3, padding="same")(x)
    return layers.BatchNormalization(momentum=0.5)(x)


def squashed(volume: Any, config: NetworkConfig) -> Any:
    """Ends in a sigmoid; two of its layers have names of ours."""
    x = layers.Conv3D(4, 3, activation="relu", name="logit")(volume)
    x = layers.GlobalAveragePooling3D()(x)
    return layers.Dense(1, activation="sigmoid", bias_initializer="ones", name="volume")(x)


def two_classes(input_shape: tuple[int, ...], classes: int = 2) -> keras.Model:
    """Scales its input, ends in a softmax of two and has operations that are no layers."""
    given = keras.Input(input_shape)
    x = layers.Rescaling(1 / 255)(given)
    x = ops.relu(layers.Conv3D(4, 3, strides=2)(x)) + 1.0
    x = layers.Dense(2)(layers.Flatten()(x))
    return keras.Model(given, layers.Softmax()(x))


def in_turn(input_shape: tuple[int, ...], num_classes: int = 1000) -> keras.Sequential:
    """A Sequential without an input, with a Lambda layer."""
    return keras.Sequential(
        [
            layers.Conv3D(4, 3, activation="relu"),
            layers.Lambda(lambda x: 2 * x),
            layers.GlobalAveragePooling3D(),
            layers.Dense(num_classes, activation="sigmoid"),
        ]
    )


def labelled(input_shape: tuple[int, ...], classes: int = 1) -> keras.Model:
    """As many outputs as it is told, without an activation."""
    given = keras.Input(input_shape)
    x = layers.Conv3D(4, 3, strides=2, activation="relu")(given)
    return keras.Model(given, layers.Dense(classes)(layers.Flatten()(x)))


def ending(input_shape: tuple[int, ...], units: int, activation: str | None) -> keras.Model:
    """Ends as it is told by options of its own."""
    given = keras.Input(input_shape)
    x = layers.GlobalAveragePooling3D()(layers.Conv3D(6, 3, activation="relu")(given))
    return keras.Model(given, layers.Dense(units, activation=activation)(x))


def pooled(input_shape: tuple[int, ...], classes: int = 1, squash: str = "") -> keras.Model:
    """Pools a map of as many channels as it is told: no Dense layer at its end."""
    given = keras.Input(input_shape)
    x = layers.GlobalAveragePooling3D()(layers.Conv3D(classes, 3)(given))
    return keras.Model(given, layers.Activation(squash)(x) if squash else x)


def nested(input_shape: tuple[int, ...], classes: int = 1) -> keras.Model:
    """Models within models, whose layers bear the same names."""

    def inner() -> keras.Model:
        given = keras.Input((*input_shape[:3], 4))
        return keras.Model(given, layers.Conv3D(4, 3, padding="same", name="conv")(given))

    given = keras.Input(input_shape)
    x = layers.Conv3D(4, 3, padding="same", name="conv")(given)
    x = keras.Sequential([inner(), layers.ReLU(name="conv")])(inner()(x))
    return keras.Model(given, layers.Dense(classes)(layers.GlobalMaxPooling3D()(x)))


class Unregistered(layers.Layer):
    """A layer that no file can be read into without its class, and without a config."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, x: Any) -> Any:
        return ops.matmul(x, self.kernel)


class Subclassed(keras.Model):
    """A model with a call of its own."""

    def __init__(self, units: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = layers.Conv3D(units, 3, padding="same", activation="relu")
        self.second = Unregistered(units)
        self.drop = layers.Dropout(dropout)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.drop(self.second(self.first(x)), training=training)


def hidden(input_shape: tuple[int, ...]) -> keras.Model:
    """Shows nothing of its layers."""

    class Hidden(Subclassed):
        def call(self, x: Any, training: bool | None = None) -> Any:
            return ops.mean(super().call(x, training), axis=(1, 2, 3))

    return Hidden()


class Compiled(Subclassed):
    """Compiled where it was made; training has an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.compile("adam", "binary_crossentropy")


def scaling(volume: Any, config: NetworkConfig) -> Any:
    """Scales what it knows to be standardised."""
    return layers.Conv3D(4, 3)(layers.Rescaling(0.5)(volume))


def exits(volume: Any, config: NetworkConfig) -> Any:
    """Ends the process, as a script's main does."""
    raise SystemExit(3)


_shared = layers.Conv3D(4, 3)


def shared(volume: Any, config: NetworkConfig) -> Any:
    """Its layer is made once for all folds."""
    return _shared(volume)


def images(input_shape: tuple[int, ...]) -> keras.Model:
    """Takes slices."""
    given = keras.Input((*input_shape[:2], input_shape[-1]))
    return keras.Model(given, layers.Conv2D(4, 3)(given))


def pair(input_shape: tuple[int, ...]) -> keras.Model:
    """Takes two volumes."""
    given = [keras.Input(input_shape), keras.Input(input_shape)]
    return keras.Model(given, layers.Conv3D(4, 3)(layers.Add()(given)))


def other_grid(input_shape: tuple[int, ...]) -> keras.Model:
    """Takes volumes of one size."""
    given = keras.Input((64, 64, 64, 1))
    return keras.Model(given, layers.Conv3D(4, 3)(given))


def deep(volume: Any, config: NetworkConfig) -> Any:
    """Uses a small grid up."""
    for _ in range(8):
        volume = layers.Conv3D(4, 3)(volume)
    return volume


def weightless(volume: Any, config: NetworkConfig) -> Any:
    """Has nothing to learn before the logit."""
    return layers.AveragePooling3D(2)(volume)


def many_classes(input_shape: tuple[int, ...]) -> keras.Model:
    """Ends in ten classes."""
    given = keras.Input(input_shape)
    return keras.Model(given, layers.Dense(10, activation="softmax")(layers.Flatten()(given)))


def two_outputs(volume: Any, config: NetworkConfig) -> Any:
    """Gives two tensors."""
    return volume, volume


def other_batch(volume: Any, config: NetworkConfig) -> Any:
    """Folds patients together."""
    return ops.reshape(layers.Conv3D(4, 3)(volume), (4, -1))


def nothing(volume: Any, config: NetworkConfig) -> Any:
    """Gives nothing."""


def one_parameter(volume: Any) -> Any:
    """Of no form."""
    return volume


def rounded(volume: Any, config: NetworkConfig) -> Any:
    """No gradient passes."""
    return ops.round(layers.Conv3D(4, 3)(volume))


def not_a_number(volume: Any, config: NetworkConfig) -> Any:
    """Answers with NaN."""
    return layers.Conv3D(4, 3)(volume) * float("nan")


class Mixing(layers.Layer):
    """Says that patients stay apart, and folds them together."""

    def call(self, x: Any) -> Any:
        return ops.concatenate([ops.mean(x, axis=(0, 1, 2), keepdims=False)] * 2, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (None, input_shape[-1] * 2)


def mixing(volume: Any, config: NetworkConfig) -> Any:
    """Gives one row a slice, whatever the batch."""
    return Mixing()(layers.Conv3D(4, 3)(volume))


class Failing(layers.Layer):
    """Works on a graph, and on no volume."""

    def call(self, x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor) and x.shape[0] is not None:
            raise ValueError("no such patient")
        return x


def failing(volume: Any, config: NetworkConfig) -> Any:
    """Fails where it is called on a batch."""
    return Failing()(layers.Conv3D(4, 3)(volume))


def half(volume: Any, config: NetworkConfig) -> Any:
    """Sets a precision for everybody."""
    keras.config.set_dtype_policy("mixed_float16")
    return layers.Conv3D(4, 3)(volume)


def elsewhere(volume: Any, config: NetworkConfig) -> Any:
    """Prints, and leaves the working directory."""
    print("made")
    os.chdir(os.sep)
    return layers.Conv3D(4, 3)(volume)
