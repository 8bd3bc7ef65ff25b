"""Depthwise convolutions of a training step are the layers' own."""

from __future__ import annotations

from collections.abc import Callable

import keras
import pytest

from tests.trainer.training.kernels.same_step import require_same, steps
from trainer.networks.layers import DepthwiseConv2D, DepthwiseConv3D


def _require_same(make: Callable[[], keras.Layer], shape: tuple[int, ...]) -> None:
    keras_own, ours = steps(lambda: keras.Sequential([keras.Input(shape[1:]), make()]), shape)
    assert ours.operations != keras_own.operations
    require_same(keras_own, ours)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "grid"),
    [
        (5, 1, "same", (7, 6, 9)),
        (5, 2, "same", (9, 8, 7)),
        (5, 1, "same", (2, 3, 1)),
        (5, 2, "same", (3, 2, 1)),
        (3, 2, "same", (8, 7, 3)),
        (5, 2, "valid", (9, 8, 7)),
        (3, 1, "valid", (4, 5, 3)),
    ],
    ids=str,
)
def test_volumes(size: int, stride: int, padding: str, grid: tuple[int, ...]) -> None:
    _require_same(lambda: DepthwiseConv3D(size, stride, padding), (2, *grid, 8))


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [(5, 1, (7, 6)), (5, 2, (9, 8)), (5, 1, (2, 1)), (3, 2, (2, 3)), (3, 1, (6, 7))],
    ids=str,
)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_slices(size: int, stride: int, grid: tuple[int, ...], precision: str) -> None:
    def make() -> keras.Layer:
        return DepthwiseConv2D(
            size, strides=stride, padding="same", use_bias=False, dtype=precision
        )

    _require_same(make, (3, *grid, 16))
