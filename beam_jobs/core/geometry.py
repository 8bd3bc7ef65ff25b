"""Where a stack's voxels lie in the patient: pure geometry, no voxels.

Frame of reference: patient LPS millimetres (x to the left, y to posterior, z to superior), as in
PS3.3 C.7.6.2. Voxel indices are (row, column, slice); an index is that of a voxel's centre.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from beam_jobs.core.reasons import Reason, RejectedError

Array = npt.NDArray[np.float64]

PLANES = ("sagittal", "coronal", "axial")

# No scanner images a larger volume (a whole body is 2 m long and fills 1 m³); what claims to be
# larger would only cost the memory of its lattice.
MAX_EXTENT_MM = 3000.0
MAX_VOLUME_MM3 = 2e9
MIN_SPACING_MM = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VolumeGeometry:
    """A regular lattice of voxel centres in patient space, sheared stacks included.

    Attributes:
      shape: (rows, columns, slices).
      affine: 4x4 float64, (row, column, slice, 1) of a voxel centre to LPS mm.

    Raises:
      ValueError: the affine is not invertible or not affine.
    """

    shape: tuple[int, int, int]
    affine: Array

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        object.__setattr__(self, "affine", affine)
        if affine.shape != (4, 4) or np.abs(affine[3] - (0, 0, 0, 1)).max() > 1e-8:
            raise ValueError("affine must be 4x4 with last row 0 0 0 1")
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
            raise ValueError("affine must be finite and invertible")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbouring rows, columns and slices."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(steps[0]), float(steps[1]), float(steps[2]))

    @property
    def plane(self) -> str:
        """ "axial", "coronal" or "sagittal": the plane nearest to the slices'."""
        normal = np.cross(self.affine[:3, 1], self.affine[:3, 0])
        return PLANES[int(np.argmax(np.abs(normal)))]

    @property
    def obliquity(self) -> float:
        """Degrees between the slice normal and the nearest patient axis."""
        normal = np.cross(self.affine[:3, 1], self.affine[:3, 0])
        cosine = np.abs(normal).max() / np.linalg.norm(normal)
        return float(np.degrees(np.arccos(min(cosine, 1.0))))

    @property
    def centre(self) -> Array:
        """LPS mm of the lattice's middle, shape (3,)."""
        middle = (np.asarray(self.shape) - 1) / 2
        return self.to_patient(middle)

    def to_patient(self, index: npt.ArrayLike) -> Array:
        """LPS mm of voxel indices; (..., 3) to (..., 3)."""
        point: Array = np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T
        return point + self.affine[:3, 3]

    def to_index(self, point: npt.ArrayLike) -> Array:
        """Voxel indices (not rounded) of LPS mm points; (..., 3) to (..., 3)."""
        offset = np.asarray(point, dtype=np.float64) - self.affine[:3, 3]
        index = np.linalg.solve(self.affine[:3, :3], offset[..., None])[..., 0]
        return np.asarray(index, dtype=np.float64)

    @classmethod
    def canonical(
        cls, shape: tuple[int, int, int], spacing: npt.ArrayLike, first: npt.ArrayLike
    ) -> VolumeGeometry:
        """The canonical axes: row to posterior, column to left, slice to superior.

        Args:
          shape: (rows, columns, slices).
          spacing: mm between rows, columns and slices.
          first: LPS mm of voxel (0, 0, 0).
        """
        row, column, slice_ = np.asarray(spacing, dtype=np.float64)
        affine = np.eye(4)
        affine[:3, :3] = [[0, column, 0], [row, 0, 0], [0, 0, slice_]]
        affine[:3, 3] = first
        return cls(shape=shape, affine=affine)


def require_plausible_size(shape: tuple[int, int, int], spacing: Array, note: str = "") -> None:
    """Refuses a volume that no scanner images.

    Args:
      shape: voxels along each axis.
      spacing: (3,) mm between them.
      note: what else there is to say.

    Raises:
      RejectedError: it is one.
    """
    extents = np.asarray(shape) * spacing
    if extents.max() > MAX_EXTENT_MM or extents.prod() > MAX_VOLUME_MM3:
        measured = " x ".join(f"{extent:.4g}" for extent in extents)
        raise RejectedError(
            Reason.INVALID_GEOMETRY, f"the volume would measure {measured} mm{note}"
        )


def slice_directions(orientation: npt.ArrayLike) -> tuple[Array, Array, Array]:
    """(along increasing column, along increasing row, slice normal) of ImageOrientationPatient.

    Raises:
      ValueError: not six finite direction cosines of two perpendicular unit vectors. They are
        given as decimal strings, so lengths and the right angle may be off by 1e-2 at most.
    """
    cosines = np.asarray(orientation, dtype=np.float64)
    if cosines.shape != (6,) or not np.isfinite(cosines).all():
        raise ValueError("ImageOrientationPatient (0020,0037) must be six finite numbers")
    along_column, along_row = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(along_column), np.linalg.norm(along_row)
    if max(abs(length - 1) for length in lengths) > 1e-2 or abs(along_column @ along_row) > 1e-2:
        raise ValueError(
            "ImageOrientationPatient (0020,0037) must be two perpendicular unit vectors"
        )
    normal = np.cross(along_column, along_row)
    return along_column, along_row, normal / np.linalg.norm(normal)
