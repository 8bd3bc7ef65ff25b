"""NIfTI files that claim or unpack to far more than they are, or lie about themselves."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests import bombs
from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS
from tests.hostile.sandbox import Sandbox

_MEGABYTE = 1 << 20
_READERS = {"survey": "", "convert": "--input", "predict": "--input"}


def header(
    sides: Sequence[int], *, step: float = 0.1, datatype: int = 512, offset: float = 352.0
) -> bytes:
    """A header of NIfTI-1 with an axial sform."""
    data = bytearray(352)
    struct.pack_into("<i", data, 0, 348)
    struct.pack_into("<8h", data, 40, len(sides), *sides, *(1,) * (7 - len(sides)))
    struct.pack_into("<h", data, 70, datatype)
    struct.pack_into("<f", data, 108, offset)
    data[123] = 2
    struct.pack_into("<h", data, 254, 1)
    for axis in range(3):
        struct.pack_into("<f", data, 280 + 20 * axis, step)
    data[344:348] = b"n+1\0"
    return bytes(data)


def _many(folder: Path, *, count: int, data: bytes) -> None:
    packed = gzip.compress(data, 9)
    for number in range(count):
        (folder / f"{number:05}.nii.gz").write_bytes(packed)


_FILES: dict[str, Callable[[Path], object]] = {
    "gzip of 1 GB of zeros": lambda folder: bombs.gzip_of(
        folder / "a.nii.gz", header((1024, 1024, 512)), 1024 * _MEGABYTE
    ),
    "gzip of 480 MB of zeros": lambda folder: bombs.gzip_of(
        folder / "a.nii.gz", header((1024, 1024, 240)), 480 * _MEGABYTE
    ),
    "gzip of 1 GB behind a small volume": lambda folder: bombs.gzip_of(
        folder / "a.nii.gz", header((64, 64, 64)), 1024 * _MEGABYTE
    ),
    "voxels behind 60 MB of extensions": lambda folder: bombs.gzip_of(
        folder / "a.nii.gz", header((64, 64, 64), offset=60e6), 64 * _MEGABYTE
    ),
    "32767 x 32767 x 16384 in a kilobyte": lambda folder: (folder / "a.nii").write_bytes(
        header((32767, 32767, 16384), step=0.01) + bytes(600)
    ),
    "2 slices of 200 MB in a kilobyte": lambda folder: _many(
        folder, count=1, data=header((10000, 10000, 2), step=0.02) + bytes(600)
    ),
    "3,000 files of 16384 slices": partial(
        _many, count=3000, data=header((2, 2, 16384), step=0.1) + bytes(2 * 4 * 16384)
    ),
    "nothing but the length of a header": lambda folder: (folder / "a.nii").write_bytes(
        struct.pack("<i", 540)
    ),
}


def _beside_a_cohort(
    sandbox: Sandbox, *, subject: str, put: Callable[[Path], object]
) -> Sequence[str]:
    folder = sandbox.put("cohort") / ("test" if subject == "predict" else "train")
    bomb = folder / "00999" / "FLAIR"
    bomb.mkdir(parents=True)
    put(bomb)
    return COMMANDS[subject].line(sandbox, {_READERS[subject]: folder})


def _nifti() -> Iterator[Case]:
    for name, put in _FILES.items():
        for subject in _READERS:
            yield Case(
                attack="NIfTI bomb",
                subject=subject,
                name=name,
                make=partial(_beside_a_cohort, subject=subject, put=put),
                timeout=240,
            )


CASES = [*_nifti()]
