"""A series as voxels with their place in the patient."""

from __future__ import annotations

import dataclasses
import gzip
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.pixels import StoredSlice, stored_slices
from beam_jobs.core.geometry import Array, VolumeGeometry
from beam_jobs.core.series import Series


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Voxels on a lattice in patient space.

    Attributes:
      array: (row, column, slice); integers, or a NIfTI file's floats, as stored where no rescaling
        applies, else float32 (float64 where samples of 32 bits or more need it).
      geometry: where they lie.
    """

    array: npt.NDArray[Any]
    geometry: VolumeGeometry

    @property
    def affine(self) -> Array:
        """4x4 float64, (row, column, slice, 1) of a voxel centre to patient LPS mm."""
        return self.geometry.affine

    def save_nifti(self, path: files.StrPath) -> None:
        """Writes a NIfTI-1 file (`.nii` or `.nii.gz`), so that any viewer can check the volume.

        The first axis is the row index; the affine is turned from LPS to NIfTI's RAS.

        Raises:
          ValueError: another file extension.
        """
        import nibabel  # only here: a worker that converts does not pay for it

        name = files.text(path)
        if not name.endswith((".nii", ".nii.gz")):
            raise ValueError(f"{name} must end in .nii or .nii.gz")
        ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine
        image = nibabel.Nifti1Image(self.array, ras, dtype=self.array.dtype)
        image.set_sform(ras, code="scanner")
        image.header.set_xyzt_units("mm")
        data = image.to_bytes()
        if name.endswith(".gz"):
            data = gzip.compress(data, compresslevel=1, mtime=0)
        files.write(path, data)


def load_volume(series: Series) -> Volume:
    """Reads a series whole, at full resolution, Modality LUT applied, no window.

    An uneven stack (missing slices) is interpolated linearly from the slices' true positions onto
    its lattice of the median step. A NIfTI file's axes come turned as a scanner's images run.

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
    if series.offsets[0] > series.offsets[-1]:
        array = array[:, :, ::-1]
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
    # Values that are float32 stay so: numpy 2 would take a float64 of `weight` for the better type.
    kind = array.dtype if array.dtype.kind == "f" else np.float64
    below, above = (1 - weight).astype(kind), weight.astype(kind)
    result = np.empty((*array.shape[:2], count), dtype=np.float32)
    for index in range(count):
        low, high = array[:, :, upper[index] - 1], array[:, :, upper[index]]
        result[:, :, index] = low * below[index] + high * above[index]
    return result
