"""Archives that tests make, and what a reader finds in them."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from beam_jobs.common.files import interface as files

SUFFIXES = (".zip", ".stored.zip", ".tar", ".tar.gz", ".tgz")


def make(path: Path, members: dict[str, bytes]) -> Path:
    """An archive of what its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        method = zipfile.ZIP_STORED if ".stored" in path.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name), data, method)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def some(seed: int = 0, count: int = 30) -> dict[str, bytes]:
    """Files as exams have them, some of them no input."""
    rng = random.Random(seed)
    found = {
        f"train/{n % 3:05}/{'T1w' if n % 2 else 'FLAIR'}/{n:03}.dcm": rng.randbytes(
            rng.randrange(50, 3000)
        )
        + bytes(rng.randrange(100_000))
        for n in range(count)
    }
    return found | {"train/empty": b"", "train/ü .dcm": b"u", "DICOMDIR": b"x", ".git/a": b"x"}


def unpacked(root: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        files.write(root / name, data)
    return root


def contents(root: str | Path) -> dict[str, bytes]:
    """What a reader of the root finds, by the paths of its unpacked directory."""
    found = {}
    for entry in files.entries(root):
        with files.open_bytes(entry.path) as source:
            data = source.read_at(0, source.size)
            assert entry.size in (None, len(data))
            if "!/" in entry.path:
                assert source.modified == entry.stamp
            middle = len(data) // 2
            assert source.read_at(middle, 10) == data[middle : middle + 10]
            assert source.read_at(len(data), 10) == b""
        found[files.logical(entry.path)] = data
    return found


def refusal(path: str) -> str:
    with pytest.raises(OSError) as found, files.open_bytes(path) as source:
        source.read_at(0, source.size)
    assert "\n" not in str(found.value)
    return found.value.strerror or ""
