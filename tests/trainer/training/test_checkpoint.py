"""The state of an unfinished fold: all or nothing, this run's or refused; members get networks."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

from beam_jobs.common.contract_json import ContractError
from trainer.config.run_layout import HISTORY_COLUMNS
from trainer.training.checkpoint import (
    FoldState,
    candidate,
    keep,
    load_state,
    save_network,
    save_state,
)


def _state() -> FoldState:
    rest = dict.fromkeys(HISTORY_COLUMNS, 0.5)
    history = [{**rest, "epoch": 1, "loss": 0.1 + 0.2}, {**rest, "epoch": 2, "loss": 1 / 3}]
    return FoldState(epoch=2, history=history, seconds=1.5)


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    arrays: list[npt.NDArray[Any]] = [
        np.array([[1 / 3, np.nan]], np.float32),
        np.array(7, np.int64),
        np.array([1, 2**32 - 1], np.uint32),
    ]
    save_state(tmp_path, _state(), arrays, request="a")
    found = load_state(tmp_path, request="a")
    assert found is not None
    assert found[0] == _state()
    for array, again in zip(arrays, found[1], strict=True):
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


def test_without_a_state_there_is_nothing_to_resume_from(tmp_path: Path) -> None:
    (tmp_path / ".state.npz").write_bytes(b"half of one")
    assert load_state(tmp_path, request="a") is None


def test_another_run_s_state_and_a_damaged_one_are_refused_by_their_path(tmp_path: Path) -> None:
    save_state(tmp_path, _state(), [np.zeros(9)], request="a")
    with pytest.raises(ContractError, match=r"state\.npz: of another run"):
        load_state(tmp_path, request="b")
    whole = (tmp_path / "state.npz").read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "state.npz").write_bytes(damaged)
        with pytest.raises(ContractError, match=r"state\.npz: not a readable state"):
            load_state(tmp_path, request="a")


class _Evil:
    """What unpickling it would do: make a file."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("unpickled",)


def _npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def _claims(shape: str, descr: str = "<f4") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


@pytest.mark.parametrize(
    ("name", "content", "packed"),
    [
        ("array-0.npy", _npy(np.array([_Evil()], dtype=object)), False),
        ("array-0.npy", pickle.dumps(_Evil()), False),
        ("array-0.npy", _claims("(1000000000000,)"), False),
        ("array-0.npy", _claims("(16, -1)"), False),
        ("array-0.npy", _claims("(" * 4000), False),
        ("array-0.npy", _claims("(" + "-" * 9000 + "1,)"), False),
        ("array-0.npy", _npy(np.zeros(1 << 26, np.uint8)), True),
        ("array-7.npy", _npy(np.zeros(4)), False),
        ("progress.npy", _npy(np.zeros(4)), False),
        ("../x.npy", _npy(np.zeros(4)), False),
        ("array-0.npy", b"", False),
    ],
)
def test_a_state_of_objects_claims_and_twins_is_refused_unread(
    tmp_path: Path, name: str, content: bytes, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_state(tmp_path, _state(), [], request="a")
    with warnings.catch_warnings():  # of a name that stands twice
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "state.npz", "a") as file:
            how = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            file.writestr(name, content, compress_type=how)
    tracemalloc.start()
    with pytest.raises(ContractError, match=r"state\.npz: not a readable state .*delete it"):
        load_state(tmp_path, request="a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20  # a header is Python's text, which takes some
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_never_leaves_a_member_without_its_network(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at a copy, the push or a removal: started again, every member has the chosen one."""

    class Killed(BaseException):
        pass

    chosen = {tmp_path / "fold-0": 2, tmp_path / "fold-1": 4}
    for directory in chosen:
        directory.mkdir()
        for epoch in (2, 4):
            candidate(directory, epoch).write_bytes(directory.name.encode() + bytes([epoch]))
    left = moment

    def or_die(function: Callable[..., object]) -> Callable[..., object]:
        def once(*args: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*args)

        return once

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", or_die(shutil.copyfile))
        patch.setattr(Path, "unlink", or_die(Path.unlink))
        with pytest.raises(Killed):
            keep(chosen, or_die(lambda: None))  # type: ignore[arg-type]
    pushed: list[int] = []
    keep(chosen, lambda: pushed.append(len(list(tmp_path.glob("*/network.keras")))))
    assert pushed == [2]
    for directory, epoch in chosen.items():
        assert [file.name for file in directory.iterdir()] == ["network.keras"]
        kept = (directory / "network.keras").read_bytes()
        assert kept == directory.name.encode() + bytes([epoch])


def test_equal_networks_are_equal_files_and_load(tmp_path: Path) -> None:
    """Keras writes when a file was made, and where its objects lay in memory."""
    for name in ("a", "b"):
        shared = keras.layers.Dense(2, kernel_initializer="ones")
        inputs = keras.Input((2,), name="input")
        network = keras.Model(inputs, shared(shared(inputs)), name="network")
        network.layers[1].name = "dense"
        save_network(network, tmp_path / f"{name}.keras")
        keras.backend.clear_session()
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    loaded = keras.models.load_model(tmp_path / "a.keras", compile=False)
    assert loaded.predict(np.ones((1, 2)), verbose=0).tolist() == [[4.0, 4.0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.keras", "b.keras"]
