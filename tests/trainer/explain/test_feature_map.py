"""Where the positions of a network's last feature map lie in the volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers

from beam_jobs.common.cli import UsageError
from tests.trainer.networks.own_networks import HERE
from trainer.config.network import NetworkConfig
from trainer.explain.feature_map import last_feature_map
from trainer.networks.layers import EdgeSlices
from trainer.networks.registry import Standardise, build_model

SHAPE = (24, 16, 8)


def _map(inner: Callable[[Any], Any]) -> Any:
    volume = keras.Input((*SHAPE, 1))
    return last_feature_map(keras.Model(volume, inner(Standardise()(volume))))


def _conv(size: int, **settings: Any) -> layers.Conv3D:
    return layers.Conv3D(1, size, **settings)


@pytest.mark.parametrize(
    ("inner", "starts", "strides"),
    [
        (lambda x: _conv(3)(x), (1, 1, 1), (1, 1, 1)),
        (lambda x: _conv(3, dilation_rate=2)(x), (2, 2, 2), (1, 1, 1)),
        # Four voxels, of which two are padding, at a stride of 4: around voxel 1.5 - 2.
        (
            lambda x: _conv(4, strides=4)(layers.ZeroPadding3D(2)(x)),
            (-0.5, -0.5, -0.5),
            (4, 4, 4),
        ),
        (lambda x: _conv(1)(layers.Cropping3D(((3, 1), (0, 0), (2, 2)))(x)), (3, 0, 2), (1, 1, 1)),
        (lambda x: layers.UpSampling3D(2)(_conv(2, strides=2)(x)), (0.0, 0.0, 0.0), (1, 1, 1)),
        (
            lambda x: layers.Conv3DTranspose(1, 2, strides=2)(_conv(4, strides=4)(x)),
            (0.5, 0.5, 0.5),
            (2, 2, 2),
        ),
        (lambda x: _conv(3)(EdgeSlices(2, 1)(x)), (1, 1, -1), (1, 1, 1)),
        # Tokens that become a grid again.
        (
            lambda x: layers.Reshape((6, 4, 2, 1))(layers.Reshape((48, 1))(_conv(4, strides=4)(x))),
            (1.5, 1.5, 1.5),
            (4, 4, 4),
        ),
    ],
)
def test_positions_are_followed_through_what_moves_them(
    inner: Callable[[Any], Any], starts: tuple[float, ...], strides: tuple[float, ...]
) -> None:
    found = _map(lambda x: layers.Flatten()(inner(x)))
    assert found.starts == pytest.approx(starts)
    assert found.strides == pytest.approx(strides)


def test_a_layer_that_is_called_twice_moves_them_twice() -> None:
    conv = _conv(3)
    found = _map(lambda x: layers.Flatten()(conv(conv(x))))
    assert found.starts == (2, 2, 2)
    assert found.tensor.shape == (None, 20, 12, 4, 1)


def test_a_users_network_has_a_map_within_its_nested_models() -> None:
    model = build_model(NetworkConfig(name=f"{HERE}:nested"), SHAPE, 1)
    assert last_feature_map(model).tensor.shape == (None, *SHAPE, 4)
    keras.Model(model.get_layer("standardise").output, last_feature_map(model).tensor)


def test_a_network_that_hides_its_layers_is_refused_by_name() -> None:
    config = NetworkConfig(name=f"{HERE}:hidden")
    model = build_model(config, SHAPE, 1)
    with pytest.raises(
        UsageError, match=r"gradcam: hidden shows no feature map .* integrated_grad"
    ):
        last_feature_map(model)
