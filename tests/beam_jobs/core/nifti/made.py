"""NIfTI files of these tests, made by nibabel or byte by byte."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason
from beam_jobs.core.series import Series, assemble

# RAS; its columns run to the left, its rows to posterior, as a scanner's do.
AXIAL = np.array([[-2.0, 0, 0, 90], [0, -2.5, 0, 80], [0, 0, 3, -40], [0, 0, 0, 1]])


def voxels(shape: tuple[int, ...] = (6, 5, 4), dtype: Any = np.int16) -> npt.NDArray[Any]:
    """Values (i, j, k) that are all different."""
    return (np.arange(np.prod(shape)).reshape(shape) % 120).astype(dtype)


def image(
    array: npt.NDArray[Any] | None = None,
    affine: Any = AXIAL,
    *,
    version: int = 1,
    order: str = "<",
) -> Any:
    """An image of nibabel's whose header has this byte order."""
    kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    array = voxels() if array is None else array
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    made = kind(array, None, header=header)
    made.header.set_sform(affine, code=1)
    made.header.set_qform(None, code=0)
    made.header.set_xyzt_units("mm")
    return made


def opened(path: str) -> Any:
    """A file as nibabel has it."""
    return nibabel.load(path)


def bytes_of(made: Any = None, **fields: Any) -> bytes:
    """A file of an image, fields of its header overwritten as they are given."""
    made = image() if made is None else made
    data = bytearray(made.to_bytes())
    header = made.header.structarr
    for name, value in fields.items():
        kind, at = header.dtype.fields[name][:2]
        put = np.zeros((), dtype=kind)
        put[...] = value
        data[at : at + put.nbytes] = put.tobytes()
    return bytes(data)


def write(path: Path, data: bytes) -> str:
    """A file, packed where its name ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, 1) if path.name.lower().endswith(".gz") else data)
    return str(path)


def series_of(path: str) -> Series:
    """The one series of a file."""
    headers, unread = index_files([path])
    assert not unread, unread
    (series,), rejected = assemble(headers)
    assert not rejected, rejected
    return series


def refusal_of(path: str) -> tuple[Reason, str]:
    """Why a file is refused, by its header alone."""
    headers, refused = index_files([path])
    if headers:
        series, refused = assemble(headers)
        assert not series
    (refusal,) = refused
    assert refusal.paths == (path,)
    return refusal.reason, refusal.detail
