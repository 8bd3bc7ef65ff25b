"""Pickles of strangers in PyTorch's files: nothing is called, nothing grows, one line says why."""

from __future__ import annotations

import io
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from tests.trainer.networks.weights import torch_format as made
from tests.trainer.networks.weights.torch_format import Call, Elsewhere, Name, Opcodes
from trainer.networks.weights import torch_pickle
from trainer.networks.weights.torch_file import read_tensors

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


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "old"])
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_pickle_that_would_do_something_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: str, legacy: bool
) -> None:
    mark, file = tmp_path / "mark", tmp_path / "net.pth"
    touched = made.pickled({"state_dict": {"a": GOOD, "b": ATTEMPTS[attempt]}}, 4)
    # Texts of pickles are counted: the path is put where the count has room for it.
    assert len(b"MARK") == len(b"mark")
    pickle = touched.replace(b"MARK", b"mark")
    numbers = np.zeros(4, np.float32).tobytes()
    if legacy:
        made.write_legacy(file, pickle, {"0": (4, numbers)})
    else:
        made.write_zip(file, pickle, {"0": numbers})
    monkeypatch.chdir(tmp_path)
    loaded = set(sys.modules)
    with pytest.raises(ContractError) as refused:
        read_tensors(file)
    assert not mark.exists()
    assert set(sys.modules) == loaded
    message = str(refused.value)
    assert len(message) < 300
    assert message.isprintable()


def test_the_attempts_are_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickled as Python does, the first leaves its mark: the test above can fail."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads(made.pickled(ATTEMPTS["a call"]).replace(b"MARK", b"mark"))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("place", range(5))
def test_a_call_in_any_pickle_of_an_old_file_is_refused(tmp_path: Path, place: int) -> None:
    file, mark = tmp_path / "net.pth", tmp_path / "mark"
    call = Call(SYSTEM, (f"touch {mark}",))
    pickles = [made.MAGIC, 1001, {"little_endian": True}, {"a": GOOD}, ["0"]]
    pickles[place] = call
    file.write_bytes(b"".join(map(made.pickled, pickles)) + struct.pack("<q", 4) + bytes(16))
    with pytest.raises(ContractError, match=r"posix\.system"):
        read_tensors(file)
    assert not mark.exists()


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
    "tuples in tuples": (Opcodes(b")" + b"\x85" * 100_000), "holds no state dict"),
    "dicts in dicts": (
        {"x": Opcodes(b"}N" * 20_000 + b"}" + b"s" * 20_000), "a": 1},
        "holds no state dict",
    ),
    "a list that doubles": (
        Opcodes(b"]q\0" + b"](h\0h\0eq\0" * 2000),
        "damaged",
    ),
    "a pickle of megabytes": (Opcodes(b"X" + struct.pack("<I", 5 << 20) + bytes(5 << 20)), "4 MB"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_file_claims_takes_no_memory(tmp_path: Path, claim: str) -> None:
    value, message = CLAIMS[claim]
    file = tmp_path / "net.pth"
    made.write_zip(file, made.pickled(value), {"0": np.zeros(4, np.float32).tobytes()})
    begun = time.monotonic()
    with pytest.raises(ContractError, match=message) as refused:
        read_tensors(file)
    assert len(str(refused.value)) < 400
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("opcodes", [b"}" * 2000, b"N" + b"\x94" * 2000, b"]" + b"N" * 2000])
def test_a_pickle_of_too_many_instructions_is_refused(
    monkeypatch: pytest.MonkeyPatch, opcodes: bytes
) -> None:
    monkeypatch.setattr(torch_pickle, "_MOST_INSTRUCTIONS", 1000)
    with pytest.raises(ContractError, match="more than 1000 instructions"):
        torch_pickle.Unpickler().load(io.BytesIO(made.pickled(Opcodes(opcodes))))


@pytest.mark.slow
@pytest.mark.parametrize("opcodes", [b"}", b"N\x94", b"]\x94", b"(t", b"K\1"])
def test_as_many_instructions_as_are_allowed_take_bounded_memory(opcodes: bytes) -> None:
    stream = io.BytesIO(made.pickled(Opcodes(opcodes * (999_990 // len(opcodes)))))
    tracemalloc.start()
    try:
        with pytest.raises(ContractError):
            torch_pickle.Unpickler().load(stream)
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claim", ["a huge shape", "more numbers than the file"])
def test_a_refusal_costs_a_megabyte(tmp_path: Path, claim: str) -> None:
    file = tmp_path / "net.pth"
    made.write_zip(file, made.pickled(CLAIMS[claim][0]), {"0": bytes(16)})
    tracemalloc.start()
    try:
        with pytest.raises(ContractError):
            read_tensors(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def compressed(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        wanted = made.tensor(made.storage("0", "FloatStorage", 1 << 22), (1 << 22,))
        archive.writestr("net/data.pkl", made.pickled({"a": wanted}))
        archive.writestr("net/data/0", bytes(1 << 24))


def over_one_another(file: Path) -> None:
    """A hundred members of 1 MB that are the same megabyte."""
    tensors = {
        str(number): made.tensor(made.storage(str(number), "ByteStorage", 1 << 20), (1 << 20,))
        for number in range(100)
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", made.pickled(tensors))
        archive.writestr("net/data/0", bytes(1 << 20))
        one = archive.getinfo("net/data/0")
        for number in range(1, 100):
            copy = zipfile.ZipInfo(f"net/data/{number}")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copy, field, getattr(one, field))
            archive.filelist.append(copy)


def a_table_of_megabytes(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(80):
            archive.writestr(zipfile.ZipInfo(f"{number:060000}"), b"")


def two_pickles(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")


def a_program(file: Path) -> None:
    made.write_zip(file, made.pickled({"a": GOOD}), {"0": bytes(16)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"")


def highest_byte_first(file: Path) -> None:
    made.write_zip(file, made.pickled({"a": GOOD}), {"0": bytes(16)}, order=b"big")


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (compressed, "compressed"),
        (over_one_another, "larger than the file"),
        (a_table_of_megabytes, "table of members takes more than 4 MB"),
        (two_pickles, "several"),
        (a_program, "TorchScript"),
        (highest_byte_first, "highest byte first"),
    ],
)
def test_an_archive_that_pytorch_would_not_write_is_refused(
    tmp_path: Path, put: Callable[[Path], None], message: str
) -> None:
    file = tmp_path / "net.pth"
    put(file)
    with pytest.raises(ContractError, match=message):
        read_tensors(file)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": entry(shape=[2**40])}, "has not the bytes"),
        ({"a": entry(shape=[2**62] * 8)}, "has not the bytes"),
        ({"a": entry(shape=[1] * 1000)}, "describes no array"),
        ({"a": entry(shape=[-4])}, "describes no array"),
        ({"a": entry(shape=4)}, "describes no array"),
        ({"a": entry(data_offsets=[-16, 0])}, "describes no array"),
        ({"a": entry(data_offsets=[16, 32])}, "has not the bytes"),
        ({"a": entry(data_offsets=[0, 2**62])}, "has not the bytes"),
        ({"a": entry(dtype="F8_E4M3")}, "'F8_E4M3', which is not read"),
        ({"a": entry(dtype=["F32"])}, "describes no array"),
        ({"a": entry(), "b": entry()}, "over one another"),
        ({"a": 3}, "describes no array"),
        ({}, "no arrays"),
        ([1], "not a JSON object"),
    ],
)
def test_a_table_of_safetensors_that_claims_more_than_there_is_is_refused(
    tmp_path: Path, table: Any, message: str
) -> None:
    file = tmp_path / "net.safetensors"
    made.write_safetensors(file, {"a": np.zeros(4, np.float32)}, table)
    with pytest.raises(ContractError, match=message):
        read_tensors(file)


def test_a_table_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    for length in (0, 2**20, 2**63, 2**64 - 1):
        file.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(ContractError, match="no table"):
            read_tensors(file)
