"""Files of PyTorch and safetensors, made by their formats' descriptions: what is read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from beam_jobs.common.contract_json import ContractError
from tests.trainer.networks.weights import torch_format as made
from trainer.networks.weights.torch_file import read_tensors

RNG = np.random.default_rng(0)
ARRAYS: dict[str, npt.NDArray[Any]] = {
    "conv1.weight": RNG.normal(size=(4, 3, 3, 3, 3)).astype(np.float32),
    "bn1.bias": RNG.normal(size=4).astype(np.float64),
    "half": RNG.normal(size=(2, 3)).astype(np.float16),
    "bn1.num_batches_tracked": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
}


def require_same(found: dict[str, Any], prefix: str = "") -> None:
    assert list(found) == [prefix + name for name in ARRAYS]
    for name, array in ARRAYS.items():
        expected = array if array.dtype == np.int64 else array.astype(np.float32)
        assert found[prefix + name].dtype == expected.dtype
        np.testing.assert_array_equal(found[prefix + name], expected)


def test_an_archive_as_pytorch_writes_it_gives_its_arrays(tmp_path: Path) -> None:
    made.write_torch(tmp_path / "net.pth", ARRAYS)
    require_same(read_tensors(tmp_path / "net.pth"))


def test_an_old_file_as_medicalnet_has_them_gives_its_arrays(tmp_path: Path) -> None:
    made.write_torch(tmp_path / "net.pth", ARRAYS, legacy=True)
    require_same(read_tensors(tmp_path / "net.pth"), "module.")


def test_safetensors_give_their_arrays(tmp_path: Path) -> None:
    made.write_safetensors(tmp_path / "net.safetensors", ARRAYS)
    require_same(read_tensors(tmp_path / "net.safetensors"))


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path, name: str) -> None:
    array = RNG.normal(size=(3, 5)).astype(np.float32)
    halves = made.upper_halves(array)
    write = made.write_safetensors if name.endswith(".safetensors") else made.write_torch
    write(tmp_path / name, {"a": halves})
    (found,) = read_tensors(tmp_path / name).values()
    np.testing.assert_array_equal(found, (halves.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_allclose(found, array, rtol=2**-7)


def test_tensors_that_share_a_storage_are_views_of_it(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype=np.float32)
    storage = made.storage("0", "FloatStorage", 24)
    tensors = {
        "turned": made.tensor(storage, (4, 6), strides=(1, 4)),
        "behind": made.tensor(storage, (2, 3), offset=18),
        "one": made.tensor(storage, (), offset=23),
    }
    made.write_zip(tmp_path / "net.pth", made.pickled(tensors), {"0": numbers.tobytes()})
    found = read_tensors(tmp_path / "net.pth")
    np.testing.assert_array_equal(found["turned"], numbers.reshape(6, 4).T)
    np.testing.assert_array_equal(found["behind"], numbers[18:].reshape(2, 3))
    assert found["one"] == 23


def test_a_parameter_and_tensors_of_old_pytorch_and_python_are_read(tmp_path: Path) -> None:
    numbers = np.arange(3, dtype=np.float32)
    storage = made.storage("0", "FloatStorage", 3)
    old = made.Call(made.Name("torch._utils", "_rebuild_tensor"), (storage, 0, (3,), (1,)))
    given = (made.tensor(storage, (3,)), True, made.Call(made.ORDERED, ()))
    parameter = made.Call(made.Name("torch._utils", "_rebuild_parameter"), given)
    pairs = made.Call(made.ORDERED, ([["old", old], ["parameter", parameter]],))
    made.write_zip(tmp_path / "net.pth", made.pickled(pairs), {"0": numbers.tobytes()})
    found = read_tensors(tmp_path / "net.pth")
    assert list(found) == ["old", "parameter"]
    assert all(np.array_equal(array, numbers) for array in found.values())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_later_protocols_are_read(tmp_path: Path, protocol: int) -> None:
    numbers = np.arange(3, dtype=np.float32)
    name = b"\x8c\x05torch\x8c\x0cFloatStorage\x93\x94"  # short texts, STACK_GLOBAL, MEMOIZE
    kept = (made.Opcodes(name), "0", "cpu", 3)
    tensors = {"a": made.tensor(made.Elsewhere(("storage", *kept)), (3,))}
    made.write_zip(tmp_path / "n.pt", made.pickled(tensors, protocol), {"0": numbers.tobytes()})
    np.testing.assert_array_equal(read_tensors(tmp_path / "n.pt")["a"], numbers)


def test_a_state_dict_is_found_where_trainings_keep_it(tmp_path: Path) -> None:
    inner = made.state_dict({"a": np.ones(2, np.float32)})
    for number, outer in enumerate(
        ({"net": inner}, {"model": {"state_dict": inner}}, {"state_dict": inner, "best": 0.5})
    ):
        file = tmp_path / f"{number}.pth"
        made.write_zip(file, made.pickled(outer), made.storages({"a": np.ones(2, np.float32)}))
        assert list(read_tensors(file)) == ["a"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\x02", b"\x89HDF\r\n\x1a\n", b"{}"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"net{suffix}"
    file.write_bytes(content)
    with pytest.raises(ContractError) as refused:
        read_tensors(file)
    assert "\n" not in str(refused.value)


def test_every_way_to_cut_a_file_off_is_refused(tmp_path: Path) -> None:
    for write, name in ((made.write_torch, "a.pth"), (made.write_safetensors, "a.safetensors")):
        file = tmp_path / name
        write(file, ARRAYS)
        whole = file.read_bytes()
        for length in range(0, len(whole), 211):
            file.write_bytes(whole[:length])
            with pytest.raises(ContractError):
                read_tensors(file)
    made.write_torch(file.with_suffix(".pt"), ARRAYS, legacy=True)
    whole = file.with_suffix(".pt").read_bytes()
    for length in range(0, len(whole), 211):
        file.with_suffix(".pth").write_bytes(whole[:length])
        with pytest.raises(ContractError):
            read_tensors(file.with_suffix(".pth"))


def test_what_a_byte_more_or_less_breaks_is_refused_or_read(tmp_path: Path) -> None:
    """Never another exception, whatever byte it is."""
    rng = np.random.default_rng(1)
    small: dict[str, Any] = {"a": np.arange(4, dtype=np.float32), "b": np.arange(2)}
    for name, legacy in (("a.pth", False), ("b.pth", True), ("c.safetensors", False)):
        file = tmp_path / name
        if name.endswith(".pth"):
            made.write_torch(file, small, legacy=legacy)
        else:
            made.write_safetensors(file, small)
        whole = file.read_bytes()
        messages = []
        for _ in range(25):
            damaged = bytearray(whole)
            damaged[rng.integers(len(damaged))] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                read_tensors(file)
            except ContractError as error:
                messages.append(str(error))
        assert messages
        assert all(len(text) < 400 and "\n" not in text for text in messages)
