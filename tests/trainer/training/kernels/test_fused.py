"""Batches are normalised and weights updated as Keras does it, by one operation each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers, optimizers

from tests.trainer.training.kernels.same_step import require_same, steps
from trainer.networks.layers import Conv2D, Conv3D
from trainer.training.kernels.fused import fused

NORM, ADAM = "FusedBatchNormV3", "ResourceApplyAdam"


def _norm(shape: tuple[int, ...], **settings: Any) -> Callable[[], keras.Model]:
    settings = {"momentum": 0.8, **settings}
    return lambda: keras.Sequential([keras.Input(shape[1:]), layers.BatchNormalization(**settings)])


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((3, 5, 4, 6, 7), {}),
        ((3, 5, 4, 24), {"center": False, "epsilon": 0.1}),
        ((9, 5), {"scale": False}),
        ((2, 1, 1, 1, 8), {"axis": 4}),
        ((3, 6, 5, 4, 8), {"dtype": "mixed_bfloat16"}),
    ],
    ids=str,
)
def test_a_normalised_batch_is_keras_own(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    keras_own, ours = steps(_norm(shape, **settings), shape)
    assert NORM in ours.operations - keras_own.operations
    require_same(keras_own, ours)


@pytest.mark.parametrize(
    "make",
    [
        _norm((4, 3, 5, 6), axis=1),
        lambda: keras.Sequential(
            [keras.Input((3, 5, 6)), layers.Dense(6), layers.BatchNormalization(trainable=False)]
        ),
        _norm((4, 3, 5, 6), renorm=True),
        lambda: keras.Sequential([keras.Input((3, 5, 6)), _Own()]),
    ],
    ids=["axis", "frozen", "renorm", "subclass"],
)
def test_what_is_more_than_a_plain_normalisation_stays_keras_own(
    make: Callable[[], keras.Model],
) -> None:
    keras_own, ours = steps(make, (4, 3, 5, 6))
    assert NORM not in ours.operations
    require_same(keras_own, ours, 0)


def test_inference_stays_keras_own() -> None:
    keras_own, ours = steps(_norm((4, 3, 5, 6)), (4, 3, 5, 6), training=False)
    assert NORM not in ours.operations
    require_same(keras_own, ours, 0)


@pytest.mark.parametrize(
    ("kind", "shape", "settings"),
    [
        (Conv3D, (2, 3, 4, 5, 8), {}),
        (Conv3D, (2, 3, 4, 5, 8), {"use_bias": False, "dtype": "mixed_bfloat16"}),
        (Conv2D, (2, 3, 4, 8), {"activation": "relu", "dtype": "mixed_float16"}),
    ],
    ids=str,
)
def test_a_convolution_of_single_voxels_is_keras_own(
    kind: Any, shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    def make() -> keras.Model:
        return keras.Sequential([keras.Input(shape[1:]), kind(6, 1, **settings)])

    keras_own, ours = steps(make, shape)
    assert "MatMul" in ours.operations - keras_own.operations
    require_same(keras_own, ours, 1e-5 if "dtype" not in settings else 1e-2)


def test_a_convolution_with_a_stride_stays_keras_own() -> None:
    def make() -> keras.Model:
        return keras.Sequential([keras.Input((4, 4, 4, 8)), Conv3D(6, 1, strides=2)])

    keras_own, ours = steps(make, (2, 4, 4, 4, 8))
    assert ours.operations == keras_own.operations
    require_same(keras_own, ours, 0)


class _Own(layers.BatchNormalization):  # type: ignore[misc]
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        return 2 * super().call(inputs, training=training, mask=mask)


def _dense() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="tanh"), _Half()])


class _Half(layers.Layer):  # type: ignore[misc]
    """A nested layer with a weight of its own."""

    def build(self, input_shape: Any) -> None:
        self.inner = layers.Dense(3)
        self.inner.build(input_shape)

    def call(self, x: Any) -> Any:
        return self.inner(x) / 2

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], 3)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: optimizers.Adam(1e-2),
        lambda: optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 5), global_clipnorm=0.1),
        lambda: optimizers.AdamW(1e-2, weight_decay=0.1, beta_1=0.8, beta_2=0.9, epsilon=1e-3),
        lambda: optimizers.LossScaleOptimizer(optimizers.Adam(1e-2), initial_scale=1.0),
    ],
    ids=["adam", "schedule and clipping", "adamw", "loss scale"],
)
def test_updated_weights_are_keras_own(optimizer: Callable[[], optimizers.Optimizer]) -> None:
    keras_own, ours = steps(_dense, (4, 6), optimizer=optimizer, count=3)
    require_same(keras_own, ours)
    if "LossScale" not in type(optimizer()).__name__:  # its update lies in a branch of the graph
        assert ADAM in ours.operations - keras_own.operations


def test_amsgrad_stays_keras_own() -> None:
    keras_own, ours = steps(_dense, (4, 6), optimizer=lambda: optimizers.Adam(amsgrad=True))
    assert ADAM not in ours.operations
    require_same(keras_own, ours, 0)


def test_a_network_is_left_as_it_was() -> None:
    network, optimizer = _norm((4, 3, 5, 6))(), optimizers.Adam()
    before = [{**vars(one)} for one in (*network.layers, optimizer)]
    with pytest.raises(KeyError), fused(network, optimizer):
        raise KeyError
    assert [{**vars(one)} for one in (*network.layers, optimizer)] == before
