"""Stages read from a graph: where they begin, what is frozen, how fast each learns."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from beam_jobs.common.cli import UsageError
from trainer.config.network import NetworkConfig
from trainer.networks.layers import BatchToSequence, SlicesToBatch
from trainer.networks.registry import build_model
from trainer.networks.stages import factors, freeze, stages_of


class Halving(layers.Layer):  # type: ignore[misc]
    """A block of a user's own, which says nothing of strides."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1],), name="kernel")

    def call(self, x: Any) -> Any:
        return x[:, ::2, ::2, ::2] * self.kernel


def _network() -> keras.Model:
    x = volume = keras.Input((8, 8, 8, 1))
    x = layers.Conv3D(2, 3, name="stem")(x)  # without padding it is smaller, not halved
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv3D(2, 3, strides=2, padding="same", name="down")(x)
    gate = layers.GlobalAveragePooling3D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Conv3D(2, 1, name="gate")(gate)])
    x = layers.AveragePooling3D(1)(layers.Conv3D(2, 1, name="same")(x))
    x = Halving(name="own")(x)
    x = layers.Dense(3, name="hidden")(layers.GlobalAveragePooling3D()(x))
    return keras.Model(volume, layers.Dense(1, name="logit")(x), name="toy")


def _names(model: keras.Model) -> list[list[str]]:
    return [[layer.name for layer in stage] for stage in stages_of(model)]


def test_a_stage_begins_where_the_map_is_halved_and_the_last_is_the_head() -> None:
    expected = [["stem", "norm"], ["down", "gate", "same"], ["own"], ["hidden", "logit"]]
    assert _names(_network()) == expected


def test_layers_that_a_user_has_called_before_are_placed_by_this_graph() -> None:
    earlier = _network()
    volume = keras.Input((8, 8, 8, 1))
    again = keras.Model(volume, earlier(volume))
    flat = keras.Model(volume, earlier._run_through_graph(volume, lambda layer: layer))
    assert _names(flat) == _names(earlier)
    assert len(_names(again)) == 1  # what is not taken apart is one layer


def test_what_joins_the_slices_is_the_head() -> None:
    x = volume = keras.Input((8, 8, 4, 1))
    x = layers.Conv2D(2, 3, name="encoder")(SlicesToBatch()(x))
    x = layers.LSTM(2, name="head")(BatchToSequence(4)(layers.GlobalAveragePooling2D()(x)))
    model = keras.Model(volume, layers.Dense(1, name="logit")(x))
    assert _names(model) == [["encoder"], ["head", "logit"]]


def test_frozen_stages_keep_their_weights_and_statistics() -> None:
    model = _network()
    assert str(freeze(model, 1)) == "1 of 4 stages, 64 of 201 weights"
    before = [np.asarray(weight) for weight in model.weights]
    volume = np.random.default_rng(0).normal(3, 2, (4, 8, 8, 8, 1))
    model(volume, training=True)  # batch statistics would move
    for found, expected in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(found, expected)
    trainable = {weight.path.split("/")[0] for weight in model.trainable_weights}
    assert trainable == {"down", "gate", "same", "own", "hidden", "logit"}
    with pytest.raises(UsageError, match=r"--freeze 4: toy has 4 stages .* at most 3"):
        freeze(model, 4)


def test_each_stage_learns_by_a_factor_slower_than_the_next() -> None:
    model = _network()
    found = dict(zip((v.path for v in model.trainable_variables), factors(model, 0.5), strict=True))
    assert found["stem/kernel"] == found["norm/gamma"] == 0.125
    assert found["down/kernel"] == found["gate/bias"] == 0.25
    assert found["own/kernel"] == 0.5
    assert found["hidden/kernel"] == found["logit/bias"] == 1
    freeze(model, 2)
    assert factors(model, 0.5) == [0.5, 1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("resnet10", 6), ("se_resnet50", 6), ("densenet121", 6), ("efficientnet_b0", 6)),
        *(("seed_cnn", 4), ("slice_cnn", 5), ("slice_efficientnet_b0", 6)),
    ],
)
def test_networks_of_ours_have_a_stage_a_resolution_and_one_for_the_head(
    name: str, count: int
) -> None:
    model = build_model(NetworkConfig(name=name, width=0.1), (32, 32, 32), 1)
    stages = stages_of(model)
    assert len(stages) == count
    assert stages[-1][-1].name == "logit"
    weighted = [layer for layer in model.layers if layer.weights]
    assert sum(map(len, stages)) == len(weighted)
    assert ops.isfinite(min(factors(model, 0.7)))
