"""Numbers that describe a prepared case: intensity, texture, symmetry and shape; NumPy and SciPy.

Lengths are millimetres and volumes millilitres, by the record's affine. Intensities are divided by
the mean of their modality's foreground (voxels > 0), so a scanner's gain cancels. A volume is first
turned to the axes that prepared grids have (row → posterior, column → left, slice → superior), so
nothing depends on the order or direction in which its axes are stored.

    head_ml, head_extent_ap_mm, head_extent_lr_mm, head_extent_si_mm     all modalities together
    T1wCE_absent                       1 where the modality has no foreground; the rest is NaN then
    T1wCE_foreground_ml
    T1wCE_std, _skew, _kurtosis, _entropy, _p01 ... _p99                 of the foreground
    T1wCE_hist_0.50_0.75 ...           share of the foreground between these multiples of its mean
    T1wCE_gradient_mean, _std, _p95    per mm, where all six neighbours are foreground
    T1wCE_texture_mean, _p95           deviation within about 9 mm
    T1wCE_mirror_mean, _p95            absolute difference from the mirror image, left and right
    T1wCE_left_minus_right             difference of the halves' means
    T1wCE_bright_ml                    the largest connected piece above the 95th percentile: volume
    T1wCE_bright_share                 its part of all voxels above it
    T1wCE_bright_contrast              its mean
    T1wCE_bright_compactness           1 for a ball, less for anything else
    T1wCE_bright_depth_mm              its mean distance to the surface of the head
    T1wCE_bright_lateral_mm            distance of its middle to the head's mid-plane
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, math.inf)  # in foreground means
_ENTROPY_EDGES = (*np.linspace(0.0, 4.0, 65).tolist(), math.inf)
_TEXTURE_MM = 9.0
# Columns: what a stored axis must run along to become row, column and slice. Patient axes are LPS.
_CANONICAL = ((1, 1), (0, 1), (2, 1))  # (patient axis, sign): posterior, left, superior

_HEAD = ("head_ml", "head_extent_ap_mm", "head_extent_lr_mm", "head_extent_si_mm")
_INTENSITY = (
    "foreground_ml",
    *("std", "skew", "kurtosis", "entropy"),
    *(f"p{percentile:02d}" for percentile in _PERCENTILES),
    *(f"hist_{low:.2f}_{high:.2f}" for low, high in itertools.pairwise(_EDGES)),
)
_TEXTURE = ("gradient_mean", "gradient_std", "gradient_p95", "texture_mean", "texture_p95")
_SYMMETRY = ("mirror_mean", "mirror_p95", "left_minus_right")
_BRIGHT = ("ml", "share", "contrast", "compactness", "depth_mm", "lateral_mm")
_BRIGHT_NAMES = tuple(f"bright_{name}" for name in _BRIGHT)
_MODALITY = (*_INTENSITY, *_TEXTURE, *_SYMMETRY, *_BRIGHT_NAMES)


def feature_names(modalities: Sequence[str]) -> list[str]:
    """Names in the order of `case_features`."""
    names = list(_HEAD)
    for modality in modalities:
        names += [f"{modality}_{name}" for name in ("absent", *_MODALITY)]
    return names


def case_features(volume: npt.NDArray[Any], affine: Floats) -> Floats:
    """The features of one prepared case.

    Args:
      volume: (row, column, slice, channel), any numeric dtype; 0 is background.
      affine: 4x4, (row, column, slice, 1) of a voxel centre to patient LPS millimetres.

    Returns:
      float64 (features,), in the order of `feature_names`; NaN where a modality is absent.
    """
    values, mm = canonical(volume, affine)
    head: Mask = np.asarray((values > 0).any(axis=-1))
    if not head.any():
        absent = [1.0, *[math.nan] * len(_MODALITY)]
        return np.array([0.0] * len(_HEAD) + absent * values.shape[3])
    box = ndimage.find_objects(head.astype(np.uint8))[0]
    values = np.pad(values[box], ((1, 1), (1, 1), (1, 1), (0, 0)))
    head = np.pad(head[box], 1)
    voxel_ml = float(np.prod(mm)) / 1000
    found = [head.sum() * voxel_ml]
    found += [(n - 2) * step for n, step in zip(head.shape, mm, strict=True)]
    depth = ndimage.distance_transform_edt(head, sampling=mm)
    columns = np.arange(head.shape[1])
    middle = float((head.sum(axis=(0, 2)) * columns).sum() / head.sum())
    for channel in range(values.shape[3]):
        own = np.ascontiguousarray(values[..., channel], dtype=np.float64)
        foreground = own > 0
        if not foreground.any():
            found += [1.0, *[math.nan] * len(_MODALITY)]
            continue
        own /= own[foreground].mean()
        inside = np.sort(own[foreground])
        found += [0.0, inside.size * voxel_ml, *_intensity(inside)]
        found += _texture(own, foreground, mm)
        found += _symmetry(own, foreground, middle)
        found += _bright(own, _percentiles(inside, [95])[0], depth, middle, mm)
    return np.array(found)


def canonical(volume: npt.NDArray[Any], affine: Floats) -> tuple[npt.NDArray[Any], Floats]:
    """The volume with its axes turned to (row → posterior, column → left, slice → superior).

    Axes are permuted and reversed, never resampled: an oblique grid comes out as near as it gets.

    Returns:
      The turned volume (a view), and the voxel's size along its three axes in mm.
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :3]
    mm = np.linalg.norm(directions, axis=0)
    cosines = directions / mm
    stored: list[int] = []
    # Slices first, then columns: the axis that runs most along each patient axis, once each.
    for patient_axis, _ in reversed(_CANONICAL):
        free = [axis for axis in range(3) if axis not in stored]
        stored.insert(0, max(free, key=lambda axis: abs(cosines[patient_axis, axis])))
    turned = np.transpose(volume, (*stored, 3))
    for place, (axis, (patient_axis, sign)) in enumerate(zip(stored, _CANONICAL, strict=True)):
        if cosines[patient_axis, axis] * sign < 0:
            turned = np.flip(turned, axis=place)
    return turned, mm[stored]


def _intensity(inside: Floats) -> list[float]:
    """Of the foreground's values, sorted; their mean is 1."""
    centred = inside - 1
    variance = float(np.mean(centred**2))
    deviation = math.sqrt(variance)
    flat = deviation < 1e-6
    skew = 0.0 if flat else float(np.mean(centred**3)) / deviation**3
    kurtosis = 0.0 if flat else float(np.mean(centred**4)) / variance**2 - 3
    share = _shares(inside, _ENTROPY_EDGES)
    entropy = -float(np.sum(share[share > 0] * np.log2(share[share > 0])))
    percentiles = _percentiles(inside, _PERCENTILES)
    histogram = _shares(inside, _EDGES).tolist()
    return [deviation, skew, kurtosis, entropy, *percentiles, *histogram]


def _shares(inside: Floats, edges: Sequence[float]) -> Floats:
    """The share of sorted values in each bin, lower edge included."""
    return np.diff(np.searchsorted(inside, edges)) / inside.size


def _percentiles(inside: Floats, percentiles: Sequence[int]) -> list[float]:
    """Of sorted values, which spares `np.percentile`'s search."""
    places = np.array(percentiles) / 100 * (inside.size - 1)
    return list(map(float, np.interp(places, np.arange(inside.size), inside)))


def _texture(own: Floats, foreground: Mask, mm: Floats) -> list[float]:
    """Gradients and local deviation where nothing of the background takes part."""
    core = ndimage.binary_erosion(foreground)
    if not core.any():
        return [0.0] * len(_TEXTURE)
    squares: Any = sum(part**2 for part in np.gradient(own, *mm))
    gradient = np.sqrt(squares[core])
    size = [2 * round(_TEXTURE_MM / step / 2) + 1 for step in mm]

    def local(values: Floats) -> Floats:
        smooth: Floats = ndimage.uniform_filter(values, size, mode="constant")[core]
        return smooth

    share = local(foreground.astype(np.float64))
    mean = local(own) / share
    deviation = np.sqrt(np.maximum(local(own**2) / share - mean**2, 0.0))
    return [
        *(float(gradient.mean()), float(gradient.std()), float(np.percentile(gradient, 95))),
        *(float(deviation.mean()), float(np.percentile(deviation, 95))),
    ]


def _symmetry(own: Floats, foreground: Mask, middle: float) -> list[float]:
    """Against the mirror image about the head's middle column (to half a voxel)."""
    total, last = round(2 * middle), own.shape[1] - 1
    window = slice(max(0, total - last), min(last, total) + 1)
    values, known = own[:, window], foreground[:, window]
    both = known & known[:, ::-1]
    half = values.shape[1] // 2
    left, right = both[:, -half:], both[:, :half]
    if not left.any():
        return [0.0] * len(_SYMMETRY)
    difference = np.abs(values[:, -half:] - values[:, :half][:, ::-1])[left]
    return [
        float(difference.mean()),
        float(np.percentile(difference, 95)),
        float(values[:, -half:][left].mean() - values[:, :half][right].mean()),
    ]


def _bright(own: Floats, threshold: float, depth: Floats, middle: float, mm: Floats) -> list[float]:
    """The largest connected piece of what lies above a threshold, the 95th percentile."""
    bright = own > threshold
    if not bright.any():  # a constant foreground
        return [0.0] * len(_BRIGHT)
    pieces, _ = ndimage.label(bright, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces[bright])
    places = np.nonzero(pieces == int(sizes.argmax()))
    count = places[0].size
    voxel = float(np.prod(mm))
    # A solid ball of radius r has its voxels at a mean square distance of 3/5 r² from its middle;
    # each voxel adds its own extent.
    spread = sum(
        float(np.var(index)) * step**2 + step**2 / 12
        for index, step in zip(places, mm, strict=True)
    )
    ball = 4 / 3 * math.pi * (5 / 3 * spread) ** 1.5
    return [
        count * voxel / 1000,
        count / int(bright.sum()),
        float(own[places].mean()),
        count * voxel / ball,
        float(depth[places].mean()),
        abs(float(places[1].mean()) - middle) * float(mm[1]),
    ]
