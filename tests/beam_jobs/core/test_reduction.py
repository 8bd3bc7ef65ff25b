"""The banded, cropped, streamed reduction equals the plain sum it stands for."""

import numpy as np
import pytest

from beam_jobs.core.dicom.pixels import StoredSlice, is_blank
from beam_jobs.core.reduction import axis_weights, reduce_stack

DTYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64)


def random_weights(rng, inputs: int, flip: bool):
    """Uneven inputs, an output lattice that reaches beyond both of their ends."""
    places = np.cumsum(rng.uniform(0.5, 1.5, inputs))
    step = rng.uniform(0.3, 6)
    wanted = np.arange(places[0] - 5, places[-1] + 5, step)
    return axis_weights(places, wanted[::-1] if flip else wanted, step)


def random_volume(rng, dtype, shape):
    """(slice, row, column), some slices blank, the others zero outside a box of their own."""
    volume = np.zeros(shape, dtype)
    for plane in volume:
        if rng.random() < 0.3:
            continue
        rows = np.sort(rng.integers(0, shape[1] + 1, 2))
        columns = np.sort(rng.integers(0, shape[2] + 1, 2))
        box = plane[slice(*rows), slice(*columns)]
        box[...] = rng.integers(0, 100, box.shape)
    return volume


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(12))
def test_reduction_is_the_dense_sum(dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 25)), int(rng.integers(1, 90)), int(rng.integers(1, 90)))
    volume = random_volume(rng, dtype, shape)
    slopes = rng.choice([1.0, 0.5, -2.0], shape[0])
    intercepts = rng.choice([0.0, -1000.0, 3.0], shape[0]) * (seed % 2)
    slices, rows, columns = (
        random_weights(rng, size, flip=bool(seed % (axis + 2))) for axis, size in enumerate(shape)
    )
    blank = map(is_blank, volume)
    stored = (StoredSlice(*item) for item in zip(volume, slopes, intercepts, blank, strict=True))
    found = reduce_stack(stored, rows, columns, slices)
    expected = np.einsum(
        "pk,or,kri,ci->poc",
        slices.matrix.astype(float),
        rows.matrix.astype(float),
        volume * slopes[:, None, None],
        columns.matrix.astype(float),
        optimize=True,
    )
    inside = rows.inside[:, None] & columns.inside[None]
    expected += (slices.matrix.astype(float) @ intercepts)[:, None, None] * inside
    np.testing.assert_allclose(found, expected, atol=1e-5 * (1 + np.abs(expected).max()))


def test_foreground_beside_every_output_leaves_zeros():
    """The box holds samples, and no output row takes any of them."""
    volume = np.zeros((2, 64, 64), np.int16)
    volume[:, 40:, 8:16] = 7
    weights = axis_weights(np.arange(64), np.arange(4.0, 24.0, 4.0), 4.0)
    slices = axis_weights([0.0, 1.0], [0.0, 1.0], 1.0)
    stored = (StoredSlice(plane, 1.0, 0.0, is_blank(plane)) for plane in volume)
    assert not reduce_stack(stored, weights, weights, slices).any()


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5, 6.0])
def test_weights_sum_to_one_and_keep_their_place(width):
    places = np.cumsum(np.random.default_rng(0).uniform(0.4, 1.6, 60))
    wanted = np.linspace(places[0], places[-1], 37)
    weights = axis_weights(places, wanted, width)
    assert weights.inside.all()
    np.testing.assert_allclose(weights.matrix.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(weights.matrix @ places, wanted, atol=1e-4)
