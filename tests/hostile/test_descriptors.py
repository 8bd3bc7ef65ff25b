"""Descriptors come back, whatever happened to what they were of."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.headers import read_headers
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.reasons import RejectedError
from beam_jobs.report.make import make_report
from tests.archives import SUFFIXES, make, some
from tests.datasets import write_dataset
from tests.dicom_files import image_dataset, recipe_image, save


def descriptors() -> set[str]:
    """What is open, but what lists it."""
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {one for one in found if "/fd" not in one}


def kept_open(work: Callable[[int], object], turns: int = 20) -> set[str]:
    """What stays open after work done again and again, but for what its first turn opens."""
    work(0)
    before = descriptors()
    for turn in range(1, turns):
        work(turn)
    return descriptors() - before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archives(tmp_path: Path, suffix: str) -> None:
    def work(turn: int) -> None:
        path = make(tmp_path / f"{turn}{suffix}", some(turn, count=4))
        if turn % 3 == 1:
            os.truncate(path, path.stat().st_size // 2)
        with contextlib.suppress(OSError):
            for entry in files.entries(path):
                with contextlib.suppress(OSError), files.open_bytes(entry.path) as source:
                    source.read_at(0, 10)
        if turn % 3 == 2:
            path.write_bytes(b"no archive any more")
            with contextlib.suppress(OSError):
                files.entries(path)

    assert kept_open(work) == set()


def test_images_that_are_refused(tmp_path: Path) -> None:
    def work(turn: int) -> None:
        syntax = (uid.ExplicitVRLittleEndian, uid.RLELossless, uid.ExplicitVRBigEndian)[turn % 3]
        pixels = recipe_image(12).astype(np.uint16)
        dataset = image_dataset(rows=pixels.shape[0], columns=pixels.shape[1])
        path = save(dataset, tmp_path / f"{turn}.dcm", syntax, [pixels])
        headers = read_headers(path)
        with path.open("ab") as stream:
            stream.write(b"more")
        with pytest.raises(RejectedError):
            list(stored_slices(headers))
        path.write_bytes(path.read_bytes()[:300])
        with contextlib.suppress(RejectedError):
            read_headers(path)

    assert kept_open(work) == set()


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    def work(turn: int) -> None:
        with pytest.raises(IsADirectoryError):
            files.write(tmp_path / "there", b"x")
        with contextlib.suppress(KeyError), files.open_write(tmp_path / "new") as stream:
            stream.write(b"x")
            raise KeyError
        with files.lock(tmp_path / "lock", "held"), contextlib.suppress(files.LockedError):
            files.lock(tmp_path / "lock", "held").__enter__()
        files.write_new(tmp_path / "once", b"x")

    assert kept_open(work) == set()


@pytest.mark.slow
def test_reports_of_damaged_datasets(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", patients=6, folds=2)

    def work(turn: int) -> None:
        make_report(str(tmp_path / "data"), output=str(tmp_path / "page.html"))
        shard = next((tmp_path / "data").glob("*.tfrecord"))
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1])
        with pytest.raises(ContractError):
            make_report(str(tmp_path / "data"), output=str(tmp_path / "page.html"))
        shard.write_bytes(whole)

    assert kept_open(work, 4) == set()
