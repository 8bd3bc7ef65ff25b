"""PyTorch's and safetensors' files, written by their formats' descriptions, without PyTorch.

`torch/serialization.py` has what a file is, Python's `pickletools` the opcodes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "uint16": "BFloat16Storage",  # as which a test writes the upper halves
}
_SAFE = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "uint16": "BF16"}


@dataclasses.dataclass(frozen=True)
class Name:
    """What GLOBAL looks up."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """What REDUCE calls."""

    function: Any
    given: Any


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """A persistent id."""

    key: Any


@dataclasses.dataclass(frozen=True)
class Opcodes:
    """As they stand."""

    data: bytes


ORDERED = Name("collections", "OrderedDict")
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def packed(value: Any) -> bytes:
    """The opcodes that leave a value on the stack."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            length = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(packed, value)) + b"t"
        case list():
            return b"](" + b"".join(map(packed, value)) + b"e"
        case dict():
            return b"}(" + b"".join(packed(k) + packed(v) for k, v in value.items()) + b"u"
        case Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, given):
            return packed(function) + packed(given) + b"R"
        case Elsewhere(key):
            return packed(key) + b"Q"
        case Opcodes(data):
            return data
    raise TypeError(value)


def pickled(value: Any, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + packed(value) + b"."


def storage(key: str, kind: str, count: int, *, legacy: bool = False) -> Elsewhere:
    view = (None,) if legacy else ()
    return Elsewhere(("storage", Name("torch", kind), key, "cuda:0", count, *view))


def tensor(of: Any, shape: tuple[int, ...], offset: int = 0, strides: Any = None) -> Call:
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Call(REBUILD, (of, offset, shape, strides, False, Call(ORDERED, ())))


def state_dict(arrays: Arrays, *, legacy: bool = False) -> dict[str, Any]:
    """Every array a storage of its own, numbered."""
    return {
        name: tensor(
            storage(str(number), _STORAGES[str(array.dtype)], array.size, legacy=legacy),
            array.shape,
        )
        for number, (name, array) in enumerate(arrays.items())
    }


def storages(arrays: Arrays) -> dict[str, bytes]:
    return {str(number): array.tobytes() for number, array in enumerate(arrays.values())}


def write_zip(
    file: Path, pickle: bytes, held: Mapping[str, bytes], order: bytes = b"little"
) -> None:
    """As PyTorch since 1.6: stored, each storage a member."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{file.stem}/data.pkl", pickle)
        archive.writestr(f"{file.stem}/byteorder", order)
        for key, data in held.items():
            archive.writestr(f"{file.stem}/data/{key}", data)
        archive.writestr(f"{file.stem}/version", b"3\n")


def write_legacy(
    file: Path, pickle: bytes, held: Mapping[str, tuple[int, bytes]], system: Any = None
) -> None:
    """As PyTorch before 1.6; of each storage how many numbers it has, and they."""
    said = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4, "long": 4}}
    data = [pickled(MAGIC), pickled(1001), pickled(said if system is None else system), pickle]
    data.append(pickled(list(held)))
    data += [struct.pack("<q", count) + raw for count, raw in held.values()]
    file.write_bytes(b"".join(data))


def write_torch(file: Path, arrays: Arrays, *, legacy: bool = False) -> None:
    """A state dict's file; an old one as MedicalNet's, from several cards and in a dict."""
    held = storages(arrays)
    if legacy:
        arrays = {f"module.{name}": array for name, array in arrays.items()}
        data = {"epoch": 3, "rate": 1e-3, "state_dict": state_dict(arrays, legacy=True)}
        sizes = [array.size for array in arrays.values()]
        pairs = zip(held, zip(sizes, held.values(), strict=True), strict=True)
        write_legacy(file, pickled(data), dict(pairs))
    else:
        # An OrderedDict with the versions of its modules, as `Module.state_dict` gives it.
        filled = packed(Call(ORDERED, ())) + packed(state_dict(arrays))[1:]
        versions = packed({"_metadata": Call(ORDERED, ())}) + b"b"
        write_zip(file, pickled(Opcodes(filled + versions)), held)


def write_safetensors(file: Path, arrays: Arrays, table: Any = None) -> None:
    found: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in arrays.items():
        kind = _SAFE[str(array.dtype)]
        places = [at, at + array.nbytes]
        found[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": places}
        at += array.nbytes
    text = json.dumps(found if table is None else table).encode()
    numbers = b"".join(array.tobytes() for array in arrays.values())
    file.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def upper_halves(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """bfloat16, rounded down."""
    return (array.view(np.uint32) >> 16).astype(np.uint16)
