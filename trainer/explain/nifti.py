"""A map on a record's grid as NIfTI, for any viewer to lay over any picture of the same patient."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def write_nifti(path: Path, values: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    """Writes a NIfTI-1 file of float32, compressed; the same values give the same bytes.

    Args:
      path: ends in .nii.gz.
      values: (row, column, slice), or (row, column, slice, channel), a volume a channel.
      affine: 4x4, (row, column, slice, 1) of a voxel centre to patient LPS mm, as in a record. In
        the file it is turned to NIfTI's RAS, and the first axis is the row index: as volumes of the
        conversion are written.
    """
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    shape = values.shape + (1,) * (7 - values.ndim)
    # nifti1.h; offsets in bytes
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, values.ndim, *shape)
    struct.pack_into("<2h", header, 70, 16, 32)  # datatype float32, bits
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)  # where voxels begin, slope, intercept
    header[123] = 2  # xyzt_units: millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # sform_code: scanner anatomical
    struct.pack_into("<12f", header, 280, *ras[:3].ravel())
    header[344:348] = b"n+1\0"
    voxels = values.astype("<f4").tobytes(order="F")
    path.write_bytes(gzip.compress(bytes(header) + b"\0" * 4 + voxels, compresslevel=6, mtime=0))
