"""PyTorch's ResNet written out in NumPy, by MONAI's definition and PyTorch's documentation.

Nothing of ours or of Keras is used: weights under PyTorch's names and in its order of axes, float64
throughout, padding and strides as `torch.nn.Conv3d` and `MaxPool3d` have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
BLOCKS = {
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}


def state_dict(
    network: str, *, width: float, channels: int, shortcut: str, classes: int = 0
) -> Arrays:
    """Random weights of a network, under MedicalNet's names.

    Args:
      shortcut: "A" without weights, "B" by a convolution, "B+bias" by one with a bias.
      classes: of a head `fc`, 0 for none.
    """
    rng = np.random.default_rng(0)
    arrays: Arrays = {}

    def conv(name: str, filters: int, entering: int, size: int, *, bias: bool = False) -> None:
        scale = np.sqrt(2 / (entering * size**3))
        shape = (filters, entering, size, size, size)
        arrays[f"{name}.weight"] = (scale * rng.normal(size=shape)).astype(np.float32)
        if bias:
            arrays[f"{name}.bias"] = rng.normal(size=filters).astype(np.float32)

    def norm(name: str, filters: int) -> None:
        variance = 10 ** rng.uniform(-3, 0, filters)  # down to where epsilon matters
        for end, values in (
            ("weight", rng.uniform(0.2, 0.5, filters) * np.sqrt(variance)),
            ("bias", 0.2 * rng.normal(size=filters)),
            ("running_mean", 0.2 * rng.normal(size=filters)),
            ("running_var", variance),
        ):
            arrays[f"{name}.{end}"] = values.astype(np.float32)
        arrays[f"{name}.num_batches_tracked"] = np.array(100)

    deep = network == "resnet50"
    entering = int(64 * width)
    conv("conv1", entering, channels, 7)
    norm("bn1", entering)
    for stage, count in enumerate(BLOCKS[network], 1):
        inner = int(64 * width) * 2 ** (stage - 1)
        leaving = 4 * inner if deep else inner
        for block in range(count):
            name = f"layer{stage}.{block}"
            sizes = ((inner, 1), (inner, 3), (leaving, 1)) if deep else ((inner, 3), (inner, 3))
            last = entering
            for number, (filters, size) in enumerate(sizes, 1):
                conv(f"{name}.conv{number}", filters, last, size)
                norm(f"{name}.bn{number}", filters)
                last = filters
            if shortcut != "A" and (entering != leaving or (stage > 1 and not block)):
                bias = shortcut == "B+bias"
                conv(f"{name}.downsample.0", leaving, entering, 1, bias=bias)
                norm(f"{name}.downsample.1", leaving)
            entering = leaving
    if classes:
        arrays["fc.weight"] = rng.normal(size=(classes, entering)).astype(np.float32)
        arrays["fc.bias"] = rng.normal(size=classes).astype(np.float32)
    return arrays


def features(
    network: str,
    arrays: Mapping[str, npt.NDArray[Any]],
    x: npt.NDArray[Any],
    *,
    stem_stride: int = 1,
) -> npt.NDArray[Any]:
    """(channel, row, column, slice) → what the head would be given, in inference mode."""
    x = np.maximum(_norm(_conv(x, arrays, "conv1", stem_stride), arrays, "bn1"), 0)
    x = _windows(x, 3, 2, fill=-np.inf).max(axis=(-3, -2, -1))
    deep = network == "resnet50"
    for stage, count in enumerate(BLOCKS[network], 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and not block else 1
            # Of a bottleneck the 3×3×3 has the stride, of a basic block the first.
            strides = (1, stride, 1) if deep else (stride, 1)
            y = x
            for number, step in enumerate(strides, 1):
                y = _norm(
                    _conv(y, arrays, f"{name}.conv{number}", step), arrays, f"{name}.bn{number}"
                )
                if number < len(strides):
                    y = np.maximum(y, 0)
            x = np.maximum(y + _shortcut(x, arrays, f"{name}.downsample", y.shape, stride), 0)
    return np.asarray(x.mean(axis=(1, 2, 3)))


def features_of_image(
    network: str, arrays: Mapping[str, npt.NDArray[Any]], image: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """(channel, row, column) → features of torchvision's network, whose kernels have two axes.

    It is the 3D network over one slice whose kernels are zero but in the middle.
    """
    wide = dict(arrays)
    for name, kernel in arrays.items():
        if kernel.ndim == 4:
            edge = kernel.shape[-1] // 2
            wide[name] = np.pad(kernel[..., None], ((0, 0),) * 4 + ((edge, edge),))
    return features(network, wide, image[..., None], stem_stride=2)


def _shortcut(x: Any, arrays: Any, name: str, shape: tuple[int, ...], stride: int) -> Any:
    if f"{name}.0.weight" in arrays:
        return _norm(_conv(x, arrays, f"{name}.0", stride), arrays, f"{name}.1")
    taken = x[:, ::stride, ::stride, ::stride]
    new = np.zeros((shape[0] - len(x), *taken.shape[1:]))
    return np.concatenate([taken, new])


def _windows(x: Any, size: int, stride: int, fill: float = 0.0) -> Any:
    edge = size // 2
    padded = np.pad(x, ((0, 0), *((edge, edge),) * 3), constant_values=fill)
    views = np.lib.stride_tricks.sliding_window_view(padded, (1, size, size, size))
    return views[:, ::stride, ::stride, ::stride, 0]


def _conv(x: Any, arrays: Any, name: str, stride: int) -> Any:
    kernel = arrays[f"{name}.weight"].astype(np.float64)
    y = np.tensordot(kernel, _windows(x, kernel.shape[-1], stride), ((1, 2, 3, 4), (0, 4, 5, 6)))
    if f"{name}.bias" in arrays:
        y = y + arrays[f"{name}.bias"][:, None, None, None]
    return y


def _norm(x: Any, arrays: Any, name: str) -> Any:
    gamma, beta, mean, variance = (
        arrays[f"{name}.{end}"].astype(np.float64)[:, None, None, None]
        for end in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
