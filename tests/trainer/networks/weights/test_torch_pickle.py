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
from tests.trainer.networks.weights.torch_attempts import ATTEMPTS, CLAIMS, GOOD, SYSTEM
from tests.trainer.networks.weights.torch_format import Call, Opcodes
from trainer.networks.weights import torch_pickle
from trainer.networks.weights.torch_file import read_tensors


def modules() -> set[str]:
    """What is imported; zipfile takes the encoding of old names when it first needs it."""
    return {name for name in sys.modules if not name.startswith("encodings.")}


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
    loaded = modules()
    with pytest.raises(ContractError) as refused:
        read_tensors(file)
    assert not mark.exists()
    assert modules() == loaded
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
