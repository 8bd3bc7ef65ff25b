"""What strangers' pickles try, in a state dict's place: calls, and claims of what is not there."""

from __future__ import annotations

import struct
from typing import Any

from tests.trainer.networks.weights import torch_format as made
from tests.trainer.networks.weights.torch_format import Call, Elsewhere, Name, Opcodes

SYSTEM = Name("posix", "system")
TOUCH = "touch MARK"  # what each attempt would do; MARK becomes a path
STORAGE = made.storage("0", "FloatStorage", 4)
GOOD = made.tensor(STORAGE, (4,))


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def rebuild(*given: Any) -> Call:
    return Call(made.REBUILD, given)


# Name → what lies in the state dict's place; each would run TOUCH, or something as bad, unpickled.
ATTEMPTS: dict[str, Any] = {
    "a call": Call(SYSTEM, (TOUCH,)),
    "eval": Call(Name("builtins", "eval"), (f"__import__('os').system('{TOUCH}')",)),
    "exec under Python 2's name": Call(Name("__builtin__", "exec"), ("open('MARK', 'w')",)),
    "getattr": Call(Name("builtins", "getattr"), (SYSTEM, "__call__")),
    "a name from the stack": Opcodes(
        short("posix") + short("system") + b"\x93" + made.packed((TOUCH,)) + b"R"
    ),
    "a module reached through torch": Call(Name("torch", "os.system"), (TOUCH,)),
    "a part of what is allowed": Call(
        Name("torch._utils", "_rebuild_tensor_v2.__globals__"), ("os",)
    ),
    "a part of what is allowed, from the stack": Opcodes(
        short("collections") + short("OrderedDict.fromkeys") + b"\x93" + made.packed(([],)) + b"R"
    ),
    "a name that is allowed in two halves": Opcodes(
        short("torch._utils _rebuild_tensor_v2 posix") + short("system") + b"\x93"
    ),
    "a name with a line end": Opcodes(short("torch\nposix") + short("FloatStorage") + b"\x93"),
    "a name that is a number": Opcodes(b"K\1K\2\x93"),
    "INST": Opcodes(b"(" + made.packed(TOUCH) + b"iposix\nsystem\n"),
    "OBJ": Opcodes(b"(" + made.packed(SYSTEM) + made.packed(TOUCH) + b"o"),
    "NEWOBJ": Opcodes(
        made.packed(Name("subprocess", "Popen")) + made.packed((["touch", "MARK"],)) + b"\x81"
    ),
    "NEWOBJ of what is allowed": Opcodes(made.packed(made.ORDERED) + made.packed(()) + b"\x81"),
    "NEWOBJ_EX": Opcodes(made.packed(made.ORDERED) + made.packed(()) + b"}\x92"),
    "BUILD of a tensor": Opcodes(made.packed(GOOD) + made.packed({"__setstate__": SYSTEM}) + b"b"),
    "BUILD of a name": Opcodes(made.packed(made.ORDERED) + made.packed({"x": 1}) + b"b"),
    "a registered extension": Opcodes(b"\x82\x01"),
    "a persistent id in text": Opcodes(b"P0\n"),
    "a persistent id that is no storage": Elsewhere(("module", SYSTEM, "x.py", TOUCH)),
    "a storage of another type": Elsewhere(("storage", SYSTEM, "0", "cpu", 4)),
    "a storage of an allowed name": Elsewhere(("storage", made.ORDERED, "0", "cpu", 4)),
    "a call as a storage's key": Elsewhere(
        ("storage", Name("torch", "FloatStorage"), Call(SYSTEM, (TOUCH,)), "cpu", 4)
    ),
    "backward hooks": rebuild(STORAGE, 0, (4,), (1,), False, Call(SYSTEM, (TOUCH,))),
    "a pickle in a storage": Call(
        Name("torch.storage", "_load_from_bytes"), (made.pickled(Call(SYSTEM, (TOUCH,))).hex(),)
    ),
    "torch.load": Call(Name("torch.serialization", "load"), ("MARK",)),
    "torch.hub": Call(Name("torch.hub", "load"), ("stranger/net", "net")),
    "numpy's objects": Call(Name("numpy.core.multiarray", "_reconstruct"), (SYSTEM, (0,), "b")),
    "a tensor of nothing": rebuild(None, 0, (4,), (1,)),
    "a tensor of too little": rebuild(STORAGE),
    "a parameter of no tensor": Call(Name("torch._utils", "_rebuild_parameter"), (SYSTEM, True)),
    "a tensor that is called": Call(GOOD, ()),
    "a storage that is called": Call(STORAGE, ()),
    "an OrderedDict of a call": Call(made.ORDERED, (Call(SYSTEM, (TOUCH,)),)),
    "a name that speaks to a terminal": Name("\x1b]0;owned\x07", "x"),
    "a buffer out of band": Opcodes(b"\x97"),
    "a set": Opcodes(b"\x8f"),
    "DUP": Opcodes(b"0"),
    "nothing below": Opcodes(b"0R"),
    "a mark below": Opcodes(b"(R"),
    "an opcode that is none": Opcodes(b"\xff"),
}


def tensors_of(*given: Any, storage: Elsewhere = STORAGE) -> dict[str, Any]:
    return {"a": rebuild(storage, *given)}


# Name → (a state dict, what the line says). Each claims what it does not hold.
CLAIMS: dict[str, tuple[Any, str]] = {
    "a huge shape": (tensors_of(0, (2**40, 2**40), (0, 0)), "no room"),
    "a shape that repeats a number": (tensors_of(0, (1000, 1000), (0, 0)), "no room"),
    "an offset behind the end": (tensors_of(4, (1,), (1,)), "no room"),
    "strides behind the end": (tensors_of(0, (2, 2), (3, 1)), "no room"),
    "a negative offset": (tensors_of(-1, (1,), (1,)), "cannot be"),
    "a negative stride": (tensors_of(3, (4,), (-1,)), "cannot be"),
    "a negative shape": (tensors_of(0, (-4,), (1,)), "cannot be"),
    "a shape of texts": (tensors_of(0, ("4",), (1,)), "cannot be"),
    "a shape of truths": (tensors_of(0, (True,), (1,)), "cannot be"),
    "more strides than axes": (tensors_of(0, (4,), (1, 1)), "cannot be"),
    "a thousand axes": (tensors_of(0, (1,) * 1000, (1,) * 1000), "cannot be"),
    "nothing of a number without end": (tensors_of(0, (0, 2**100), (1, 1)), "damaged"),
    "more numbers than the file": (
        tensors_of(0, (4,), (1,), storage=made.storage("0", "FloatStorage", 2**40)),
        "to have 1099511627776 numbers",
    ),
    "fewer numbers than the file": (
        tensors_of(0, (1,), (1,), storage=made.storage("0", "FloatStorage", 1)),
        "to have 1 numbers",
    ),
    "numbers less than none": (
        tensors_of(0, (1,), (1,), storage=made.storage("0", "FloatStorage", -1)),
        "something else than a storage",
    ),
    "a storage elsewhere on the disk": (
        tensors_of(0, (1,), (1,), storage=made.storage("../../../../etc/hosts", "ByteStorage", 9)),
        "the file has 0 bytes of it",
    ),
    "one storage under two types": (
        {"a": GOOD, "b": made.tensor(made.storage("0", "HalfStorage", 8), (8,))},
        "two things of storage '0'",
    ),
    "the same numbers a thousand times": (
        {f"a{number}": GOOD for number in range(1000)},
        "4000 numbers in all, it holds 4",
    ),
    "a state dict in itself": (
        Opcodes(b"}q\0" + made.packed("state_dict") + b"h\0s"),
        "holds no state dict",
    ),
    "no state dict": ({"a": 1, "b": ["x"]}, "holds no state dict"),
    "a list": ([GOOD], "holds no state dict"),
    "a dict of odd length": (Opcodes(b"}(N" + b"u"), "damaged"),
    "nothing": (Opcodes(b""), "damaged"),
    "two values": (Opcodes(b"NN"), "damaged"),
    "a text longer than the file": (Opcodes(b"\x8d" + struct.pack("<Q", 2**60)), "damaged"),
    "a number longer than the file": (Opcodes(b"\x8b" + struct.pack("<i", 2**31 - 1)), "damaged"),
    "something that was never kept": (Opcodes(b"h\7"), "damaged"),
    "tuples in tuples": (Opcodes(b")" + b"\x85" * 60_000), "holds no state dict"),
    "dicts in dicts": (
        {"x": Opcodes(b"}N" * 10_000 + b"}" + b"s" * 10_000), "a": 1},
        "holds no state dict",
    ),
    "a list that doubles": (
        Opcodes(b"]q\0" + b"](h\0h\0eq\0" * 2000),
        "damaged",
    ),
    "a pickle of megabytes": (Opcodes(b"X" + struct.pack("<I", 5 << 20) + bytes(5 << 20)), "4 MB"),
}
