"""Weights that would take far more memory than their file holds are refused unread."""

from __future__ import annotations

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from trainer.config.unpacked import require_unpackable

GIGABYTE = 1 << 30


def test_sound_files_pass_and_others_are_left_to_their_reader(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(100, 100))
    np.savez(tmp_path / "a.npz", numbers)
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/0"] = numbers
    (tmp_path / "text").write_text("nothing of the kind")
    for name in ("a.npz", "a.weights.h5", "text"):
        require_unpackable(tmp_path / name)


def test_an_archive_of_zeros_is_refused_by_its_directory(tmp_path: Path) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (GIGABYTE,)}
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("arr_0.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(GIGABYTE >> 24):
            member.write(bytes(1 << 24))
    assert (tmp_path / "a.npz").stat().st_size < 8 << 20
    with pytest.raises(ContractError, match="would unpack to 1073741952 bytes"):
        require_unpackable(tmp_path / "a.npz")


@pytest.mark.parametrize("within", [False, True])
def test_arrays_that_are_claimed_and_not_there_are_refused(tmp_path: Path, within: bool) -> None:
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/0", (GIGABYTE,), dtype="f4", chunks=(1 << 20,))
    if within:
        with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
            archive.write(path, "model.weights.h5")
        path = tmp_path / "a.keras"
    with pytest.raises(ContractError, match="would unpack to 4294967296 bytes"):
        require_unpackable(path)


def test_arrays_of_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(80))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (10,), dtype="f8", external=[("secret", 0, 80)])
    with pytest.raises(ContractError, match="in other files"):
        require_unpackable(tmp_path / "a.h5")
