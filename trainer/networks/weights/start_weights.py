"""What a 3D network starts from: weights of a file, read before it is built and loaded after.

    file → Start: its arrays    → layout: padding, strides and epsilon as theirs
         → the network, built in that layout    → its arrays replaced; those of the head may stay

Kernels of images become kernels of volumes as in I3D (Carreira & Zisserman 2017): repeated along
the slices and divided by how many there are. Where edges are repeated too, a volume that is one
image in all of its slices is answered as that image.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import keras
import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from trainer.config.network import NetworkConfig
from trainer.config.user_code import is_reference
from trainer.networks.blocks import Layout
from trainer.networks.stages import head_of
from trainer.networks.weights.encoder_weights import encoder_of, with_channels
from trainer.networks.weights.inflation import Held, as_volumes, inflated
from trainer.networks.weights.keras_file import (
    KERAS_SUFFIXES,
    datasets,
    layer_paths,
    read_keras,
)
from trainer.networks.weights.torch_file import read_tensors
from trainer.networks.weights.torch_names import resnet_arrays

Floats = npt.NDArray[np.float32]

_EPSILON = 1e-5  # of PyTorch's batch normalisation
_EPSILON_RESNET = 1.001e-5  # of keras.applications' ResNets
_NAMED = 4  # in a line


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Weights as their file has them.

    Attributes:
      file: its name, as the user gave it.
      arrays: by the names of Keras' files or of PyTorch's state dicts, in the axis order of theirs.
      torch: which of the two.
      layers: configurations of the layers, where the file has them.
      flag: which named the file.
    """

    file: str
    arrays: Mapping[str, Floats]
    torch: bool
    layers: Sequence[Any] = ()
    flag: str = "--weights"

    @property
    def of_images(self) -> bool:
        """Whether a 2D network was trained: it has kernels of two axes, and none of three."""
        ranks = {array.ndim for array in self.arrays.values()}
        return 4 in ranks and 5 not in ranks

    def error(self, text: object) -> UsageError:
        """A line about the file."""
        return UsageError(f"{self.flag}: {self.file}: {text}")


def read(file: str, *, flag: str = "--weights") -> Start:
    """Reads a file of weights; no network is made and nothing in it is executed.

    Args:
      file: .keras, .weights.h5 or .h5 of Keras; .pth, .pt or .safetensors of PyTorch.
      flag: which names it, for messages.

    Raises:
      UsageError: no such file, or not one of weights.
    """
    if files.stat(file) is None:
        raise UsageError(f"{flag}: {file} is not a file")
    try:
        with files.fetched(file) as local:
            if file.endswith(KERAS_SUFFIXES):
                found = read_keras(local, archive=file.endswith(".keras"))
                made = Start(file=file, arrays=found.arrays, torch=False, layers=found.layers)
            else:
                made = Start(file=file, arrays=read_tensors(local), torch=True)
            return dataclasses.replace(made, flag=flag)
    except ContractError as error:
        raise UsageError(f"{flag}: {file}: {error}") from error


def layout_of(start: Start, config: NetworkConfig) -> Layout:
    """How a network must be laid out that takes these weights.

    Args:
      start: the weights.
      config: of the network; a `padding` that it names stands.

    Raises:
      UsageError: weights of a 2D network that is no twin of this one.
    """
    layout = Layout()
    if start.torch:
        direct = not any(".downsample." in name for name in start.arrays)
        layout = Layout(padding="symmetric", epsilon=_EPSILON, direct=direct)
        if start.of_images:
            layout = dataclasses.replace(layout, edge=True, stem_stride=2)
    elif not is_reference(config.name):
        if not start.of_images:
            layout = _own_layout(start.layers)
        elif config.name == "resnet50":
            layout = Layout(
                padding="symmetric",
                edge=True,
                stem_stride=2,
                stride_first=True,
                epsilon=_EPSILON_RESNET,
            )
        elif config.name.startswith("efficientnet"):
            layout = Layout(edge=True)
        else:
            raise start.error(
                f"weights of images, from which resnet50 and efficientnet_b0 to b7 start "
                f"(resnet18 and resnet34 from PyTorch's), not {config.name}"
            )
    return layout if config.padding is None else dataclasses.replace(layout, padding=config.padding)


def _own_layout(layers: Sequence[Any]) -> Layout:
    """The layout of a network that this package has saved; as published where nothing says so."""
    kinds: dict[str, list[Any]] = {}
    for layer in layers:
        kinds.setdefault(layer["class_name"].rpartition(">")[2], []).append(layer["config"])
    convolutions = kinds.get("Conv3D", [])
    norms = kinds.get("BatchNormalization", [])
    if not convolutions or not norms:
        return Layout()
    epsilon = float(norms[0]["epsilon"])
    strided = [conv["kernel_size"][0] for conv in convolutions if max(conv["strides"]) > 1]
    symmetric = "ZeroPadding3D" in kinds or epsilon != Layout().epsilon
    return Layout(
        padding="symmetric" if symmetric and "DepthwiseConv3D" not in kinds else "same",
        edge="EdgeSlices" in kinds,
        stem_stride=max(convolutions[0]["strides"]),
        stride_first=3 not in strided,
        epsilon=epsilon,
        direct="ZeroChannels" in kinds,
    )


def load(model: keras.Model, start: Start, config: NetworkConfig) -> str:
    """Gives a network the weights of a file.

    All but the head's must be there, in their shapes. A kernel over other channels than the
    volumes have is averaged over them and so scaled that equal channels are answered as before.

    Args:
      model: of `build_model`, in the layout of `layout_of`.
      start: the weights.
      config: of the network.

    Returns:
      What was taken and what is new, for a line.

    Raises:
      UsageError: weights of another network; the first array that differs is named.
    """
    try:
        if start.torch:
            return _load_torch(model, start)
        if start.of_images and not is_reference(config.name):
            found = as_volumes(start.arrays, config.name)
        else:
            found = {path: Held(path, array) for path, array in start.arrays.items()}
        return _load_paths(model, start, found)
    except ContractError as error:
        raise start.error(error) from error


def load_encoder(model: keras.Model, file: str) -> str:
    """Gives the user's own 2D encoder of a slice network the weights of a Keras file.

    The file may hold a top, and the scaling of stored images, which are not used.

    Raises:
      UsageError: as `read` and `load`.
    """
    start = read(file, flag="--encoder_weights")
    kept = {p: a for p, a in start.arrays.items() if not p.startswith("layers/normalization")}
    found = {path: Held(path, array) for path, array in kept.items()}
    try:
        return _load_paths(encoder_of(model), start, found)
    except ContractError as error:
        raise start.error(error) from error


def _load_torch(model: keras.Model, start: Start) -> str:
    mapped = resnet_arrays(model, start.arrays)
    told = _Told(start)
    for variable, name, array in mapped.arrays:
        variable.assign(told.fitted(Held(name, array), tuple(variable.shape), variable.path))
    known = {id(variable) for variable, _, _ in mapped.arrays}
    for layer in model.layers:
        if any(id(variable) not in known for variable in layer.weights):
            told.new.append(layer.name)
    return told.line(len(model.weights), mapped.ignored)


def _load_paths(model: keras.Model, start: Start, found: dict[str, Held]) -> str:
    """Replaces the arrays of the network's own file of weights, then loads that."""
    of_layer = dict(zip(layer_paths(model.layers), model.layers, strict=True))
    head = head_of(model)
    told = _Told(start)
    last = ""  # of a model that is taken whole: the one layer that may be another
    with files.scratch("weights") as scratch:
        copy = scratch / "start.weights.h5"
        model.save_weights(copy)
        with h5py.File(copy, "r+") as opened:
            wanted = datasets(opened)
            root, foreign_root = _roots(wanted, found)
            left = dict(found)
            for path in sorted(wanted, key=lambda path: _order(path, list(of_layer))):
                layer = of_layer.get("/".join(path.split("/")[:2]))
                inner = foreign_root + path.removeprefix(root) if path.startswith(root) else ""
                held, shape = left.pop(inner, None), wanted[path].shape
                if held is None and start.of_images and _is_bias(path, found):
                    held = Held("", np.zeros(shape, np.float32))
                fits = held is not None and held.array.shape == shape
                if layer is not None and layer.name in head and not fits:
                    inside = path.partition("/vars/")[0]
                    if not _is_whole(layer):
                        told.new.append(layer.name)
                        continue
                    if held is not None and len(shape) < 3 and last in ("", inside):
                        last = inside
                        told.new.append(inside)
                        continue
                if held is None:
                    raise ContractError(f"holds no {inner or path}, which {model.name} has")
                wanted[path][...] = told.fitted(held, shape, f"{model.name}'s {path}")
        unused = [held.name for path, held in left.items() if not _of_a_head(path, found)]
        if unused:
            raise ContractError(f"holds {unused[0]}, which {model.name} has not")
        model.load_weights(copy)
    return told.line(len(wanted), [held.name for held in left.values()])


def _is_whole(layer: keras.layers.Layer) -> bool:
    """Whether a layer of the graph holds a network that cannot be taken apart."""
    return any(True for _ in layer._flatten_layers(include_self=False))


def _roots(wanted: Mapping[str, Any], found: Mapping[str, Held]) -> tuple[str, str]:
    """Within which directories of two files the same network stands: it may be part of another."""

    def holders(arrays: Mapping[str, Any]) -> list[str]:
        held = Counter(
            path[: end.end()]
            for path in arrays
            for end in re.finditer("/", path)
            if "/vars/" in path
        )
        return ["", *(root for root, count in held.items() if 2 * count >= len(arrays))]

    def fits(roots: tuple[str, str]) -> int:
        mine, theirs = roots
        return sum(
            path.startswith(mine)
            and theirs + path.removeprefix(mine) in found
            and found[theirs + path.removeprefix(mine)].array.ndim == array.ndim
            for path, array in wanted.items()
        )

    return max(itertools.product(holders(wanted), holders(found)), key=fits)


def _order(path: str, layers: list[str]) -> tuple[Any, ...]:
    """Sorts arrays as the network's layers stand, those within a layer by name and number."""
    parts = path.split("/")
    top = "/".join(parts[:2])
    place = layers.index(top) if top in layers else len(layers)
    numbers = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
    return (place, numbers)


def _is_bias(path: str, found: Mapping[str, Held]) -> bool:
    """Of a convolution that has none in the 2D network."""
    layer, _, number = path.rpartition("/")
    return number == "1" and "/conv3d" in layer and f"{layer}/0" in found


def _of_a_head(path: str, found: Mapping[str, Held]) -> bool:
    """Whether an array is one of the last dense layer, of a pooling with learnt weights, or what
    values and covariates of other patients are standardised with."""
    layer = path.partition("/vars/")[0]
    dense = [one for one in found if re.search(r"(^|/)dense(_\d+)?/vars/", one)]
    last = max(dense, key=lambda one: _order(one, []), default="").partition("/vars/")[0]
    if re.search(r"(^|/)layers/(covariates|value)(_\d+)?$", layer):
        return True
    return layer == last or "attention_pooling" in layer


class _Told:
    """Fits arrays, and remembers what there is to say of them."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.new: list[str] = []
        self._taken = 0
        self._kernels = 0
        self._ways: list[str] = []

    def fitted(self, held: Held, shape: tuple[int, ...], target: str) -> Floats:
        """The array in another shape, where it can have that.

        Raises:
          ContractError: it cannot.
        """
        array = held.array
        if array.ndim == 4 and len(shape) == 5:
            array = inflated(array, shape[2])
            self._say("inflated from 2D")
        if array.ndim >= 4:
            self._kernels += 1
            if self._kernels == 1 and array.shape[-2] != shape[-2]:
                self._say(f"channels averaged, {array.shape[-2]} to {shape[-2]}")
                array = with_channels(array, shape[-2])
        if array.shape != shape:
            raise ContractError(f"{held.name} is {held.array.shape}, {target} takes {shape}")
        self._taken += 1
        return array

    def _say(self, way: str) -> None:
        if way not in self._ways:
            self._ways.append(way)

    def line(self, arrays: int, unused: Sequence[str]) -> str:
        """What was taken, of how many arrays, what is new and what was not used."""
        text = ", ".join([f"{self._taken} of {arrays} arrays of {self.start.file}", *self._ways])
        for title, names in (("new", self.new), ("not used", unused)):
            distinct = list(dict.fromkeys(names))
            if distinct:
                more = f" and {len(distinct) - _NAMED} more" if len(distinct) > _NAMED else ""
                text += f"; {title}: {', '.join(distinct[:_NAMED])}{more}"
        return text
