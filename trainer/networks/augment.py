"""Random variation of training volumes, in the graph: `keras.ops` and `keras.random` only.

    stored volumes (batch, row, column, slice, channel)
      → flips: exact, no resampling
      → rotation, scale, shift and deformation: composed, ONE trilinear resampling
      → gamma, shading, noise: foreground only, per channel
      → cutout
      → float32 in stored units; background exactly 0, foreground in (0, top]

Every volume is drawn on its own. All randomness comes from the caller's `SeedGenerator`, which is
drawn from as often as the config says, whatever the data: saving its state is enough to resume.
Nothing depends on a known batch size, and all of it compiles with XLA, which makes it more than
twice as fast on a CPU.

The network standardises a channel over its foreground (voxels > 0), so the foreground keeps its
meaning: a resampled voxel is foreground where at least half of its weight is, and its value is the
mean over that part alone. Plain interpolation would put a dim rim around every head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from trainer.config.augment import AugmentConfig

_LEAST = 1e-6  # of top: what keeps a foreground voxel above 0 under noise


def augment(
    volume: Any,
    *,
    config: AugmentConfig,
    voxel_mm: Sequence[float],
    top: float,
    seed: keras.random.SeedGenerator,
) -> Any:
    """Varies each volume of a batch as `config` says, mixup apart.

    Args:
      volume: (batch, row, column, slice, channel) as stored (uint8, uint16, float16) or float32;
        values in [0, top], 0 is background. The batch size may be unknown, the rest may not.
      config: what to vary.
      voxel_mm: step along (row, column, slice) in mm.
      top: the greatest stored value: 255 for uint8, 65535 for uint16, 1 for float16.
      seed: the caller's; its state moves on.

    Returns:
      float32 of the same shape in stored units. Without anything to vary, the values as they were.
    """
    batch = ops.shape(volume)[0]
    if any(config.flip):
        volume = _flip(volume, config.flip, seed)
    if config.resamples:
        volume = _move(volume, config, voxel_mm, seed)
    values = ops.cast(volume, "float32")
    if config.intensity_probability and (config.gamma or config.bias or config.noise):
        values = _shade(values, config, top, seed)
    if config.cutout and config.cutout_probability:
        drawn = keras.random.uniform((batch, 4), seed=seed)
        values = values * _outside_box(drawn, config, values.shape[1:4])
    return values


def mixup(*arrays: Any, alpha: float, seed: keras.random.SeedGenerator) -> list[Any]:
    """Mixes each example with its neighbour in the batch, which the shuffle has made a random one.

    Source: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Args:
      arrays: each (batch, ...), of any numeric type: volumes (batch, row, column, slice, channel),
        labels and whatever else belongs to the examples.
      alpha: weights are drawn from Beta(alpha, alpha); 0 mixes nothing.
      seed: the caller's; its state moves on.

    Returns:
      The arrays, mixed, float32.
    """
    given = [ops.cast(array, "float32") for array in arrays]
    if not alpha:
        return given
    weight = symmetric_beta(alpha, ops.shape(given[0])[0], seed)

    def mixed(values: Any) -> Any:
        own = ops.reshape(weight, (-1, *[1] * (len(values.shape) - 1)))
        return own * values + (1 - own) * ops.roll(values, 1, axis=0)

    return [mixed(values) for values in given]


def symmetric_beta(alpha: float, count: Any, seed: keras.random.SeedGenerator) -> Any:
    """`count` draws from Beta(alpha, alpha), float32 (count,).

    `keras.random.beta` needs TensorFlow's gamma sampler, which XLA cannot compile. Here Ulrich's
    formula gives Beta(a + 1, a + 1), and dividing a U^(1/a) into both of its gamma variates lowers
    them to a; on the logit both are exact for every a > 0.

    Source: L. Devroye, "Random variate generation in one line of code", 1996; A. Stuart, 1962.
    """
    uniform = keras.random.uniform((count, 4), minval=1e-7, maxval=1.0, seed=seed)
    radius = ops.sqrt(1 - uniform[:, 0] ** (2 / (2 * alpha + 1)))
    higher = 0.5 + 0.5 * radius * ops.cos(2 * math.pi * uniform[:, 1])
    logit = ops.log(higher) - ops.log(1 - higher)
    return ops.sigmoid(logit + (ops.log(uniform[:, 2]) - ops.log(uniform[:, 3])) / alpha)


def _flip(volume: Any, chances: Sequence[float], seed: keras.random.SeedGenerator) -> Any:
    """Mirrors each volume along each axis with that axis's chance."""
    drawn = keras.random.uniform((ops.shape(volume)[0], 3), seed=seed)
    for axis, chance in enumerate(chances):
        if chance:
            chosen = ops.reshape(drawn[:, axis] < chance, (-1, 1, 1, 1, 1))
            volume = ops.where(chosen, ops.flip(volume, axis=axis + 1), volume)
    return volume


# --------------------------------------------------------------------------------------- in space


def draw_movement(
    config: AugmentConfig, batch: Any, seed: keras.random.SeedGenerator
) -> tuple[Any, Any, Any, Any]:
    """Draws rotation, size and shift for each volume.

    Returns:
      Angles in radians (batch, 3), factors of size (batch,), shifts in mm (batch, 3), and whether
      the volume is moved at all (batch,).
    """
    drawn = keras.random.uniform((batch, 8), minval=-1.0, maxval=1.0, seed=seed)
    return (
        math.radians(config.rotation_deg) * drawn[:, :3],
        ops.exp(math.log1p(config.scaling) * drawn[:, 3]),
        config.translation_mm * drawn[:, 4:7],
        drawn[:, 7] < 2 * config.spatial_probability - 1,
    )


def sampling_affine(angles: Any, size: Any, shift_mm: Any, voxel_mm: Sequence[float]) -> Any:
    """Where a moved volume takes its voxels from.

    The head is rotated about the row axis, then the column axis, then the slice axis (right-handed,
    about the grid's centre), multiplied in size, and shifted.

    Args:
      angles: radians, (batch, 3).
      size: factor, (batch,).
      shift_mm: (batch, 3).
      voxel_mm: step along (row, column, slice).

    Returns:
      (batch, 3, 4): an output voxel's (row, column, slice, 1), counted from the centre of the grid,
      to the input's. True rotations on voxels of any shape, and exactly the identity for no
      movement.
    """
    turned = None
    for axis in range(3):
        one, zero = ops.ones_like(size), ops.zeros_like(size)
        cos, sin = ops.cos(angles[:, axis]), ops.sin(angles[:, axis])
        rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
        places = [(row - axis) % 3 for row in range(3)]
        matrix = ops.stack([ops.stack([rows[i][j] for j in places], -1) for i in places], -2)
        turned = matrix if turned is None else _product(matrix, turned)
    inverse = ops.transpose(turned, (0, 2, 1)) / size[:, None, None]
    origin = -_product(inverse, shift_mm[:, :, None])
    steps = np.asarray(voxel_mm, np.float64)
    per_voxel = ops.convert_to_tensor((steps[None, :] / steps[:, None]).astype(np.float32))
    per_mm = ops.convert_to_tensor((1 / steps[:, None]).astype(np.float32))
    return ops.concatenate([inverse * per_voxel, origin * per_mm], axis=-1)


def _product(left: Any, right: Any) -> Any:
    """Matrix product in full float32: a GPU's matmul may round to TF32, which is 0.1 voxels off."""
    return ops.sum(left[:, :, :, None] * right[:, None, :, :], axis=2)


def _move(
    volume: Any, config: AugmentConfig, voxel_mm: Sequence[float], seed: keras.random.SeedGenerator
) -> Any:
    """Rotates, scales, shifts and deforms; volumes that are not moved keep their voxels exactly."""
    shape = volume.shape[1:4]
    batch = ops.shape(volume)[0]
    angles, size, shift, moved = draw_movement(config, batch, seed)
    drawn = {
        "volume": volume,
        "affine": sampling_affine(angles, size, shift, voxel_mm),
        "moved": moved,
    }
    bases: list[npt.NDArray[np.float32]] = []
    if config.elastic_mm:
        bases = [
            bspline_basis(n, config.elastic_spacing_mm / step)
            for n, step in zip(shape, voxel_mm, strict=True)
        ]
        control = (batch, *(basis.shape[1] for basis in bases), 3)
        drawn["control"] = config.elastic_mm * keras.random.uniform(control, -1.0, 1.0, seed=seed)

    def one(case: dict[str, Any]) -> Any:
        def resampled() -> Any:
            displacement = None
            if bases:
                in_voxels = case["control"] / ops.convert_to_tensor(voxel_mm, "float32")
                displacement = _spline(in_voxels, bases)
            return resample(case["volume"], case["affine"], displacement)

        return ops.cond(case["moved"], resampled, lambda: ops.cast(case["volume"], "float32"))

    # One volume after the other: the unmoved cost nothing, and memory is that of one.
    return ops.map(one, drawn)


def resample(volume: Any, affine: Any, displacement: Any = None) -> Any:
    """Trilinear values of one volume at other places; outside the grid there is background.

    Args:
      volume: (row, column, slice, channel), 0 is background.
      affine: (3, 4) from `sampling_affine`.
      displacement: (row, column, slice, 3) in voxels, added to the places.

    Returns:
      float32 of the same shape. Foreground where at least half of the eight weights fall on
      foreground, with the mean over those; elsewhere exactly 0.
    """
    shape, channels = tuple(volume.shape[:3]), volume.shape[3]
    rows, columns, slices = (
        np.arange(n, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        - np.float32((n - 1) / 2)
        for axis, n in enumerate(shape)
    )
    low, weight = [], []
    for axis, n in enumerate(shape):
        at = affine[axis, 0] * rows + affine[axis, 1] * columns + affine[axis, 2] * slices
        at = at + affine[axis, 3]
        if displacement is not None:
            at = at + displacement[..., axis]
        at = ops.clip(at + ((n - 1) / 2 + 1), 0.0, n + 1.0)  # of the padded grid
        whole = ops.minimum(ops.floor(at), float(n))
        low.append(ops.cast(whole, "int32"))
        weight.append((at - whole)[..., None])
    # A voxel and its upper neighbour side by side: four gathers of pairs instead of eight.
    padded = ops.pad(ops.cast(volume, "float32"), ((1, 1), (1, 1), (1, 2), (0, 0)))
    pairs = ops.reshape(
        ops.concatenate([padded[:, :, :-1], padded[:, :, 1:]], axis=-1), (-1, 2 * channels)
    )
    width, depth = shape[1] + 2, shape[2] + 2
    first = (low[0] * width + low[1]) * depth + low[2]
    values: Any = 0.0
    share: Any = 0.0
    for row, column in itertools.product((0, 1), (0, 1)):
        part = weight[0] if row else 1 - weight[0]
        part = part * (weight[1] if column else 1 - weight[1])
        pair = ops.take(pairs, first + (row * width + column) * depth, axis=0)
        values = values + part * pair
        share = share + part * ops.cast(pair > 0, "float32")
    values, share = (
        sums[..., :channels] * (1 - weight[2]) + sums[..., channels:] * weight[2]
        for sums in (values, share)
    )
    return ops.where(share >= 0.5, values / ops.maximum(share, 0.5), 0.0)


def bspline_basis(count: int, spacing: float) -> npt.NDArray[np.float32]:
    """Cubic B-splines at the voxels of one axis, (count, control points); rows sum to 1.

    Args:
      count: voxels of the axis.
      spacing: of the control points, in voxels.
    """
    places = np.arange(count) / spacing
    control = np.arange(math.floor(places[-1]) + 4) - 1
    distance = np.abs(places[:, None] - control)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    values: npt.NDArray[np.float32] = np.where(distance < 1, near, far).astype(np.float32)
    return values


def _spline(control: Any, bases: Sequence[npt.NDArray[np.float32]]) -> Any:
    """(..., a, b, c, channel) at control points → (..., row, column, slice, channel) at voxels."""
    rows, columns, slices = (ops.convert_to_tensor(basis) for basis in bases)
    field = ops.einsum("...abcd,sc->...absd", control, slices)
    field = ops.einsum("...absd,kb->...aksd", field, columns)
    return ops.einsum("...aksd,ra->...rksd", field, rows)


# ------------------------------------------------------------------------------------- in intensity


def _shade(values: Any, config: AugmentConfig, top: float, seed: keras.random.SeedGenerator) -> Any:
    """Gamma, shading and noise on the foreground; each channel of each volume draws its own."""
    batch, channels = ops.shape(values)[0], values.shape[4]
    foreground = values > 0
    drawn = keras.random.uniform((batch, 1, 1, 1, channels, 5), seed=seed)
    gamma_on, bias_on, noise_on = (
        ops.cast(drawn[..., part] < config.intensity_probability, "float32") for part in range(3)
    )
    if config.gamma:
        exponent = math.log1p(config.gamma) * (2 * drawn[..., 3] - 1) * gamma_on
        values = top * ops.power(values / top, ops.exp(exponent))
    if config.bias:
        bases = [bspline_basis(n, max(n - 1, 1) / 2) for n in values.shape[1:4]]
        control = (batch, *(basis.shape[1] for basis in bases), channels)
        field = math.log1p(config.bias) * keras.random.uniform(control, -1.0, 1.0, seed=seed)
        values = values * ops.exp(_spline(field * bias_on, bases))
    if config.noise:
        deviation = config.noise * top * drawn[..., 4] * noise_on
        normal = keras.random.normal((batch, *values.shape[1:]), seed=seed)
        values = values + deviation * normal
    return ops.where(foreground, ops.clip(values, _LEAST * top, top), 0.0)


def _outside_box(drawn: Any, config: AugmentConfig, shape: Sequence[int]) -> Any:
    """1 outside each volume's box, 0 in it: float32 (batch, row, column, slice, 1).

    Args:
      drawn: uniform in [0, 1), (batch, 4): the box's middle along each axis, and its chance.
      config: size and chance of the boxes.
      shape: of the grid.
    """
    inside = ops.reshape(drawn[:, 3] < config.cutout_probability, (-1, 1, 1, 1, 1))
    for axis, n in enumerate(shape):
        places = np.arange(n, dtype=np.float32) + 0.5
        along = [-1 if a == axis + 1 else 1 for a in range(5)]
        middle = ops.reshape(n * drawn[:, axis], (-1, 1, 1, 1, 1))
        near = ops.abs(places.reshape(along) - middle) < config.cutout * n / 2
        inside = ops.logical_and(inside, near)
    return 1 - ops.cast(inside, "float32")
