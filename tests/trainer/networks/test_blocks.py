"""Layers as PyTorch pads them, against sums written out."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from trainer.config.network import NetworkConfig
from trainer.networks.blocks import Layout, Parts

GRIDS = [(6, 7, 8), (9, 5, 4)]
SYMMETRIC = Parts(config=NetworkConfig(name="resnet10"), layout=Layout(padding="symmetric"))


def windows(x: npt.NDArray[Any], size: int, stride: int) -> npt.NDArray[Any]:
    """Of a (row, column, slice) map with size // 2 zeros all round, as `torch.nn.Conv3d` does."""
    padded = np.pad(x, size // 2)
    found = np.lib.stride_tricks.sliding_window_view(padded, (size,) * 3)
    return found[::stride, ::stride, ::stride]


def applied(layer: Any, x: npt.NDArray[Any]) -> tuple[keras.Model, npt.NDArray[Any]]:
    given = keras.Input((*x.shape, 1))
    model = keras.Model(given, layer(given))
    return model, np.asarray(model(x[None, ..., None]))[0, ..., 0]


@pytest.mark.parametrize(
    ("grid", "size", "stride"), [(grid, *kind) for grid in GRIDS for kind in ((3, 2), (7, 2))]
)
def test_a_convolution_pads_as_many_voxels_before_as_behind(
    grid: tuple[int, int, int], size: int, stride: int
) -> None:
    x = np.random.default_rng(0).normal(size=grid).astype(np.float32)
    model, found = applied(lambda x: SYMMETRIC.conv(x, 1, size, stride), x)
    (kernel,) = model.get_weights()
    expected = np.einsum("ijkabc,abc->ijk", windows(x, size, stride), kernel[..., 0, 0])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_max_pool_pads_as_many_voxels_before_as_behind(grid: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).uniform(size=grid).astype(np.float32)
    _, found = applied(lambda x: SYMMETRIC.max_pool(x, 3), x)
    np.testing.assert_array_equal(found, windows(x, 3, 2).max(axis=(3, 4, 5)))


def test_nothing_is_added_where_both_paddings_are_the_same() -> None:
    for shape, (size, stride) in itertools.product([(5, 7, 9)], [(3, 1), (3, 2), (1, 2), (7, 2)]):
        model, _ = applied(
            lambda x, size=size, stride=stride: SYMMETRIC.conv(x, 1, size, stride),
            np.zeros(shape, np.float32),
        )
        assert len(model.layers) == 2
