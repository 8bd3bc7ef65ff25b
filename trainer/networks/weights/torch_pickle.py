"""Pickles as `torch.save` writes them, read for their tensors: nothing that they name is called.

A pickle is a program for a small machine, two of whose instructions find any function of Python's
and call it. Here is a machine that lacks both: it knows the few names that a state dict needs, and
gives values of its own for them. Whatever else a pickle asks for is refused by its name.

Sources: `pickletools` for the instructions; `torch/serialization.py` and `torch/_utils.py` for what
tensors look like in them.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from typing import IO, Any

from beam_jobs.common.contract_json import ContractError, shown

# A state dict of a thousand tensors takes 50,000 instructions; a million take 200 MB at worst.
_MOST_INSTRUCTIONS = 1_000_000
_MOST_AXES = 8

_ORDERED = "collections OrderedDict"
_SIZE = "torch Size"
_TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER = "torch._utils _rebuild_parameter"
# Storage → NumPy's type; bfloat16, which NumPy lacks, is the upper half of a float32.
STORAGES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2",
    "torch CharStorage": "|i1",
    "torch ByteStorage": "|u1",
    "torch BoolStorage": "|b1",
}
_NAMES = {_ORDERED, _SIZE, _PARAMETER, *_TENSORS, *STORAGES}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Numbers that lie elsewhere in the file.

    Attributes:
      key: its name there.
      kind: of `STORAGES`' values.
      count: how many numbers it is said to hold.
    """

    key: str
    kind: str
    count: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage, which lies within it; offset and strides are in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """A dict as it is written: no key is hashed, so none can make that take long."""

    pairs: list[Any]

    def by_name(self) -> dict[str, Any]:
        """What stands under a text; of two under the same the later."""
        return {
            pair[0]: pair[1]
            for pair in self.pairs
            if isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)
        }


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Name:
    """A name of `_NAMES`, instead of what Python has under it."""

    name: str


class Unpickler:
    """Reads pickles of one file.

    Attributes:
      storages: key → storage, of all that were named so far.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self, stream: IO[bytes]) -> Any:
        """The next pickle of a stream, which must lie in memory: lengths are believed.

        Returns:
          None, bool, int, float, str, bytes, list, tuple, `Pairs`, `Tensor`, `Storage`, and of
          each other. A list may hold itself.

        Raises:
          ContractError: it is damaged, or more than tensors, numbers, texts, lists and dicts.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if number >= _MOST_INSTRUCTIONS:
                    raise ContractError(f"its pickle takes more than {number} instructions")
                self._step(opcode.name, argument)
            (found,) = self._stack
        except ContractError:
            raise
        except (ValueError, IndexError, KeyError, TypeError) as error:
            raise ContractError("its pickle is damaged") from error
        finally:
            self._stack, self._memo = [], {}
        return found

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _VALUES:
            stack.append(argument)
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode == "MARK":
            self._marks.append(len(stack))
        elif opcode == "EMPTY_TUPLE":
            stack.append(())
        elif opcode == "EMPTY_LIST":
            stack.append([])
        elif opcode == "EMPTY_DICT":
            stack.append(Pairs([]))
        elif opcode == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif opcode in _TUPLES:
            stack.append(tuple(self._last(_TUPLES[opcode])))
        elif opcode == "APPEND":
            (item,) = self._last(1)
            _list(stack[-1]).append(item)
        elif opcode == "APPENDS":
            found = self._since_mark()
            _list(stack[-1]).extend(found)
        elif opcode == "SETITEM":
            key, value = self._last(2)
            _pairs(stack[-1]).append((key, value))
        elif opcode == "SETITEMS":
            found = self._since_mark()
            _pairs(stack[-1]).extend(zip(found[::2], found[1::2], strict=True))
        elif opcode == "GLOBAL":
            stack.append(_named(argument))
        elif opcode == "STACK_GLOBAL":
            module, name = self._last(2)
            stack.append(_named(f"{module} {name}" if type(module) is type(name) is str else "?"))
        elif opcode == "REDUCE":
            called, given = self._last(2)
            stack.append(_made(called, given))
        elif opcode == "BUILD":  # the attributes of a dict; state dicts note versions there
            self._last(1)
            _pairs(stack[-1])
        elif opcode == "BINPERSID":
            stack.append(self._storage(*self._last(1)))
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise ContractError(f"its pickle has the instruction {opcode}, which no tensor needs")

    def _last(self, count: int) -> list[Any]:
        """The topmost values, taken off; never those below a mark."""
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise IndexError
        found = self._stack[-count:]
        del self._stack[-count:]
        return found

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        found = self._stack[mark:]
        del self._stack[mark:]
        return found

    def _storage(self, key: Any) -> Storage:
        match key:
            # The last is a view of another storage, which PyTorch before 0.4 wrote.
            case ("storage", _Name(name), str(key), str(), int(count), *rest) if (
                name in STORAGES and type(count) is int and count >= 0 and rest in ([], [None])
            ):
                found = Storage(key, STORAGES[name], count)
            case _:
                raise ContractError("its pickle names something else than a storage of numbers")
        known = self.storages.setdefault(key, found)
        if (known.kind, known.count) != (found.kind, found.count):
            raise ContractError(f"it says two things of storage {shown(key)}")
        return known


def _named(name: str) -> _Name:
    if name not in _NAMES:
        asked = shown(name.replace(" ", "."))
        raise ContractError(
            f"it asks for {asked}, and only tensors are read; a state dict alone has nothing else"
        )
    return _Name(name)


def _made(called: Any, given: Any) -> Any:
    """What calling `called` would give, of the names of `_NAMES`."""
    match called, given:
        case _Name(name), (storage, offset, shape, strides, *_) if name in _TENSORS:
            return _tensor(storage, offset, shape, strides)
        case _Name(name), (Tensor() as tensor, *_) if name == _PARAMETER:
            return tensor
        case _Name(name), () if name == _ORDERED:
            return Pairs([])
        case _Name(name), (list(pairs),) if name == _ORDERED:  # of Python 2
            return Pairs(pairs)
        case _Name(name), (tuple(shape),) if name == _SIZE:
            return shape
    raise ContractError("its pickle calls something with what it cannot take")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A tensor, where its numbers lie within its storage and none of them counts twice."""
    if not (
        isinstance(storage, Storage)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= _MOST_AXES
        and all(type(number) is int and number >= 0 for number in (offset, *shape, *strides))
    ):
        raise ContractError("its pickle describes a tensor that cannot be")
    tensor = Tensor(storage, offset, shape, strides)
    reach = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if tensor.count and (offset + reach >= storage.count or tensor.count > storage.count):
        raise ContractError(
            f"a tensor {_cut(shape)} is said to lie in storage {shown(storage.key)} "
            f"of {_cut(storage.count)} numbers, which has no room for it"
        )
    return tensor


def _cut(value: object) -> str:
    return str(value)[:80]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _pairs(value: Any) -> list[Any]:
    if not isinstance(value, Pairs):
        raise TypeError
    return value.pairs
