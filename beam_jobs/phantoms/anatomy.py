"""The head of the phantom cohort: an analytic function of patient coordinates.

A head is not a voxel array but a rule that answers "what is at (x, y, z)?", so every series of a
patient, in whatever plane, images the same physical object, exactly aligned in patient space
(LPS: +x left, +y posterior, +z superior; mm).

What makes an orientation error visible: the brain is narrower in front than behind, domed above
and flat below, cerebellum and brain stem lie below and behind, and a marker sits in the LEFT
frontal lobe only.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Vector = tuple[float, float, float]
LesionKind = Literal["ring", "solid"]

UNIT = 1000.0  # rescaled pixel value of a relative brightness of 1

# Canonical anatomy in mm before `Head.size`, head axes parallel to LPS, origin amid the cerebrum.
MARKER_CENTRE: Vector = (36.0, -34.0, 20.0)
MARKER_RADIUS = 9.0
HALO_MM = 8.0  # how far a lesion's halo reaches beyond it
_CEREBELLUM_CENTRE, _CEREBELLUM_AXES = (0.0, 45.0, -38.0), (46.0, 30.0, 24.0)
_STEM_RADIUS, _STEM_BOTTOM = 12.0, -76.0


class Tissues(NamedTuple):
    """Relative brightness of each tissue in one modality.

    Except in T1w, a solid lesion is as bright as the mean of a ring, so the mean tells no label.
    A halo stays on the head's side of the `CONTRAST`.
    """

    csf: float
    grey: float
    white: float
    marker: float
    halo: float
    solid: float
    rim: float
    core: float


TISSUES: dict[str, Tissues] = {
    "FLAIR": Tissues(0.20, 0.66, 0.50, 0.28, 0.80, 1.16, 1.50, 0.30),
    "T1w": Tissues(0.42, 0.62, 0.85, 1.15, 0.42, 0.17, 0.13, 0.50),
    "T1wCE": Tissues(0.34, 0.58, 0.78, 0.98, 0.44, 1.40, 1.85, 0.22),
    "T2w": Tissues(0.98, 0.68, 0.48, 0.26, 1.08, 1.52, 1.90, 0.55),
}


class Contrast(NamedTuple):
    """How a lesion is found: the head's voxels beyond `threshold` are lesion, a ring's its rim.

    The threshold is in rescaled units and holds with the default noise and bias of `imaged`.
    """

    direction: Literal["brighter", "darker"]
    threshold: float


CONTRAST: dict[str, Contrast] = {
    "FLAIR": Contrast("brighter", 0.92 * UNIT),
    "T1w": Contrast("darker", 0.27 * UNIT),
    "T1wCE": Contrast("brighter", 1.18 * UNIT),
    "T2w": Contrast("brighter", 1.24 * UNIT),
}


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A sphere in the brain: a bright rim around a dark core ("ring"), or homogeneous ("solid").

    Attributes:
        kind: appearance, the only thing the label decides.
        centre: patient LPS, mm.
        radius: mm, the outer radius.
        rim_fraction: thickness of the rim as a part of the radius; unused in a solid lesion.
        mixture: how far rim and core are mixed towards the other kind's brightness: 0 looks as its
            kind says, 0.5 lies half-way, 1 looks like the other kind.
        halo: 0..1, how much of swollen tissue's brightness what lies around it has.
    """

    kind: LesionKind
    centre: Vector
    radius: float
    rim_fraction: float = 0.34
    mixture: float = 0.0
    halo: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("ring", "solid"):
            raise ValueError(f"lesion kind must be 'ring' or 'solid', found {self.kind!r}")
        if not self.radius > 0 or not 0 < self.rim_fraction < 1:
            raise ValueError(
                "a lesion needs radius > 0 mm and 0 < rim_fraction < 1, found "
                f"{self.radius} and {self.rim_fraction}"
            )
        for name in ("mixture", "halo"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"a lesion's {name} must lie in 0..1, found {getattr(self, name)}")

    @property
    def ring_share(self) -> float:
        """How much of a ring it looks like: 1 a ring, 0 homogeneous."""
        return 1 - self.mixture if self.kind == "ring" else self.mixture


@dataclass(frozen=True, kw_only=True)
class Head:
    """A skull-stripped brain at a place and pose in patient space.

    Attributes:
        centre: patient LPS of the anatomy's origin (amid the cerebrum), mm.
        rotation_degrees: about the L, P and S axes, applied in that order.
        size: scale of the canonical anatomy (1.0 is about 145 mm wide, 168 mm long, 134 mm high).
        phases: six phases (radians) of the cortical folds and of the smooth texture.
        lesion: its lesion, or None for a healthy head.
    """

    centre: Vector = (0.0, 0.0, 0.0)
    rotation_degrees: Vector = (0.0, 0.0, 0.0)
    size: float = 1.0
    phases: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    lesion: Lesion | None = None

    def __post_init__(self) -> None:
        if not self.size > 0:
            raise ValueError(f"head size must be > 0, found {self.size}")
        if len(self.phases) != 6:
            raise ValueError(f"a head needs 6 phases, found {len(self.phases)}")

    def to_patient(self, canonical: ArrayLike) -> NDArray[np.float64]:
        """Canonical head coordinates (..., 3), mm at size 1, to patient LPS mm (..., 3)."""
        points = np.asarray(canonical, np.float64) * self.size
        turned = np.einsum("ij,...j->...i", self._rotation(), points)
        return np.asarray(turned + np.asarray(self.centre))

    def intensity(self, xyz: NDArray[np.floating[Any]], modality: str) -> NDArray[np.float32]:
        """The noiseless, bias-free signal at patient points.

        Args:
            xyz: (..., 3) patient LPS, mm.
            modality: a key of `TISSUES`.

        Returns:
            (...) float32 in rescaled units (`UNIT` = brightness 1); exactly 0 outside the head,
            > 0 inside.

        Raises:
            ValueError: for a modality without tissue table.
        """
        if modality not in TISSUES:
            raise ValueError(f"modality must be one of {', '.join(TISSUES)}, found {modality!r}")
        turn = (self._rotation() / self.size).astype(np.float32)
        x, y, z = _turned((xyz - np.asarray(self.centre)).astype(np.float32).reshape(-1, 3), turn)
        signal = np.zeros(len(x), np.float32)
        inside = np.flatnonzero(is_brain(x, y, z))
        if inside.size:
            x, y, z = x[inside], y[inside], z[inside]
            value = _healthy(x, y, z, TISSUES[modality], self.phases)
            if self.lesion is not None:
                offset = np.subtract(self.lesion.centre, self.centre)[None].astype(np.float32)
                centre = _turned(offset, turn)
                distance = np.float32(self.size) * _ellipsoid(x, y, z, centre, (1.0, 1.0, 1.0))
                value = _with_lesion(value, distance, self.lesion, TISSUES[modality])
            signal[inside] = np.float32(UNIT) * value
        return signal.reshape(xyz.shape[:-1])

    def _rotation(self) -> NDArray[np.float64]:
        """(3, 3): head axes to patient axes."""
        result = np.eye(3)
        for axis, angle in enumerate(np.deg2rad(self.rotation_degrees)):
            i, j = (axis + 1) % 3, (axis + 2) % 3
            turn = np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            result = turn @ result
        return result


def _turned(offset: Array, turn: Array) -> tuple[Array, Array, Array]:
    """Components (n,) of `offset @ turn`, without BLAS, whose rounding may vary by threads."""
    a, b, c = np.ascontiguousarray(offset.T)
    x, y, z = (a * turn[0, i] + b * turn[1, i] + c * turn[2, i] for i in range(3))
    return x, y, z


def cerebrum_radius(x: Array, y: Array, z: Array) -> Array:
    """Normalised radius in the cerebrum at canonical points: 0 at its origin, 1 on its surface."""
    wide = x / (66.0 + 0.11 * y)  # narrower in front (y < 0)
    high = z / np.where(z > 0, np.float32(58.0), np.float32(40.0))  # domed above, flat below
    return np.asarray(np.sqrt(wide * wide + (y / 84.0) ** 2 + high * high))


def is_brain(x: Array, y: Array, z: Array) -> NDArray[np.bool_]:
    """Whether canonical points lie in cerebrum, cerebellum or brain stem."""
    return (cerebrum_radius(x, y, z) < 1) | (_cerebellum_radius(x, y, z) < 1) | _in_stem(x, y, z)


def _cerebellum_radius(x: Array, y: Array, z: Array) -> Array:
    return _ellipsoid(x, y, z, _CEREBELLUM_CENTRE, _CEREBELLUM_AXES)


def _in_stem(x: Array, y: Array, z: Array) -> NDArray[np.bool_]:
    axis_y = 12.0 - 0.12 * z  # the stem leans backward as it goes down
    inside = x * x + (y - axis_y) ** 2 < _STEM_RADIUS**2
    return np.asarray(inside & (z < 0) & (z > _STEM_BOTTOM))


def _ellipsoid(x: Array, y: Array, z: Array, centre: Any, axes: Vector) -> Array:
    squares = (
        ((x - centre[0]) / axes[0]) ** 2
        + ((y - centre[1]) / axes[1]) ** 2
        + ((z - centre[2]) / axes[2]) ** 2
    )
    return np.asarray(np.sqrt(squares))


def _soft(depth_mm: Array, width_mm: float = 1.5) -> Array:
    """0 outside, 1 inside, linear over `width_mm`: point samples of an edge do not jag."""
    return np.asarray(np.clip(depth_mm / np.float32(width_mm) + np.float32(0.5), 0, 1))


def _mix(under: Array, over: float | Array, weight: Array) -> Array:
    return np.asarray(under + weight * (over - under))


def _healthy(x: Array, y: Array, z: Array, tissue: Tissues, phases: tuple[float, ...]) -> Array:
    """Relative brightness at canonical points known to be brain, without lesion."""
    p = [np.float32(phase) for phase in phases]
    folds = np.sin(x * 0.33 + p[0]) * np.sin(y * 0.29 + p[1]) + np.sin(y * 0.31 + p[2]) * np.sin(
        z * 0.34 + p[3]
    )
    radius = cerebrum_radius(x, y, z)
    value = _mix(
        np.full_like(x, tissue.white), tissue.grey, _soft(60 * (radius - 0.84) + 3.5 * folds)
    )

    left_right = np.abs(x)
    deep_grey = _ellipsoid(left_right, y, z, (19.0, 3.0, -3.0), (9.0, 19.0, 10.0))
    value = _mix(value, tissue.grey, _soft(10 * (1 - deep_grey)))
    fissure = np.minimum(2.2 - left_right, 40 * (radius - 0.55))
    value = _mix(value, tissue.csf, _soft(np.where(z > -10, fissure, np.float32(-9))))
    # Ventricles: wide in front, thin behind; beyond their end (y = 62) the width must not be 0.
    horn = np.maximum(7.5 - 0.12 * y, np.float32(0.1))
    ventricle = np.sqrt(
        ((left_right - 11 - 0.1 * y) / horn) ** 2 + ((y + 2) / 34) ** 2 + ((z - 10) / 10) ** 2
    )
    value = _mix(value, tissue.csf, _soft(7 * (1 - ventricle)))

    behind = (radius >= 1) | ((z < -24) & (y > 30))
    cerebellum = _mix(
        np.full_like(x, tissue.white), tissue.grey, _soft(3 * np.sin(0.75 * z + 0.02 * y * y))
    )
    value = np.where(behind & (_cerebellum_radius(x, y, z) < 1), cerebellum, value)
    value = np.where((radius >= 1) & _in_stem(x, y, z), np.float32(tissue.white * 0.95), value)

    marker = _ellipsoid(x, y, z, MARKER_CENTRE, (MARKER_RADIUS,) * 3)
    value = _mix(value, tissue.marker, _soft(MARKER_RADIUS * (1 - marker)))
    texture = np.sin(x * 0.11 + p[4]) * np.sin(y * 0.09 + p[5]) * np.sin(z * 0.10 + p[0])
    return np.asarray(value * (1 + np.float32(0.05) * texture))


def _with_lesion(value: Array, distance: Array, lesion: Lesion, tissue: Tissues) -> Array:
    """`value` with the lesion painted over, `distance` mm from the lesion's centre."""
    if lesion.halo:
        around = _soft(lesion.radius + HALO_MM - distance)
        value = _mix(value, tissue.halo, np.float32(lesion.halo) * around)
    outer = _soft(lesion.radius - distance)
    share = lesion.ring_share
    if share == 0:
        return _mix(value, tissue.solid, outer)
    rim, in_core = (share * ring + (1 - share) * tissue.solid for ring in tissue[-2:])
    core = _soft(lesion.radius * (1 - lesion.rim_fraction) - distance)
    return _mix(_mix(value, rim, outer), in_core, core)
