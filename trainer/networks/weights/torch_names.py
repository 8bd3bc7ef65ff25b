"""A PyTorch ResNet's arrays, each beside the variable of ours that it belongs to.

MedicalNet, MONAI and torchvision (in 2D) call them alike:

    conv1, bn1, layer{1..4}.{block}.conv{1..3}, .bn{1..3}, .downsample.{0,1}, fc
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from beam_jobs.common.contract_json import ContractError, shown
from trainer.config.network import RESNETS
from trainer.networks.layers import AveragePool3D, ZeroChannels

_EPSILON = 1e-5  # of torch.nn.BatchNorm3d
_HEADS = ("fc.", "conv_seg.")  # of classifiers, and of MedicalNet's segmentation
_COUNTER = ".num_batches_tracked"
_KINDS = (layers.Conv2D, layers.Conv3D, layers.BatchNormalization)
_SHORTCUT = (*_KINDS, AveragePool3D, ZeroChannels)  # what a block may have beside its branch

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mapped:
    """Where a file's arrays go.

    Attributes:
      arrays: (variable, PyTorch's name, array in Keras's order of axes), in the network's order.
        Its shape is the file's: channels and dimensions may have to be fitted.
      ignored: names of a head, which a network of ours has one of its own for.
    """

    arrays: list[tuple[keras.Variable, str, npt.NDArray[Any]]]
    ignored: tuple[str, ...]


def resnet_arrays(model: keras.Model, tensors: Arrays) -> Mapped:
    """Finds every array of a ResNet of ours in PyTorch's state dict of the same.

    BatchNormalization divides by sqrt(variance + epsilon), and PyTorch's epsilon is another: gamma
    takes up the difference, for the stored statistics exactly.

    Args:
      model: resnet10, resnet18, resnet34 or resnet50, in the layout of the state dict.
      tensors: name → array, of `read_tensors`; what all names begin with (`module.`) may stand.

    Raises:
      ContractError: the file lacks arrays or has others, by name; or numbers that are not finite.
    """
    if model.name not in RESNETS:
        raise ContractError(f"of PyTorch, from which {', '.join(RESNETS)} start, not {model.name}")
    left = dict(_without_prefix(tensors))
    ignored = tuple(name for name in left if name.startswith(_HEADS))
    for name in [*ignored, *(name for name in left if name.endswith(_COUNTER))]:
        del left[name]
    arrays: list[tuple[keras.Variable, str, npt.NDArray[Any]]] = []
    lacking: list[str] = []
    for name, layer in _named_layers(model):
        if isinstance(layer, layers.BatchNormalization):
            found = _normalisation(layer, name, left, lacking)
        else:
            found = _convolution(layer, name, left, lacking)
        arrays += [(variable, f"{name}.{end}", value) for variable, (end, value) in found]
    if lacking or left:
        raise ContractError(_misfit(model.name, lacking, list(left)))
    for _, name, value in arrays:
        if value.dtype.kind != "f":
            raise ContractError(f"{name} holds {value.dtype}, not floating point")
        if not np.isfinite(value).all():
            raise ContractError(f"{name} holds numbers that are not finite")
        if name.endswith(".running_var") and (value < 0).any():
            raise ContractError(f"{name} holds variances below 0")
    return Mapped(arrays=arrays, ignored=ignored)


def _without_prefix(tensors: Arrays) -> Arrays:
    """Names without the parts that all of them begin with, as wrappers of networks put before."""
    while len(firsts := {name.partition(".")[0] for name in tensors}) == 1 and len(tensors) > 1:
        if not all("." in name for name in tensors):
            break
        (first,) = firsts
        tensors = {name[len(first) + 1 :]: value for name, value in tensors.items()}
    return tensors


def _named_layers(model: keras.Model) -> Iterator[tuple[str, keras.Layer]]:
    """(PyTorch's name, convolution or normalisation) of a ResNet, block after block."""
    made_by = {id(layer.output): layer for layer in model.layers}
    stem = [layer for layer in model.layers if isinstance(layer, _KINDS)][:2]
    yield from zip(("conv1", "bn1"), stem, strict=True)
    stage, block = 1, 0
    for join in (layer for layer in model.layers if isinstance(layer, layers.Add)):
        branch, start = join.input
        projection: list[keras.Layer] = []
        while isinstance(last := made_by[id(start)], _SHORTCUT):
            projection = [last, *projection] if isinstance(last, _KINDS) else projection
            start = last.input
        inner = _back(made_by, branch, start)
        if block and start is not join.input[1]:
            stage, block = stage + 1, 0
        numbers = [f"{number // 2 + 1}" for number in range(len(inner))]
        for kind, number, layer in zip(("conv", "bn") * len(inner), numbers, inner, strict=False):
            yield f"layer{stage}.{block}.{kind}{number}", layer
        for place, layer in enumerate(projection):
            yield f"layer{stage}.{block}.downsample.{place}", layer
        block += 1


def _back(made_by: Mapping[int, keras.Layer], x: Any, start: Any) -> list[keras.Layer]:
    """The convolutions and normalisations on the way from one tensor to another."""
    found: list[keras.Layer] = []
    while x is not start:
        layer = made_by[id(x)]
        if isinstance(layer, _KINDS):
            found.insert(0, layer)
        x = layer.input
    return found


_Found = Iterator[tuple[keras.Variable, tuple[str, npt.NDArray[Any]]]]


def _convolution(
    layer: keras.Layer, name: str, left: dict[str, npt.NDArray[Any]], lacking: list[str]
) -> _Found:
    kernel = _taken(f"{name}.weight", left, lacking)
    if kernel.ndim > 2:  # (filter, channel, row, ...) → (row, ..., channel, filter)
        kernel = np.transpose(kernel, (*range(2, kernel.ndim), 1, 0))
    yield layer.kernel, ("weight", kernel)
    if layer.use_bias:
        bias = left.pop(f"{name}.bias", np.zeros(layer.filters, np.float32))
        yield layer.bias, ("bias", bias)


def _normalisation(
    layer: keras.Layer, name: str, left: dict[str, npt.NDArray[Any]], lacking: list[str]
) -> _Found:
    ends = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (_taken(f"{name}.{end}", left, lacking) for end in ends)
    if gamma.shape == variance.shape:
        with np.errstate(invalid="ignore", divide="ignore"):
            wide = np.asarray(variance, np.float64)
            factor = np.sqrt((wide + layer.epsilon) / (wide + _EPSILON))
        gamma = np.asarray(gamma * factor, np.float32)
    values = zip(ends, (gamma, beta, mean, variance), strict=True)
    yield from zip(layer.weights, values, strict=True)


def _taken(name: str, left: dict[str, npt.NDArray[Any]], lacking: list[str]) -> npt.NDArray[Any]:
    if name not in left:
        lacking.append(name)
        return np.zeros(0, np.float32)
    return left.pop(name)


def _misfit(network: str, lacking: list[str], left: list[str]) -> str:
    parts = []
    if lacking:
        parts.append(f"lacks {_first(lacking)} of {network}")
    if left:
        parts.append(f"has {_first(left)}, for which {network} has no place")
    return "; ".join(parts)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{shown(names[0])}{more}"
