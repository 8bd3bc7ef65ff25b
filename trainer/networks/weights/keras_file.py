"""Arrays of Keras' files: `.keras`, `.weights.h5`, and the `.h5` of Keras 2. No layer is made.

What a file holds is named as Keras 3 names it, whatever wrote it: `layers/conv2d_3/vars/0` is the
first array (kernel or gamma) of the fourth Conv2D in the order of the network's layers.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from trainer.config.unpacked import require_unpackable

Arrays = Mapping[str, npt.NDArray[np.float32]]

KERAS_SUFFIXES = (".keras", ".h5")
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_NOT_LAYERS = re.compile(r"optimizer/|_*(compile_)?(metrics|loss_tracker)/")
_SEEDS = "seed_generator"  # of dropout: a network's own, never another's
_NETWORKS = ("functional", "sequential", "model")
_KERNELS = {2: "dense", 4: "conv2d", 5: "conv3d"}


class KerasFile(NamedTuple):
    """What a file holds.

    Attributes:
      arrays: of floats, as float32, by the path that Keras 3 gives them.
      layers: the configurations of the network's layers, where the file has them.
    """

    arrays: dict[str, npt.NDArray[np.float32]]
    layers: list[Any]


def read_keras(file: Path, *, archive: bool) -> KerasFile:
    """Reads a file of Keras.

    Args:
      file: on a disk.
      archive: a .keras file; any other is HDF5.

    Raises:
      ContractError: it is none, would take far more memory than it has bytes, or holds arrays that
        are no numbers.
    """
    require_unpackable(file)
    try:
        if archive:
            with zipfile.ZipFile(file) as opened:
                config = json.loads(opened.read(_CONFIG))
                data = io.BytesIO(opened.read(_WEIGHTS))
            with h5py.File(data, "r") as weights:
                return KerasFile(_arrays(weights), _layers(config))
        with h5py.File(file, "r") as weights:
            names = [name for name in weights.attrs if name.startswith("layer_names")]
            if names or "model_weights" in weights:
                return _of_keras_2(weights)
            return KerasFile(_arrays(weights), [])
    except ContractError:
        raise
    except Exception as error:  # zipfile's, json's and h5py's own, of many kinds
        said = str(error).partition("\n")[0]
        raise ContractError(f"not a file of Keras: {said}") from error


def _layers(config: Any) -> list[Any]:
    found = config["config"].get("layers", []) if isinstance(config.get("config"), dict) else []
    return found if isinstance(found, list) else []


def datasets(opened: h5py.File) -> dict[str, h5py.Dataset]:
    """A network's arrays of floats in the format of Keras 3, by path.

    An optimizer's and metrics' are left out.
    """
    found: dict[str, h5py.Dataset] = {}

    def add(path: str, held: Any) -> None:
        if isinstance(held, h5py.Dataset) and held.dtype.kind == "f" and _SEEDS not in path:
            # As the first releases of this format spelt it.
            found[path.replace("_layer_checkpoint_dependencies", "layers")] = held

    opened.visititems(add)
    return {path: held for path, held in found.items() if not _NOT_LAYERS.match(path)}


def _arrays(opened: h5py.File) -> dict[str, npt.NDArray[np.float32]]:
    return {path: _numbers(path, held) for path, held in datasets(opened).items()}


def _of_keras_2(opened: h5py.File) -> KerasFile:
    """A file whose layers stand under their own names, in order."""
    classes, layers = {}, []
    if "model_config" in opened.attrs:
        layers = _layers(json.loads(_text(opened.attrs["model_config"])))
        classes = {layer["config"]["name"]: snake_case(layer["class_name"]) for layer in layers}
    group = opened.get("model_weights", opened)
    found: dict[str, npt.NDArray[np.float32]] = {}
    met: Counter[str] = Counter()
    for layer in _names(group, "layer_names"):
        names = _names(group[layer], "weight_names")
        arrays = [(name, group[layer][name]) for name in names]
        # A network within a network is one layer here, its arrays named by the layers in it.
        inner: dict[str, list[tuple[str, Any]]] = {}
        for name, held in arrays:
            within = name.rpartition("/")[0] if classes.get(layer, "") in _NETWORKS else layer
            inner.setdefault(within, []).append((name, held))
        for within, held_there in inner.items():
            first, array = held_there[0]
            kind = classes.get(within) or _kind(_last_of(first), array.shape)
            place = f"layers/{kind}{f'_{met[kind]}' if met[kind] else ''}/vars"
            met[kind] += 1
            for number, (name, held) in enumerate(held_there):
                if held.dtype.kind == "f":
                    found[f"{place}/{number}"] = _numbers(name, held)
    return KerasFile(found, layers)


def _kind(first: str, shape: tuple[int, ...]) -> str:
    """A layer's class, of the name and the shape of its first array: what weights alone say.

    Keras 3 calls the kernel of a depthwise convolution as any other's.
    """
    if first == "gamma":
        return "batch_normalization"
    depthwise = len(shape) == 4 and shape[0] > 1 and shape[3] == 1
    if first == "depthwise_kernel" or (first == "kernel" and depthwise):
        return "depthwise_conv2d"
    return _KERNELS.get(len(shape), "") if first == "kernel" else "normalization"


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names; Keras deals a long one out to several attributes."""
    if attribute in group.attrs:
        return [_text(name) for name in group.attrs[attribute]]
    parts: list[str] = []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    return [_text(name) for part in parts for name in group.attrs[part]]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _last_of(name: str) -> str:
    """The array's own name: `kernel` of `conv1/kernel:0`."""
    return name.rpartition("/")[2].partition(":")[0]


def _numbers(name: str, held: h5py.Dataset) -> npt.NDArray[np.float32]:
    array = np.asarray(held[()], np.float32)
    if not np.isfinite(array).all():
        raise ContractError(f"{name} holds values that are no numbers")
    return array


def layer_paths(layers: Iterable[Any]) -> list[str]:
    """Under which path Keras 3 keeps each layer's arrays within a file of weights."""
    met: Counter[str] = Counter()
    paths = []
    for layer in layers:
        kind = snake_case(type(layer).__name__)
        paths.append(f"layers/{kind}{f'_{met[kind]}' if met[kind] else ''}")
        met[kind] += 1
    return paths


def snake_case(name: str) -> str:
    """How Keras spells a class within a file of weights: DepthwiseConv3D is depthwise_conv3d."""
    name = re.sub(r"\W+", "", name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
