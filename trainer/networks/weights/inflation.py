"""Weights of 2D networks of `keras.applications`, named and ordered as their 3D twin's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.networks.weights.keras_file import Arrays

Floats = npt.NDArray[np.float32]

_PLACE = re.compile(r"(?P<root>(?:.*/)?)(?P<kind>\w*?)(?:_(?P<number>\d+))?/vars/(?P<array>\d+)")
_IN_3D = {
    "conv2d": "conv3d",
    "depthwise_conv2d": "depthwise_conv3d",
    "batch_normalization": "batch_normalization",
}
_RESNET50 = (3, 4, 6, 3)  # blocks of its stages, each of three convolutions


class Held(NamedTuple):
    """An array, and what it is called in its file."""

    name: str
    array: Floats


def inflated(kernel: Floats, slices: int) -> Floats:
    """(row, column, channel, filter) → (row, column, slice, channel, filter), of the same sum.

    On a volume that is one image in all slices it answers as the 2D kernel does on the image
    (Carreira & Zisserman 2017, I3D).
    """
    return np.repeat(kernel[:, :, None] / slices, slices, axis=2)


def as_volumes(arrays: Arrays, name: str) -> dict[str, Held]:
    """A 2D network's arrays by the paths of its 3D twin.

    Left out is what makes no features: the scaling of the input, the classes. The network may be
    part of another one.

    Args:
      arrays: by path, of `read_keras`.
      name: "resnet50" or an EfficientNet's.
    """
    places = {path: _PLACE.fullmatch(path) for path in arrays}
    roots = Counter(place["root"] for place in places.values() if place and place["kind"] in _IN_3D)
    root = max(roots, key=lambda one: roots[one], default="")
    order = _resnet50_order() if name == "resnet50" else {}
    found = {}
    for path, place in places.items():
        if place and place["root"] == root and place["kind"] in _IN_3D:
            number = order.get(int(place["number"] or 0), int(place["number"] or 0))
            kind = _IN_3D[place["kind"]]
            new = f"layers/{kind}{f'_{number}' if number else ''}/vars/{place['array']}"
            found[new] = Held(path, arrays[path])
    return _without_biases(found) if name == "resnet50" else found


def _resnet50_order() -> dict[int, int]:
    """Place of a convolution, and of its normalisation, in keras.applications' → in ours.

    Both are in the order of `model.layers`, where layers that are equally far from the output stand
    as they were made: keras.applications makes a shortcut's convolution before its block's others.
    """
    order: dict[int, int] = {}
    place = 1
    for blocks in _RESNET50:
        order |= {place + 2: place + 3, place + 3: place + 2}
        place += 1 + 3 * blocks
    return order


def _without_biases(found: Mapping[str, Held]) -> dict[str, Held]:
    """A bias before a normalisation is a shift of the mean that this takes off."""
    kept = dict(found)
    for path in found:
        convolution, _, array = path.rpartition("/")
        norm = convolution.replace("conv3d", "batch_normalization") + "/2"
        if "/conv3d" in path and array == "1" and norm in kept:
            name, mean = kept[norm]
            if mean.shape == found[path].array.shape:
                kept[norm] = Held(name, mean - found[path].array)
            del kept[path]
    return kept
