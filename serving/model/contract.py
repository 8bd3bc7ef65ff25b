"""The contract that a SavedModel travels with: what it takes, and which records do not fit.

    MODEL/
      saved_model.pb, variables/, fingerprint.pb    loadable with TensorFlow alone
      assets/contract.json                          the fields of `Contract`; written last
      assets/MODEL_CARD.md                          for people
      assets/training_statistics.json               what it was trained on, where that is known
      assets.extra/tf_serving_warmup_requests       replayed by TensorFlow Serving at its start

Reading a contract costs no TensorFlow; only `loaded_model.load_model` does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    OneOf,
    Within,
    json_object,
    require_kinds,
    shown,
)
from beam_jobs.common.files import interface as files
from beam_jobs.core.drift import Statistics
from beam_jobs.core.record import RecordSchema
from serving.model.calibration import ENSEMBLES, Calibration
from serving.model.cohort_statistics import STATISTICS_NAME

FORMAT = "voxelbeam-model"
CONTRACT_NAME = "assets/contract.json"
CARD_NAME = "assets/MODEL_CARD.md"
SIGNATURES = ("serving_default", "volumes")
# What contract.json must hold, by type; the schema checks itself.
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("schema", "spec", "versions", "calibration", "cohort", "sha256"), dict),
    "prevalence": Within(float, 0, 1),
    "modalities": ListOf(str, least=1),
    "ensemble": OneOf(ENSEMBLES),
    "members": ListOf(dict, least=1),
    "training": ListOf(dict),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model takes, what it is made of and what it was measured to do.

    Attributes:
      schema: the record contract of the volumes it takes (all channels of a record).
      spec: the `PreprocessSpec` behind them, as JSON: the recipe from DICOM to such a volume.
      modalities: the channels the networks look at, in order; a subset of the schema's.
      members: one a network: run, model, fold, seed, epoch, epoch_choice, val_auc,
        precision.
      ensemble: what of the members' answers is averaged: "logits" or "probabilities".
      calibration: what the ensemble's logit goes through, and how it was measured.
      prevalence: share of positives in the training data; the answer where there is no image.
      cohort: `patients`, of whom `positive`, that at least one member was trained on; {} unknown.
      training: one a run: name, dataset_fingerprint, trained_on (as cohort), no_claim, metrics (of
        held-out patients), and what they allow one to say; where it had any, code (identities of
        the user's functions that it is made of) and weights (files that it started from).
      versions: of the libraries that exported it.
      sha256: name within the model -> sha256 (hex) of every other file; {} of a model that was
        exported before 0.5, or is not written yet.
    """

    schema: RecordSchema
    spec: Mapping[str, Any]
    modalities: tuple[str, ...]
    members: tuple[Mapping[str, Any], ...]
    ensemble: str
    calibration: Calibration
    prevalence: float
    cohort: Mapping[str, Any]
    training: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "members", tuple(self.members))
        object.__setattr__(self, "training", tuple(self.training))
        unknown = [name for name in self.modalities if name not in self.schema.modalities]
        if unknown or not self.modalities:
            raise ContractError(
                f"modalities {shown(self.modalities)} must be some of "
                f"{shown(self.schema.modalities)}"
            )
        if not self.members:
            raise ContractError("members must not be empty")
        if not 0 <= self.prevalence <= 1:
            raise ContractError(f"prevalence must be between 0 and 1: {self.prevalence}")
        if self.ensemble not in ENSEMBLES:
            raise ContractError(f"ensemble {self.ensemble!r} found, one of {ENSEMBLES} required")

    @property
    def channels(self) -> tuple[int, ...]:
        """Indices of `modalities` among the schema's channels."""
        return tuple(self.schema.modalities.index(name) for name in self.modalities)

    def require(self, schema: RecordSchema, *, model: str, records: str) -> None:
        """Refuses records that differ from those the model was trained on, naming every field.

        Args:
          schema: of the records.
          model: the model's path, for the message.
          records: what to call the records ("dataset demo/dataset").

        Raises:
          ContractError: at least one field differs.
        """
        self.schema.require_equal(schema, ours=f"model {model}", theirs=records)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return {
            "format": FORMAT,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "schema": self.schema.to_json(),
            "calibration": self.calibration.to_json(),
            "spec_fingerprint": self.schema.spec_fingerprint,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contract:
        """Reads `to_json`'s object.

        Raises:
          ContractError: not a model's contract, a field is missing, or it contradicts itself.
        """
        if data.get("format") != FORMAT:
            raise ContractError(f"format {shown(data.get('format'))} found, {FORMAT!r} required")
        names = [field.name for field in dataclasses.fields(cls)]
        data = {"sha256": {}, **data}
        if missing := [name for name in names if name not in data]:
            raise ContractError(f"contract lacks {', '.join(missing)}")
        require_kinds(data, _KINDS)
        for name in ("versions", "sha256"):
            require_kinds(data[name], dict.fromkeys(data[name], str), where=f"{name}.")
        cohort = {name: Within(int, 0) for name in data["cohort"]}
        require_kinds(data["cohort"], cohort, where="cohort.")
        fields = {name: data[name] for name in names}
        schema = RecordSchema.from_json(data["schema"])
        schema.require_recipe(data["spec"])
        calibration = Calibration.from_json(data["calibration"])
        return cls(**{**fields, "schema": schema, "calibration": calibration})

    def dumps(self) -> str:
        """The text of contract.json."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"


def load_contract(path: files.StrPath, *, name: str = "") -> Contract:
    """Reads a model's contract without loading the model.

    Args:
      path: of the model.
      name: what to call it in messages; default `path`.

    Raises:
      ContractError: there is none, or it is not one of ours; the message names the model.
    """
    name = name or files.text(path)
    try:
        return Contract.from_json(json_object(files.read(files.join(path, CONTRACT_NAME))))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ContractError(f"{name} is not a voxelbeam model: no {CONTRACT_NAME}") from error
    except ContractError as error:
        raise ContractError(f"{files.join(name, CONTRACT_NAME)}: {error}") from error


def load_statistics(path: files.StrPath) -> Statistics | None:
    """What a model's training data looked like; None where its export was not given them.

    Raises:
      ContractError: the file is there, but is not one of ours; the message names the path.
    """
    file = files.join(path, STATISTICS_NAME)
    try:
        return Statistics.loads(files.read(file))
    except FileNotFoundError:
        return None
    except ContractError as error:
        raise ContractError(f"{file}: {error}") from error
