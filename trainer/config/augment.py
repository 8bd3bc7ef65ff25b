"""How training volumes are varied: one frozen value, five of them by name; imports no Keras."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, require_kinds, shown

# A cubic B-spline deformation in 3D folds nowhere while its control points move less than 1/2.48 of
# their spacing. Source: Y. Choi and S. Lee, Graphical Models 62 (2000) 411-427.
_FOLDS_FROM = 1 / 2.479472335
_FRACTIONS = ("spatial_probability", "intensity_probability", "cutout_probability")
_AMOUNTS = (
    *("rotation_deg", "scaling", "translation_mm", "elastic_mm"),
    *("gamma", "noise", "bias", "cutout", "mixup_alpha"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is drawn anew for each training volume; an amount of 0 leaves that part out.

    Grid axes are (row → posterior, column → left, slice → superior). Brightness and contrast are
    missing on purpose: the network standardises every channel, which undoes them.

    Attributes:
      flip: probability of a mirror image along (row, column, slice). The default is left-right
        alone, the one mirror image in which a head still looks like a head.
      rotation_deg: about the centre of the grid; each of the three axes gets an angle of at most
        this, either way.
      scaling: the size is multiplied by a factor from 1 / (1 + scaling) to 1 + scaling.
      translation_mm: shift along each axis of at most this, either way.
      elastic_mm: control points of a cubic B-spline deformation move at most this along each axis.
      elastic_spacing_mm: distance of those control points.
      spatial_probability: share of the volumes that are rotated, scaled, shifted and deformed; the
        others are not resampled.
      gamma: a value v becomes top · (v / top)^g, with g from 1 / (1 + gamma) to 1 + gamma.
      noise: deviation of the Gaussian noise, at most this share of the stored range.
      bias: smooth multiplicative shading, as of a receive coil, from 1 / (1 + bias) to 1 + bias.
      intensity_probability: chance that a channel of a volume gets gamma, likewise bias and noise,
        each drawn on its own.
      cutout: a box of this share of every axis is emptied in all channels.
      cutout_probability: share of the volumes that get such a box.
      mixup_alpha: volumes and labels are mixed in pairs, with weights from Beta(alpha, alpha).

    Raises:
      UsageError: a value that cannot be.
    """

    flip: tuple[float, float, float] = (0.0, 0.5, 0.0)
    rotation_deg: float = 0.0
    scaling: float = 0.0
    translation_mm: float = 0.0
    elastic_mm: float = 0.0
    elastic_spacing_mm: float = 40.0
    spatial_probability: float = 1.0
    gamma: float = 0.0
    noise: float = 0.0
    bias: float = 0.0
    intensity_probability: float = 1.0
    cutout: float = 0.0
    cutout_probability: float = 1.0
    mixup_alpha: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "flip", tuple(float(share) for share in self.flip))
        if len(self.flip) != 3 or not all(0 <= share <= 1 for share in self.flip):
            raise UsageError(f"augmentation flip must be three probabilities: {self.flip}")
        for name in _FRACTIONS:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation {name} must lie in 0 .. 1: {getattr(self, name)}")
        for name in _AMOUNTS:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"augmentation {name} must be 0 or more: {getattr(self, name)}")
        if self.rotation_deg > 180:
            raise UsageError(f"augmentation rotation_deg must be at most 180: {self.rotation_deg}")
        if self.cutout > 0.5:
            raise UsageError(f"augmentation cutout must be at most 0.5: {self.cutout}")
        limit = _FOLDS_FROM * self.elastic_spacing_mm
        if not (math.isfinite(limit) and limit > 0):
            raise UsageError(
                f"augmentation elastic_spacing_mm must be positive: {self.elastic_spacing_mm}"
            )
        if self.elastic_mm > limit:
            raise UsageError(
                f"augmentation elastic_mm {self.elastic_mm:g} would fold space: at most "
                f"{limit:.1f} with elastic_spacing_mm {self.elastic_spacing_mm:g}"
            )

    @property
    def resamples(self) -> bool:
        """Whether any volume is rotated, scaled, shifted or deformed."""
        amounts = (self.rotation_deg, self.scaling, self.translation_mm, self.elastic_mm)
        return any(amounts) and self.spatial_probability > 0

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {**dataclasses.asdict(self), "flip": list(self.flip)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AugmentConfig:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing or unknown, or is no number.
          UsageError: a value that cannot be.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if data.keys() != names:
            raise ContractError(
                f"augmentation fields missing: {sorted(names - data.keys())}, "
                f"unknown: {sorted(data.keys() - names)}"
            )
        require_kinds(data, {**dict.fromkeys(names, float), "flip": list}, where="augmentation ")
        for share in data["flip"]:
            require_kinds({"flip": share}, {"flip": float}, where="augmentation ")
        return cls(**{**data, "flip": tuple(data["flip"])})

    @classmethod
    def named(cls, name: str) -> AugmentConfig:
        """The preset of that name.

        Raises:
          UsageError: there is none.
        """
        if name not in PRESETS:
            known = f"known: {', '.join(PRESETS)}, or your own, module:function"
            raise UsageError(f"unknown augmentation {shown(name)}; {known}")
        return PRESETS[name]


PRESETS: dict[str, AugmentConfig] = {
    "none": AugmentConfig(flip=(0.0, 0.0, 0.0)),
    "flip": AugmentConfig(),
    "light": AugmentConfig(
        rotation_deg=10.0,
        scaling=0.1,
        translation_mm=6.0,
        spatial_probability=0.5,
        gamma=0.2,
        noise=0.02,
        intensity_probability=0.3,
    ),
    "medium": AugmentConfig(
        rotation_deg=15.0,
        scaling=0.15,
        translation_mm=10.0,
        elastic_mm=4.0,
        spatial_probability=0.7,
        gamma=0.3,
        noise=0.04,
        bias=0.2,
        intensity_probability=0.5,
    ),
    "strong": AugmentConfig(
        rotation_deg=30.0,
        scaling=0.25,
        translation_mm=15.0,
        elastic_mm=8.0,
        spatial_probability=0.9,
        gamma=0.5,
        noise=0.08,
        bias=0.4,
        intensity_probability=0.5,
        cutout=0.3,
        cutout_probability=0.5,
        mixup_alpha=0.2,
    ),
}
