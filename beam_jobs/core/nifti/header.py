"""What the header of a NIfTI-1 or NIfTI-2 file says: matrix, type, scaling, place in the patient.

Sources: nifti1.h (R. W. Cox, 2003) and nifti2.h (2011), whose field names stand in the messages.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any, Literal, NamedTuple

import numpy as np

from beam_jobs.core.geometry import MIN_SPACING_MM, Array, require_plausible_size
from beam_jobs.core.nifti.names import NIFTI_1, NIFTI_2
from beam_jobs.core.reasons import Reason, RejectedError

HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
# A side of a slice, as DICOM bounds it; no scanner makes a stack of more slices.
_MOST_SIDE, _MOST_SLICES = (1 << 16) - 1, 1 << 14
_MOST_OFFSET = 64 << 20  # bytes of extensions before the voxels
# Voxels whose axes enclose less than this share of the box of their lengths are flat.
_FLAT = 0.01
# Unit quaternions of float32 are one within 1e-6; of a few decimals within this.
_QUATERNION = 1e-3
_FARTHEST_MM = 1e6
# A thousandth of the largest volume there is: what is smaller is in other units than it says.
_LEAST_EXTENT_MM = 3.0

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"} | {
    1024: "i8",
    1280: "u8",
}
_COLOURS = {128: "RGB", 2304: "RGBA"}
_OTHERS = {
    0: "unknown", 1: "1-bit", 32: "complex64", 1536: "float128", 1792: "complex128",
    2048: "complex256",
}  # fmt: skip
_UNITS = {0: ("no unit, taken for mm", 1.0), 1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("µm", 1e-3)}
# Texts in place of files whose content a repository keeps elsewhere.
_POINTERS = (b"/annex/objects/", b"version https://git-lfs.github.com/spec/")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class _Layout(NamedTuple):
    """Where the fields of a version lie: (format, byte)."""

    version: str
    size: int
    magic: slice
    single: bytes
    pair: bytes
    fields: dict[str, tuple[str, int]]


_LAYOUTS = {
    348: _Layout(
        NIFTI_1, 348, slice(344, 348), b"n+1\0", b"ni1\0",
        {
            "dim": ("8h", 40), "datatype": ("h", 70), "pixdim": ("8f", 76),
            "vox_offset": ("f", 108), "scl": ("2f", 112), "xyzt_units": ("B", 123),
            "codes": ("2h", 252), "quatern": ("6f", 256), "srow": ("12f", 280),
        },
    ),
    540: _Layout(
        NIFTI_2, 540, slice(4, 12), b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n",
        {
            "dim": ("8q", 16), "datatype": ("h", 12), "pixdim": ("8d", 104),
            "vox_offset": ("q", 168), "scl": ("2d", 176), "xyzt_units": ("i", 500),
            "codes": ("2i", 344), "quatern": ("6d", 352), "srow": ("12d", 400),
        },
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NiftiHeader:
    """A file of one volume.

    Attributes:
      version: `NIFTI_1` or `NIFTI_2`.
      shape: voxels along i, j, k; i runs fastest in the file.
      dtype: of the stored voxels, in the file's byte order.
      offset: byte of the first voxel.
      slope, intercept: value = stored * slope + intercept; None where voxels are values.
      affine: 4x4 float64, (i, j, k, 1) of a voxel centre to patient LPS mm.
    """

    version: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float | None
    intercept: float | None
    affine: Array

    @property
    def flips(self) -> tuple[bool, bool]:
        """Whether i and j run against columns and rows of a scanner's images of the same plane.

        These have columns to the left (sagittal: to posterior) and rows to posterior (coronal and
        sagittal: to inferior).
        """
        axes = np.argmax(np.abs(self.affine[:3, :3]), axis=0)
        to_superior = (1, 1, 1 if axes[2] == 2 else -1)
        i, j = (self.affine[axes[n], n] * to_superior[axes[n]] < 0 for n in (0, 1))
        return bool(i), bool(j)

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def _layout_of(begin: bytes) -> tuple[_Layout, Literal["<", ">"]] | None:
    """The version and the byte order that the length of the header, its first field, tells."""
    if len(begin) < 4:
        return None
    if (size := int.from_bytes(begin[:4], "little")) in _LAYOUTS:
        return _LAYOUTS[size], "<"
    if (size := int.from_bytes(begin[:4], "big")) in _LAYOUTS:
        return _LAYOUTS[size], ">"
    return None


def begins_as_nifti(begin: bytes) -> bool:
    """Whether the first four bytes are the length of a NIfTI header, in either byte order."""
    return _layout_of(begin) is not None


def parse_header(begin: bytes, path: str) -> NiftiHeader:
    """The header of a file.

    Args:
      begin: its first `HEADER_BYTES`, inflated.
      path: of the file, which errors name.

    Raises:
      RejectedError: no volume of greyscale voxels with a place in the patient; its reason says why.
    """
    try:
        return _parsed(begin)
    except RejectedError as error:
        raise RejectedError(error.reason, str(error), path=path) from error


def _parsed(begin: bytes) -> NiftiHeader:
    found = _layout_of(begin)
    if found is None:
        why = "named like NIfTI, and begins as neither NIfTI nor DICOM" if begin else "is empty"
        if begin.startswith(_POINTERS):
            why = "a pointer of git-annex or Git LFS: the file's content was not fetched"
        raise RejectedError(Reason.NOT_DICOM, why)
    layout, order = found
    if len(begin) < layout.size:
        raise RejectedError(
            Reason.CORRUPT_HEADER, f"{layout.size} header bytes required, {len(begin)} found"
        )
    _require_single_file(begin[layout.magic], layout)
    field = {
        name: struct.unpack_from(order + form, begin, start)
        for name, (form, start) in layout.fields.items()
    }
    shape = _shape(field["dim"])
    dtype = _dtype(field["datatype"][0]).newbyteorder(order)
    slope, intercept = _scaling(*field["scl"])
    return NiftiHeader(
        version=layout.version,
        shape=shape,
        dtype=dtype,
        offset=_offset(field["vox_offset"][0], layout.size),
        slope=slope,
        intercept=intercept,
        affine=_affine(field, shape, layout.version),
    )


def _require_single_file(magic: bytes, layout: _Layout) -> None:
    if magic == layout.single:
        return
    if magic == layout.pair:
        raise RejectedError(
            Reason.NO_PIXELS,
            "the header of a pair (.hdr, .img), whose voxels are another file's: "
            "make one file (.nii) of both",
        )
    raise RejectedError(
        Reason.CORRUPT_HEADER,
        f"magic is not {layout.single[:3].decode()}; an Analyze 7.5 file, which does not tell left "
        "from right, has none",
    )


def _shape(dim: tuple[int, ...]) -> tuple[int, int, int]:
    """Voxels along i, j, k."""
    if not 1 <= dim[0] <= 7:
        raise RejectedError(Reason.CORRUPT_HEADER, f"dim[0] is {dim[0]}, 1 to 7 required")
    sides = dim[1 : dim[0] + 1]
    if min(sides) < 1:
        raise RejectedError(Reason.CORRUPT_HEADER, f"dim has a side of {min(sides)} voxels")
    volumes = math.prod(sides[3:])
    if volumes > 1:
        raise RejectedError(
            Reason.SEVERAL_VOLUMES,
            f"{volumes} volumes in one file, one required: keep the one that is meant "
            "(fslroi, or nibabel.four_to_three)",
        )
    i, j, k = (*sides, 1, 1)[:3]
    if max(i, j) > _MOST_SIDE or k > _MOST_SLICES:
        raise RejectedError(Reason.CORRUPT_HEADER, f"dim claims {i} x {j} x {k} voxels")
    return i, j, k


def _dtype(datatype: int) -> np.dtype[Any]:
    if datatype in _TYPES:
        return np.dtype(_TYPES[datatype])
    if datatype in _COLOURS:
        raise RejectedError(
            Reason.NOT_GREYSCALE, f"{_COLOURS[datatype]} voxels (datatype {datatype})"
        )
    name = _OTHERS.get(datatype, "no known type of")
    raise RejectedError(
        Reason.UNSUPPORTED_PIXELS,
        f"{name} voxels (datatype {datatype}): integers, float32 and float64 are read",
    )


def _scaling(slope: float, intercept: float) -> tuple[float | None, float | None]:
    if slope == 0 or not math.isfinite(slope):
        return None, None
    if not math.isfinite(intercept):
        raise RejectedError(
            Reason.CORRUPT_HEADER, f"scl_slope is {slope:g}, scl_inter {intercept:g}"
        )
    return float(slope), float(intercept)


def _offset(stated: float, header_bytes: int) -> int:
    """The first voxel's byte; 0 is written for what follows the header and its four flags."""
    if stated == 0:
        return header_bytes + 4
    if not (header_bytes <= stated <= _MOST_OFFSET and stated == int(stated)):
        raise RejectedError(
            Reason.CORRUPT_HEADER,
            f"vox_offset is {stated:g}: whole bytes from {header_bytes} to {_MOST_OFFSET} required",
        )
    return int(stated)


def _affine(field: dict[str, tuple[Any, ...]], shape: tuple[int, int, int], version: str) -> Array:
    """Voxel indices to LPS mm: the sform where it has a code, else the qform.

    Raises:
      RejectedError: neither has one, or it puts no patient's volume in space.
    """
    qform_code, sform_code = field["codes"]
    affine = np.eye(4)
    if sform_code > 0:
        kind = "sform"
        affine[:3] = np.reshape(field["srow"], (3, 4))
    elif qform_code > 0:
        kind = "qform"
        rounding = float(np.finfo(np.float32 if version == NIFTI_1 else np.float64).eps)
        affine[:3] = _qform(field["quatern"], field["pixdim"], rounding)
    else:
        raise RejectedError(
            Reason.INVALID_GEOMETRY,
            "qform_code and sform_code are 0: the file does not say how it lies in the patient",
        )
    code = field["xyzt_units"][0] & 7
    if code not in _UNITS:
        raise RejectedError(Reason.CORRUPT_HEADER, f"xyzt_units has no unit of length {code}")
    unit, factor = _UNITS[code]
    if not np.isfinite(affine).all() or np.abs(affine).max() > _FARTHEST_MM:
        raise RejectedError(
            Reason.INVALID_GEOMETRY,
            f"the {kind} is not finite, or leads over {_FARTHEST_MM / 1e6:.0f} km away",
        )
    affine[:3] *= factor
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    flat = not abs(np.linalg.det(affine[:3, :3])) > _FLAT * steps.prod()
    if flat or steps.min() < MIN_SPACING_MM:
        raise RejectedError(
            Reason.INVALID_GEOMETRY, f"the {kind} is singular: its voxels have no volume"
        )
    require_plausible_size(shape, steps, f"; xyzt_units says {unit}")
    extents = steps * shape
    if extents.max() < _LEAST_EXTENT_MM:
        raise RejectedError(
            Reason.INVALID_GEOMETRY,
            f"the volume would measure {' x '.join(f'{extent:.4g}' for extent in extents)} mm; "
            f"xyzt_units says {unit}",
        )
    return np.asarray(_RAS_TO_LPS @ affine)


def _qform(quatern: tuple[float, ...], pixdim: tuple[float, ...], rounding: float) -> Array:
    """(3, 4) of the quaternion's method ("method 2" of nifti1.h), RAS; `rounding` of one."""
    *imaginary, x, y, z = quatern
    steps = np.array(pixdim[1:4])
    if not (np.isfinite(imaginary).all() and np.isfinite(steps).all() and steps.min() > 0):
        raise RejectedError(
            Reason.INVALID_GEOMETRY,
            f"the qform needs positive pixdim[1..3] and a finite quaternion, pixdim is "
            f"{', '.join(f'{step:g}' for step in steps)}",
        )
    b, c, d = imaginary
    squares = b * b + c * c + d * d if max(map(abs, imaginary)) < 2 else math.inf
    if squares > 1 + _QUATERNION:
        raise RejectedError(Reason.INVALID_GEOMETRY, "the qform's quaternion is longer than one")
    rest = 1.0 - squares
    # What is left by rounding is no part of a half turn.
    a = math.sqrt(rest) if rest > 3 * rounding else 0.0
    scale = 2.0 / (a * a + squares)
    rotation = np.array(
        [
            [1 - scale * (c * c + d * d), scale * (b * c - a * d), scale * (b * d + a * c)],
            [scale * (b * c + a * d), 1 - scale * (b * b + d * d), scale * (c * d - a * b)],
            [scale * (b * d - a * c), scale * (c * d + a * b), 1 - scale * (b * b + c * c)],
        ]
    )
    if pixdim[0] < 0:  # qfac; 0 counts as 1
        steps[2] = -steps[2]
    return np.column_stack([rotation * steps, (x, y, z)])
