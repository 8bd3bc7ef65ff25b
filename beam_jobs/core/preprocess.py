"""The one recipe from a patient's series to a prepared case; training and serving both call it.

series --resample (all on one grid)--> values --scale by the volume's foreground--> stored dtype
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError, fingerprint
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.cohort.target import Label
from beam_jobs.core.dicom.pixels import BlankTally, stored_slices
from beam_jobs.core.foreground import (
    ROUNDING,
    SAMPLE,
    foreground_extent,
    foreground_threshold,
    percentiles,
)
from beam_jobs.core.geometry import Array, VolumeGeometry
from beam_jobs.core.reasons import Reason, RejectedError, Rejection
from beam_jobs.core.record import PreparedCase, RecordSchema, require_recordable
from beam_jobs.core.reduction import Float32
from beam_jobs.core.resample import Resampled, resample_stack
from beam_jobs.core.series import Series

# Raised whenever the recipe gives other voxels for the same input. 2: other series of a heap.
# 3: what rounding makes of an exact background is no foreground.
RECIPE_VERSION = 3
_RECIPES = (2, RECIPE_VERSION)  # what is prepared here: models made by version 2 go on

DEFAULT_MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessSpec:
    """Everything that decides a prepared volume's voxels, apart from the input.

    Attributes:
      modalities: channel names in channel order; the first one present is the reference, whose
        foreground centres the grid.
      shape: (rows, columns, slices) of the grid; rows run to posterior, columns to left, slices
        to superior.
      fov_mm: field of view in mm along (rows, columns, slices).
      dtype: stored voxel type: "uint8", "uint16" or "float16".
      percentiles: of the foreground, mapped to the ends of the stored range.
      require_modalities: patients without one of these are rejected.
      series_rules: rules of modality choice, tried before the built-in ones.
      recipe: its version, `RECIPE_VERSION` or an earlier one that is known.

    Raises:
      ContractError: a value that no recipe can have.
    """

    modalities: tuple[str, ...] = DEFAULT_MODALITIES
    shape: tuple[int, int, int] = (128, 128, 32)
    fov_mm: tuple[float, float, float] = (240.0, 240.0, 160.0)
    dtype: str = "uint8"
    percentiles: tuple[float, float] = (0.5, 99.5)
    require_modalities: tuple[str, ...] = ()
    series_rules: tuple[ModalityRule, ...] = ()
    recipe: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "modalities", tuple(self.modalities))
        set_(self, "require_modalities", tuple(sorted(self.require_modalities)))
        set_(self, "shape", tuple(int(n) for n in self.shape))
        set_(self, "fov_mm", tuple(float(n) for n in self.fov_mm))
        set_(self, "percentiles", tuple(float(n) for n in self.percentiles))
        if len(self.fov_mm) != 3 or not all(0 < extent < 10_000 for extent in self.fov_mm):
            raise ContractError(f"fov_mm must be three positive lengths in mm: {self.fov_mm}")
        if len({name.casefold() for name in self.modalities}) != len(self.modalities):
            raise ContractError(f"modalities differ in more than case: {self.modalities}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ContractError(f"percentiles must rise within 0..100: {self.percentiles}")
        set_(self, "series_rules", tuple(self.series_rules))
        unknown = set(self.require_modalities) - set(self.modalities)
        if unknown:
            raise ContractError(f"require_modalities names {sorted(unknown)}, not in modalities")
        _require_recipe(self.recipe)
        require_recordable(self.modalities, self.shape, self.dtype)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between rows, columns and slices of the grid."""
        row, column, slice_ = (
            extent / n for extent, n in zip(self.fov_mm, self.shape, strict=True)
        )
        return (row, column, slice_)

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON."""
        return fingerprint(self.to_json())

    @property
    def schema(self) -> RecordSchema:
        """The contract of records made by this recipe."""
        return RecordSchema(
            modalities=self.modalities,
            shape=self.shape,
            dtype=self.dtype,
            spec_fingerprint=self.fingerprint,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        data: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            data[field.name] = list(value) if isinstance(value, tuple) else value
        data["series_rules"] = [rule.to_json() for rule in self.series_rules]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PreprocessSpec:
        """Reads `to_json`'s object.

        Raises:
          ContractError: another version's recipe, a field is missing or unknown, or its value
            cannot be.
        """
        _require_recipe(data.get("recipe", RECIPE_VERSION))  # which may have other fields
        names = {field.name for field in dataclasses.fields(cls)}
        if set(data) != names:
            raise ContractError(
                f"spec fields missing: {sorted(names - set(data))}, "
                f"unknown: {sorted(set(data) - names)}"
            )
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        try:
            fields["series_rules"] = tuple(map(ModalityRule.from_json, data["series_rules"]))
        except (TypeError, ValueError) as error:
            raise ContractError(f"series_rules of the spec: {error}") from error
        return cls(**fields)


def _require_recipe(found: Any) -> None:
    if found not in _RECIPES:
        known = " and ".join(map(str, _RECIPES))
        raise ContractError(
            f"DICOM was prepared by recipe {found}, this version knows recipes {known}: "
            "convert and train again"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """What became of one patient's series.

    Attributes:
      case: the patient, its volume (row, column, slice, channel).
      rejections: one for each series whose pixels could not be used; its channel is zeros and
        not `present`.
      blank_slices: modality to the number of blank slices (see `BlankTally`) of its series, of
        every series whose pixels were all read, used or not.
    """

    case: PreparedCase
    rejections: list[Rejection]
    blank_slices: dict[str, int]


def prepare_case(
    patient_id: str,
    series: Mapping[str, Series],
    spec: PreprocessSpec,
    *,
    label: Label | None = None,
    fold: int | None = None,
    covariates: tuple[float, ...] = (),
) -> Preparation:
    """One patient's series on one grid, ready for a record or a network.

    Args:
      patient_id: as it will stand in the record.
      series: the series chosen for each modality; others than the spec's are ignored.
      spec: the recipe.
      label: as the target has it, None when unknown.
      fold: cross-validation fold, None without a label.
      covariates: what else is known of the patient, as in the record.

    Raises:
      PatientRejectedError: no series could be used, or a required modality is not there; what
        was found of the series is in its attributes.
    """
    volume = np.zeros(spec.schema.volume_shape, dtype=spec.dtype)
    present = [False] * len(spec.modalities)
    rejections: list[Rejection] = []
    blank_slices: dict[str, int] = {}
    grid: VolumeGeometry | None = None
    for channel, modality in enumerate(spec.modalities):
        if modality not in series:
            continue
        stack, tally = series[modality], BlankTally()
        try:
            resampled = resample_series(stack, spec, grid, tally)
            _scale(resampled, spec, volume[..., channel])
        except RejectedError as error:
            rejections.append(
                Rejection(
                    paths=stack.paths,
                    reason=error.reason,
                    detail=str(error),
                    series_uid=stack.first.series_uid,
                )
            )
        else:
            grid = resampled.geometry
            present[channel] = True
            del resampled  # or it would lie beside the next one
        if tally.slices == len(stack.headers):
            blank_slices[modality] = tally.blank
    missing = [
        name
        for name, there in zip(spec.modalities, present, strict=True)
        if name in spec.require_modalities and not there
    ]
    if missing or grid is None:
        reason = Reason.MISSING_MODALITY if missing else Reason.NO_USABLE_SERIES
        detail = f"required: {', '.join(missing)}" if missing else "no series could be used"
        raise PatientRejectedError(reason, detail, rejections, blank_slices)
    case = PreparedCase(
        patient_id=patient_id,
        volume=volume,
        affine=grid.affine,
        present=tuple(present),
        label=label,
        fold=fold,
        covariates=covariates,
    )
    return Preparation(case=case, rejections=rejections, blank_slices=blank_slices)


class PatientRejectedError(RejectedError):
    """A patient without a usable volume.

    Attributes:
      rejections, blank_slices: of the patient's series, as in `Preparation`.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        rejections: list[Rejection],
        blank_slices: dict[str, int],
    ) -> None:
        super().__init__(reason, detail)
        self.rejections = rejections
        self.blank_slices = blank_slices


def resample_series(
    series: Series,
    spec: PreprocessSpec,
    grid: VolumeGeometry | None = None,
    tally: BlankTally | None = None,
) -> Resampled:
    """A series on the spec's grid, values not yet scaled.

    Args:
      series: the stack.
      spec: grid shape and field of view.
      grid: where the grid lies; None centres it on the series' foreground, to the nearest point
        of the lattice of grid steps through the patient's origin.
      tally: counts each slice, also those of a series that is refused.

    Raises:
      RejectedError: pixels that cannot be read, or a blank series.
    """
    counted = BlankTally() if tally is None else tally

    def choose(values: Float32, affine: Array) -> VolumeGeometry:
        # The pixels decide: beside a blank stack `values` may hold the zeros outside of it.
        if counted.one_value is not None:
            raise RejectedError(Reason.BLANK_SERIES, f"every pixel is {counted.one_value:g}")
        return grid or grid_around(grid_centre(values, affine, spec), spec)

    slices = counted.watch(stored_slices(series.headers))
    return resample_stack(slices, series.geometry, series.offsets, spec.spacing, choose)


def grid_around(centre: Array, spec: PreprocessSpec) -> VolumeGeometry:
    """The spec's grid with its middle within half a step of `centre` (LPS mm)."""
    row, column, slice_ = spec.spacing
    # Patient x, y, z are the grid's column, row, slice.
    step = np.array([column, row, slice_])
    size = np.array([spec.shape[1], spec.shape[0], spec.shape[2]])
    first = np.rint(centre / step - (size - 1) / 2) * step
    return VolumeGeometry.canonical(spec.shape, spec.spacing, first)


# Voxels scaled at once: few enough for the processor's cache.
_SCALED = 1 << 17
# Of floats: what differs by less has no quotient in float32.
_LEAST_CONTRAST = 1e-30
# Air kept above a foreground that is taller than the field of view.
_TOP_MARGIN_MM = 8.0


def grid_centre(values: Float32, affine: Array, spec: PreprocessSpec) -> Array:
    """Where the spec's grid should have its middle, LPS mm: the middle of the foreground.

    A foreground taller than the field of view (a head scanned down to the neck) keeps its superior
    end: a head's upper part is brain, its lower part is neck. The idea is FSL `robustfov`'s.
    """
    low, high = foreground_extent(values, affine, _rounding(spec))
    centre = (low + high) / 2
    height = spec.fov_mm[2]
    if high[2] - low[2] > height:
        centre[2] = high[2] + _TOP_MARGIN_MM - height / 2
    return np.asarray(centre)


def _rounding(spec: PreprocessSpec) -> float:
    """`foreground_threshold`'s, of the spec's recipe."""
    return ROUNDING if spec.recipe > 2 else 0.0


def _scale(resampled: Resampled, spec: PreprocessSpec, volume: npt.NDArray[Any]) -> None:
    """Values to the stored dtype: foreground percentiles to its ends, outside to 0.

    Args:
      resampled: the values.
      spec: the recipe.
      volume: (row, column, slice) of the stored dtype, which is written.

    Raises:
      RejectedError: nothing of the series lies on the grid, or it is all one value there.
    """
    array, inside = resampled.array, resampled.inside
    stride = max(1, int(np.ceil((array.size / SAMPLE) ** (1 / 3))))
    values = array[::stride, ::stride, ::stride]
    if resampled.everywhere:
        values = values.ravel()
    else:
        values = values[inside[::stride, ::stride, ::stride]]
    if not values.size or values.min() == values.max():
        # The sample may miss a small or narrow piece: all voxels decide.
        values = array[inside]
    if not values.size or values.min() == values.max():
        raise RejectedError(Reason.BLANK_SERIES, "no contrast within the field of view")
    foreground = values[values > foreground_threshold(values, _rounding(spec))]
    low, high = percentiles(foreground if foreground.size else values, spec.percentiles)
    if not high > low:
        low, high = float(values.min()), float(values.max())
    if high - low < _LEAST_CONTRAST:
        raise RejectedError(Reason.BLANK_SERIES, f"values differ by no more than {high - low:g}")
    top = 1.0 if spec.dtype == "float16" else float(np.iinfo(spec.dtype).max)
    bottom, factor = np.float32(low), np.float32(top / (high - low))
    rows = max(1, _SCALED * len(array) // array.size)
    scaled = np.empty_like(array[:rows])
    for start in range(0, len(array), rows):
        part = slice(start, start + rows)
        scaled = scaled[: len(array[part])]
        np.subtract(array[part], bottom, out=scaled)
        scaled *= factor
        np.maximum(scaled, np.float32(0.0), out=scaled)
        np.minimum(scaled, np.float32(top), out=scaled)
        if spec.dtype != "float16":
            np.rint(scaled, out=scaled)
        if not resampled.everywhere:
            scaled *= inside[part]
        volume[part] = scaled
