"""The record contract: what one example holds, stated as data and checked on both sides.

One `tf.train.Example` is one patient. Its features are an allow-list: nothing else leaves the
DICOM.

    feature            kind        shape                 meaning
    -----------------  ----------  --------------------  ------------------------------------------
    volume             bytes       1                     raw little-endian voxels, C order, axes
                                                         (row, column, slice, channel)
    shape              int64       4                     (rows, columns, slices, channels)
    dtype              bytes       1                     "uint8", "uint16" or "float16"
    modalities         bytes       channels              the channels' names, in order
    present            int64       channels              1 where the modality was there, else 0
    affine             float       16                    row-major 4x4: (row, column, slice, 1) of a
                                                         voxel centre to patient LPS millimetres
    patient_id         bytes       1                     as `--id_policy` says
    label              int64,      0 or 1, of a          a class's index; of a multilabel 0, 1 or
                       float       multilabel labels     -1 (unknown) of each; a float of a
                                                         regression; absent when unknown, never a
                                                         default
    fold               int64       0 or 1                absent when the patient has no label
    schema_version     int64       1                     1, or 2 where labels of 0 and 1 do not say
                                                         all
    spec_fingerprint   bytes       1                     of the `PreprocessSpec` that made it
    covariates         float       covariates            absent without any; a number, or the index
                                                         of a category; NaN where it is not known
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    fingerprint,
    objects_of,
    require_kinds,
    require_that,
    shown,
)
from beam_jobs.core.cohort.covariates import COVARIATES_MOST, Covariate
from beam_jobs.core.cohort.target import PLAIN, Label, Target

SCHEMA_VERSIONS = (1, 2)
AXES = ("row", "column", "slice", "channel")
DTYPES = ("uint8", "uint16", "float16")
VOLUME_MOST = (1 << 31) - (1 << 20)  # bytes; a protobuf message holds less than 2 GiB
FEATURES = (
    "volume",
    "shape",
    "dtype",
    "modalities",
    "present",
    "affine",
    "patient_id",
    "label",
    "fold",
    "schema_version",
    "spec_fingerprint",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSchema:
    """What every record of one dataset has in common.

    Attributes:
      modalities: channel names in channel order.
      shape: (rows, columns, slices) of the prepared grid.
      dtype: stored voxel type, one of `DTYPES`.
      spec_fingerprint: fingerprint of the `PreprocessSpec`.
      target: what the labels say.
      covariates: what else is known of the patients, in the order of a record's numbers.

    Raises:
      ContractError: a value that no record can have.
    """

    modalities: tuple[str, ...]
    shape: tuple[int, int, int]
    dtype: str
    spec_fingerprint: str
    target: Target = PLAIN
    covariates: tuple[Covariate, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "covariates", tuple(self.covariates))
        require_recordable(self.modalities, self.shape, self.dtype)
        names = [one.name for one in self.covariates]
        if len(set(names)) != len(names) or len(names) > COVARIATES_MOST:
            raise ContractError(f"covariates must be distinct: {shown(names)}")

    @property
    def version(self) -> int:
        """Of the record: 2 where there is more to say than labels of 0 and 1."""
        return 1 if self.target.is_plain and not self.covariates else 2

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that a record may have."""
        return (*FEATURES, "covariates") if self.covariates else FEATURES

    @property
    def covariate_names(self) -> tuple[str, ...]:
        """Of the covariates, in the order of a record's numbers."""
        return tuple(one.name for one in self.covariates)

    @property
    def volume_shape(self) -> tuple[int, int, int, int]:
        """(rows, columns, slices, channels)."""
        return (*self.shape, len(self.modalities))

    @property
    def volume_bytes(self) -> int:
        """Bytes of one volume."""
        return math.prod(self.volume_shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        data = {
            "version": self.version,
            "axes": list(AXES),
            "features": list(self.features),
            "modalities": list(self.modalities),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "spec_fingerprint": self.spec_fingerprint,
        }
        if self.version > 1:
            data["target"] = self.target.to_json()
            data["covariates"] = [one.to_json() for one in self.covariates]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RecordSchema:
        """Reads `to_json`'s object.

        Raises:
          ContractError: a field is missing or malformed, or the version is one this code does not
            know.
        """
        require_kinds(data, _KINDS, where="schema.")
        if data["version"] not in SCHEMA_VERSIONS:
            raise ContractError(
                f"schema version {data['version']} found, version "
                f"{' or '.join(map(str, SCHEMA_VERSIONS))} required"
            )
        for name, kind, required in (
            ("modalities", str, "a list of names"),
            ("shape", int, "a list of whole numbers"),
        ):
            require_that(_all_of(data[name], kind), data, name, required, where="schema.")
        target = PLAIN
        covariates: tuple[Covariate, ...] = ()
        if data["version"] > 1:
            require_kinds(data, _KINDS_2, where="schema.")
            target = Target.from_json(data["target"], where="schema.target.")
            covariates = tuple(
                Covariate.from_json(one, where=f"schema.covariates[{number}].")
                for number, one in enumerate(objects_of(data, "covariates", where="schema."))
            )
        schema = cls(
            modalities=tuple(data["modalities"]),
            shape=tuple(data["shape"]),
            dtype=data["dtype"],
            spec_fingerprint=data["spec_fingerprint"],
            target=target,
            covariates=covariates,
        )
        for name, names in (("axes", AXES), ("features", schema.features)):
            same = name not in data or data[name] == list(names)
            require_that(same, data, name, f"{list(names)}", where="schema.")
        same = data["version"] == schema.version
        require_that(same, data, "version", "1, of labels 0 and 1 alone,", where="schema.")
        return schema

    def require_recipe(self, spec: Mapping[str, Any]) -> None:
        """Refuses a `PreprocessSpec`, as JSON, that is not the one behind these records.

        Raises:
          ContractError: its fingerprint is another.
        """
        if (found := fingerprint(spec)) != self.spec_fingerprint:
            raise ContractError(
                f"spec: its fingerprint is {found}, the schema says {shown(self.spec_fingerprint)}"
            )

    def require_equal(self, other: RecordSchema, *, ours: str, theirs: str) -> None:
        """Refuses a schema that differs, naming every differing field with both values.

        Args:
          other: the schema to hold against this one.
          ours: what to call this side in the message ("model run/model").
          theirs: what to call the other side ("dataset demo/dataset").

        Raises:
          ContractError: at least one field differs.
        """
        differing = [
            f"{field.name}: {shown(getattr(self, field.name))} in {ours}, "
            f"{shown(getattr(other, field.name))} in {theirs}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if differing:
            raise ContractError("records do not fit: " + "; ".join(differing))


def require_recordable(modalities: tuple[str, ...], shape: tuple[int, ...], dtype: str) -> None:
    """Refuses channels, a grid or a type of voxels that no record can have.

    Raises:
      ContractError: names the value.
    """
    if not modalities or len(set(modalities)) != len(modalities):
        raise ContractError(f"modalities must be distinct and not empty: {shown(modalities)}")
    if len(shape) != 3 or min(shape) < 1:
        raise ContractError(f"shape must be three positive integers: {shape}")
    if dtype not in DTYPES:
        raise ContractError(f"dtype must be one of {', '.join(DTYPES)}: {shown(dtype)}")
    size = math.prod(shape) * len(modalities) * np.dtype(dtype).itemsize
    if size > VOLUME_MOST:
        raise ContractError(f"a volume of {size} bytes: at most {VOLUME_MOST} fit into a record")


_KINDS: dict[str, Kind] = {
    "version": int,
    "modalities": list,
    "shape": list,
    "dtype": str,
    "spec_fingerprint": str,
}
_KINDS_2: dict[str, Kind] = {"target": dict, "covariates": list}


def _all_of(values: list[Any], kind: type) -> bool:
    return all(isinstance(item, kind) and not isinstance(item, bool) for item in values)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCase:
    """One patient, ready for a record or a network.

    Attributes:
      patient_id: as it will stand in the record.
      volume: (row, column, slice, channel) in the schema's dtype.
      affine: 4x4 float64, (row, column, slice, 1) of a voxel centre to patient LPS millimetres.
      present: per channel, whether the modality was there; absent channels are all zero.
      label: as the schema's target has it, None when unknown.
      fold: cross-validation fold, None when the patient has no label.
      covariates: a float32's value of each of the schema's; NaN where it is not known.
    """

    patient_id: str
    volume: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    present: tuple[bool, ...]
    label: Label | None = None
    fold: int | None = None
    covariates: tuple[float, ...] = ()

    def check(self, schema: RecordSchema) -> None:
        """Refuses a case that is not what `schema` says.

        Raises:
          ContractError: shape, dtype, presence or values do not fit.
        """
        if self.volume.shape != schema.volume_shape or self.volume.dtype != schema.dtype:
            raise ContractError(
                f"volume of {self.patient_id} is {self.volume.dtype} {self.volume.shape}, "
                f"schema says {schema.dtype} {schema.volume_shape}"
            )
        if len(self.present) != len(schema.modalities):
            raise ContractError(
                f"{len(self.present)} presence flags for {len(schema.modalities)} modalities"
            )
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ContractError(f"affine of {self.patient_id} is not a finite 4x4 matrix")
        if self.volume.dtype.kind == "f" and not np.isfinite(self.volume).all():
            raise ContractError(f"volume of {self.patient_id} holds values that are not finite")
        if len(self.covariates) != len(schema.covariates):
            raise ContractError(
                f"{len(self.covariates)} covariates of {self.patient_id}, schema says "
                f"{len(schema.covariates)}"
            )
        for value, known in zip(self.covariates, schema.covariates, strict=True):
            fits = math.isnan(value) or (
                math.isfinite(value) if known.is_number else value in range(len(known.categories))
            )
            if not fits:
                raise ContractError(f"covariate {known.name} of {self.patient_id} is {value}")
