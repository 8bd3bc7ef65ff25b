"""Weights that PyTorch wrote (`.pth`, `.pt`) and `.safetensors`, read without either.

    zip archive      PyTorch since 1.6: NAME/data.pkl, one member NAME/data/KEY a storage
    four pickles     PyTorch before, as MedicalNet's files are: the third holds the state dict's
                     shape, behind them the storages, one after the other
    .safetensors     a JSON table, then the numbers

A file may be a stranger's. Its pickles are read by `torch_pickle`; a storage is read where a tensor
of the state dict lies in it, once, and only if the file really holds it: what is in memory grows
with the file's size and not with what the file says.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError, json_object, shown
from beam_jobs.common.files import interface as files
from trainer.networks.weights.torch_pickle import Pairs, Storage, Tensor, Unpickler

SAFETENSORS = ".safetensors"
_MOST_TABLE_BYTES = 4 << 20  # of pickles and tables; a thousand tensors take 0.3 MB
# Where a training's file keeps its state dict; MONAI, MedicalNet, Lightning, timm and others.
_STATE_DICTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")
_NESTED_MOST = 4
# A file may name the same numbers twice (tied weights); what is named oftener is a bomb.
_TIMES_NAMED = 2
# torch/serialization.py
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_SAFE_KINDS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_MOST_AXES = 8

# What zipfile and NumPy raise at tables and shapes that contradict themselves.
_DAMAGED = (
    *(zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError),
    *(EOFError, OverflowError, struct.error),
)

Read = Callable[[Storage], bytes]


def read_tensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a state dict, under their names and in PyTorch's order of axes.

    Floating point becomes float32, whole numbers stay as they are. What else the file holds (an
    optimizer's state, epochs) is left where it is. Arrays may share memory and be read-only.

    Args:
      file: on a disk; `.safetensors` by its name, PyTorch's formats by its content.

    Raises:
      ContractError: it is none of them, damaged, or asks for more than tensors; in one line.
      OSError: it cannot be read.
    """
    size = file.stat().st_size
    with files.open_read(file) as stream:
        try:
            if file.name.endswith(SAFETENSORS):
                tensors, read = _safetensors(stream, size)
            elif stream.read(4) == b"PK\3\4":
                tensors, read = _zip(stream, size)
            else:
                tensors, read = _legacy(stream, size)
            return _arrays(tensors, read)
        except ContractError:
            raise
        except _DAMAGED as error:
            raise ContractError(f"damaged: {shown(str(error))}") from error


def _arrays(tensors: Mapping[str, Tensor], read: Read) -> dict[str, npt.NDArray[Any]]:
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    held = sum(storage.count for storage in storages.values())
    named = sum(tensor.count for tensor in tensors.values())
    if named > _TIMES_NAMED * held:
        raise ContractError(f"its tensors have {named} numbers in all, it holds {held}")
    raw = {key: read(storage) for key, storage in storages.items()}
    return {name: _array(tensor, raw[tensor.storage.key]) for name, tensor in tensors.items()}


def _array(tensor: Tensor, raw: bytes) -> npt.NDArray[Any]:
    half = tensor.storage.kind == "bfloat16"
    flat = np.frombuffer(raw, "<u2" if half else tensor.storage.kind)
    if tensor.count:
        steps = zip(tensor.shape, tensor.strides, strict=True)
        strides = [stride * flat.itemsize if length > 1 else 0 for length, stride in steps]
        begun = flat[tensor.offset :]
        values = np.lib.stride_tricks.as_strided(begun, tensor.shape, strides, writeable=False)
    else:
        values = np.zeros(tensor.shape, flat.dtype)
    if half:
        return (np.ascontiguousarray(values).astype("<u4") << 16).view("<f4").reshape(tensor.shape)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float32)
    return values


def _state_dict(found: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one that a training's file keeps."""
    for _ in range(_NESTED_MOST):
        if not isinstance(found, Pairs):
            break
        named = found.by_name()
        inner = [named[name] for name in _STATE_DICTS if isinstance(named.get(name), Pairs)]
        if not inner:
            tensors = {name: held for name, held in named.items() if isinstance(held, Tensor)}
            if tensors:
                return tensors
            break
        found = inner[0]
    raise ContractError(
        f"holds no state dict, neither itself nor under {', '.join(map(repr, _STATE_DICTS))}"
    )


def _item_bytes(storage: Storage) -> int:
    return 2 if storage.kind == "bfloat16" else np.dtype(storage.kind).itemsize


class _Bounded:
    """A stream for zipfile, which takes an archive's table at once, however long it is."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable
        self._stream = stream
        self.most: int | None = _MOST_TABLE_BYTES

    def read(self, length: int = -1) -> bytes:
        if self.most is not None and length > self.most:
            raise ContractError(f"its table of members takes more than {self.most >> 20} MB")
        return self._stream.read(length)


def _zip(stream: IO[bytes], size: int) -> tuple[dict[str, Tensor], Read]:
    """Of an archive: the state dict's tensors, and what reads a storage."""
    bounded = _Bounded(stream)
    archive = zipfile.ZipFile(cast(IO[bytes], bounded))
    bounded.most = None
    members = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ContractError("not PyTorch's: no data.pkl, or several")
    (root,) = roots
    if f"{root}constants.pkl" in members:
        raise ContractError("holds a TorchScript program; its state dict alone is read")
    # Overlapping or compressed members would be more than the file's own bytes.
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise ContractError("its members are compressed, which PyTorch's are not")
    if sum(info.file_size for info in members.values()) > size:
        raise ContractError("its members are larger than the file")
    if not all(0 <= info.header_offset < size for info in members.values()):
        raise ContractError("its table names members that lie elsewhere")
    pickled = members[f"{root}data.pkl"]
    if pickled.file_size > _MOST_TABLE_BYTES:
        raise ContractError(f"its data.pkl takes more than {_MOST_TABLE_BYTES >> 20} MB")
    order = members.get(f"{root}byteorder")
    if order is not None and archive.read(order) != b"little":
        raise ContractError("was written on a machine that puts the highest byte first")

    def read(storage: Storage) -> bytes:
        wanted = storage.count * _item_bytes(storage)
        info = members.get(f"{root}data/{storage.key}")
        if info is None or info.file_size != wanted:
            found = 0 if info is None else info.file_size
            raise ContractError(_short(storage, found))
        return archive.read(info)

    return _state_dict(Unpickler().load(io.BytesIO(archive.read(pickled)))), read


def _legacy(stream: IO[bytes], size: int) -> tuple[dict[str, Tensor], Read]:
    """Of PyTorch before 1.6: the state dict's tensors, and what reads a storage."""
    stream.seek(0)
    head = io.BytesIO(stream.read(_MOST_TABLE_BYTES))
    if not head.getvalue().startswith(b"\x80\x02"):
        raise ContractError("not PyTorch's: neither its archive nor its pickles")
    pickles = Unpickler()
    if (pickles.load(head), pickles.load(head)) != (_MAGIC, _PROTOCOL):
        raise ContractError("a pickle, but not PyTorch's")
    system = pickles.load(head)
    if not isinstance(system, Pairs) or system.by_name().get("little_endian") is not True:
        raise ContractError("was written on a machine that puts the highest byte first")
    tensors = _state_dict(pickles.load(head))
    keys = pickles.load(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ContractError("its pickle is damaged")
    starts: dict[str, int] = {}
    at = head.tell()
    for key in keys:  # each behind the number of its numbers
        storage = pickles.storages.get(key)
        if storage is None or key in starts:
            raise ContractError(f"it holds a storage {shown(key)} that no tensor lies in, or twice")
        starts[key] = at + 8
        at += 8 + storage.count * _item_bytes(storage)
        if at > size:
            raise ContractError(_short(storage, max(0, size - starts[key])))

    def read(storage: Storage) -> bytes:
        if storage.key not in starts:
            raise ContractError(_short(storage, 0))
        stream.seek(starts[storage.key] - 8)
        if int.from_bytes(stream.read(8), "little") != storage.count:
            raise ContractError(f"it says two things of storage {shown(storage.key)}")
        return stream.read(storage.count * _item_bytes(storage))

    return tensors, read


def _short(storage: Storage, found: int) -> str:
    return (
        f"storage {shown(storage.key)} is to have {storage.count} numbers "
        f"of {_item_bytes(storage)} bytes, the file has {found} bytes of it"
    )


def _safetensors(stream: IO[bytes], size: int) -> tuple[dict[str, Tensor], Read]:
    """Of https://huggingface.co/docs/safetensors: its tensors, and what reads one's numbers."""
    length = int.from_bytes(stream.read(8), "little")
    start = 8 + length
    if not 0 < length <= _MOST_TABLE_BYTES or start > size:
        raise ContractError("not safetensors: no table where one is to be")
    table = json_object(stream.read(length))
    table.pop("__metadata__", None)
    tensors, places = {}, {}
    for name, entry in table.items():
        match entry:
            case {
                "dtype": str(kind),
                "shape": list(shape),
                "data_offsets": [int(at), int(end)],
            } if len(shape) <= _MOST_AXES and all(
                type(number) is int and number >= 0 for number in (*shape, at, end)
            ):
                pass
            case _:
                raise ContractError(f"not safetensors: its table describes no array {shown(name)}")
        if kind not in _SAFE_KINDS:
            raise ContractError(f"{shown(name)} is of {shown(kind)}, which is not read")
        storage = Storage(name, _SAFE_KINDS[kind], math.prod(shape))
        if not at <= end <= size - start or end - at != storage.count * _item_bytes(storage):
            raise ContractError(f"array {shown(name)} has not the bytes that its table says")
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        tensors[name] = Tensor(storage, 0, tuple(shape), tuple(strides))
        places[name] = start + at, end - at
    if sum(length for _, length in places.values()) > size - start:
        raise ContractError("its arrays lie over one another")
    if not tensors:
        raise ContractError("holds no arrays")

    def read(storage: Storage) -> bytes:
        at, length = places[storage.key]
        stream.seek(at)
        return stream.read(length)

    return tensors, read
