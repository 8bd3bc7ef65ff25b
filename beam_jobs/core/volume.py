"""A series as voxels with their place in the patient."""

from __future__ import annotations

import dataclasses
import gzip
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.dicom.pixels import StoredSlice, stored_slices
from beam_jobs.core.geometry import Array, VolumeGeometry
from beam_jobs.core.series import Series


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Voxels on a lattice in patient space.

    Attributes:
      array: (row, column, slice); integers as stored where no rescaling applies, else float32
        (float64 where 32-bit samples need it).
      geometry: where they lie.
    """

    array: npt.NDArray[Any]
    geometry: VolumeGeometry

    @property
    def affine(self) -> Array:
        """4x4 float64, (row, column, slice, 1) of a voxel centre to patient LPS mm."""
        return self.geometry.affine

    def save_nifti(self, path: str) -> None:
        """Writes a NIfTI-1 file (`.nii` or `.nii.gz`), so that any viewer can check the volume.

        The first axis is the row index; the affine is turned from LPS to NIfTI's RAS.

        Raises:
          ValueError: another file extension.
        """
        if not path.endswith((".nii", ".nii.gz")):
            raise ValueError(f"{path} must end in .nii or .nii.gz")
        payload = _nifti_header(self) + b"\0" * 4 + self.array.tobytes(order="F")
        if path.endswith(".gz"):
            payload = gzip.compress(payload, compresslevel=1, mtime=0)
        with open(path, "wb") as file:
            file.write(payload)


def load_volume(series: Series) -> Volume:
    """Reads a series whole, at full resolution, Modality LUT applied, no window.

    An uneven stack (missing slices) is interpolated linearly from the slices' true positions onto
    its lattice of the median step.

    Returns:
      (row, column, slice) voxels; see `Volume`.

    Raises:
      RejectedError: pixels are missing or do not decode.
    """
    # Slice by slice in memory, as read; (row, column, slice) is a view of it.
    stack: npt.NDArray[Any] = np.zeros(0)
    for index, stored in enumerate(stored_slices(series.headers)):
        dtype, plain = stored.samples.dtype, stored.slope == 1.0 and stored.intercept == 0.0
        if not plain:
            dtype = np.dtype(np.float64 if dtype.itemsize > 2 else np.float32)
        if index == 0:
            stack = np.zeros((len(series.headers), *stored.samples.shape), dtype=dtype)
        elif dtype != stack.dtype:
            stack = stack.astype(np.result_type(stack, dtype), copy=False)
        stack[index] = stored.samples if plain else _rescaled(stored)
    array = np.moveaxis(stack, 0, 2)
    if not series.even:
        array = _at_lattice(array, np.asarray(series.offsets), series.geometry.shape[2])
    return Volume(array=array, geometry=series.geometry)


def _rescaled(stored: StoredSlice) -> Array:
    values = stored.samples * np.float64(stored.slope)
    values += stored.intercept
    return values


def _at_lattice(array: npt.NDArray[Any], offsets: Array, count: int) -> npt.NDArray[np.float32]:
    """Linear interpolation of slices at `offsets` to 0, 1, ..., count - 1."""
    wanted = np.clip(np.arange(count, dtype=np.float64), offsets[0], offsets[-1])
    upper = np.clip(np.searchsorted(offsets, wanted), 1, len(offsets) - 1)
    weight = (wanted - offsets[upper - 1]) / (offsets[upper] - offsets[upper - 1])
    result = np.empty((*array.shape[:2], count), dtype=np.float32)
    for index in range(count):
        low, high = array[:, :, upper[index] - 1], array[:, :, upper[index]]
        result[:, :, index] = low * (1 - weight[index]) + high * weight[index]
    return result


# NIfTI-1 datatype codes (nifti1.h).
_NIFTI_CODES = {
    "uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256, "uint16": 512,
    "uint32": 768,
}  # fmt: skip


def _nifti_header(volume: Volume) -> bytes:
    """348 bytes of NIfTI-1 header (nifti1.h), sform in scanner RAS mm."""
    dtype = volume.array.dtype
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *volume.array.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, _NIFTI_CODES[dtype.name], dtype.itemsize * 8)
    struct.pack_into("<8f", header, 76, 1.0, *volume.geometry.spacing, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    header[123] = 2  # xyzt_units: millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # sform_code: scanner anatomical
    struct.pack_into("<12f", header, 280, *ras[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)
