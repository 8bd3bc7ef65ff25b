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
import math
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
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.drift import Statistics
from beam_jobs.core.record import PreparedCase, RecordSchema
from serving.model.calibration import Calibration
from serving.model.cohort_statistics import STATISTICS_NAME
from serving.model.out_of_fold import ENSEMBLES
from serving.model.temperatures import Interval, Temperatures

FORMAT = "voxelbeam-model"
CONTRACT_NAME = "assets/contract.json"
CARD_NAME = "assets/MODEL_CARD.md"
SIGNATURES = ("serving_default", "volumes")
# What contract.json must hold, by type; the schema checks itself.
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("schema", "spec", "versions", "calibration", "cohort", "sha256"), dict),
    "modalities": ListOf(str, least=1),
    "ensemble": OneOf(ENSEMBLES),
    "members": ListOf(dict, least=1),
    "training": ListOf(dict),
}
# Of a binary model, and of others; what stands only where it says something new.
_BINARY: dict[str, Kind] = {"prevalence": Within(float, 0, 1)}
_OTHERS: dict[str, Kind] = {"prior": ListOf(float, least=1)}
_AS_THEY_ARE = ("spec", "modalities", "members", "ensemble", "cohort", "training") + (
    "versions",
    "sha256",
)
# Members of a cohort that count patients by class or finding.
_BY_NAME = ("classes", "labels", "known")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model takes, what it is made of and what it was measured to do.

    Attributes:
      schema: the record contract of the volumes it takes (all channels of a record).
      spec: the `PreprocessSpec` behind them, as JSON: the recipe from DICOM to such a volume.
      modalities: the channels the networks look at, in order; a subset of the schema's.
      covariates: names of those that the networks take beside the volume, in order; some of the
        schema's.
      members: one a network: run, model, fold, seed, epoch, epoch_choice, val_auc (val_score of
        other than binary labels), precision.
      ensemble: what of the members' answers is averaged: "logits" or "probabilities"; values are
        averaged whichever it is.
      calibration: what the ensemble's logits go through, and how it was measured.
      prior: the answer where there is no image: the share of positives in the training data
        (`prevalence` in a binary model's contract.json), of each class, of each finding, or the
        mean of the values.
      interval: of the values that it answers; None of other labels.
      cohort: `patients`, and of them how many are `positive`, of each of `classes` or have each of
        `labels`, or the values' `mean` and `sd`: those whom at least one member was trained on;
        {} unknown.
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
    calibration: Calibration | Temperatures
    prior: tuple[float, ...]
    cohort: Mapping[str, Any]
    training: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    covariates: tuple[str, ...] = ()
    interval: Interval | None = None

    def __post_init__(self) -> None:
        for name in ("modalities", "members", "training", "prior", "covariates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        unknown = [name for name in self.modalities if name not in self.schema.modalities]
        if unknown or not self.modalities:
            raise ContractError(
                f"modalities {shown(self.modalities)} must be some of "
                f"{shown(self.schema.modalities)}"
            )
        if not self.members:
            raise ContractError("members must not be empty")
        self._check_prior()
        known = [one.name for one in self.schema.covariates]
        if len(set(self.covariates)) != len(self.covariates) or set(self.covariates) - {*known}:
            raise ContractError(f"covariates {shown(self.covariates)}: some of {shown(known)}")
        if (self.interval is not None) != (self.target.task == "regression"):
            raise ContractError(f"interval: one of values required, of a {self.target.task} none")
        kind = Calibration if self.target.task == "binary" else Temperatures
        if not isinstance(self.calibration, kind):
            raise ContractError(f"calibration of a {self.target.task}: {kind.__name__} required")
        if self.ensemble not in ENSEMBLES:
            raise ContractError(f"ensemble {self.ensemble!r} found, one of {ENSEMBLES} required")

    def _check_prior(self) -> None:
        name = "prevalence" if self.target.task == "binary" else "prior"
        if len(self.prior) != self.target.outputs:
            raise ContractError(f"{name}: {len(self.prior)} found, {self.target.outputs} required")
        shares = self.target.task != "regression"
        fits = (0 <= one <= 1 if shares else math.isfinite(one) for one in self.prior)
        if not all(fits):
            between = "between 0 and 1" if shares else "finite"
            raise ContractError(f"{name} must be {between}: {shown(self.prior)}")

    @property
    def target(self) -> Target:
        """What it predicts."""
        return self.schema.target

    @property
    def known_covariates(self) -> tuple[Covariate, ...]:
        """`covariates` with what the schema says of each."""
        named = {one.name: one for one in self.schema.covariates}
        return tuple(named[name] for name in self.covariates)

    @property
    def covariate_places(self) -> tuple[int, ...]:
        """Indices of `covariates` among the schema's."""
        names = [one.name for one in self.schema.covariates]
        return tuple(names.index(name) for name in self.covariates)

    @property
    def volumes(self) -> RecordSchema:
        """What the schema says of volumes alone: that of records that hold nothing else."""
        return dataclasses.replace(self.schema, target=PLAIN, covariates=())

    def taken(self, case: PreparedCase) -> PreparedCase:
        """A case of the schema, with the covariates that the networks take alone."""
        chosen = tuple(case.covariates[place] for place in self.covariate_places)
        return dataclasses.replace(case, covariates=chosen)

    @property
    def channels(self) -> tuple[int, ...]:
        """Indices of `modalities` among the schema's channels."""
        return tuple(self.schema.modalities.index(name) for name in self.modalities)

    def require(self, schema: RecordSchema, *, model: str, records: str) -> None:
        """Refuses records whose volumes are not as those the model was trained on, by field.

        What their labels say is nothing to a prediction.

        Args:
          schema: of the records.
          model: the model's path, for the message.
          records: what to call the records ("dataset demo/dataset").

        Raises:
          ContractError: at least one field differs.
        """
        found = dataclasses.replace(schema, target=PLAIN, covariates=())
        self.volumes.require_equal(found, ours=f"model {model}", theirs=records)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.target.task == "binary":
            data["prevalence"] = data.pop("prior")[0]
        if self.interval is None:
            del data["interval"]
        else:
            data["interval"] = self.interval.to_json()
        if not self.schema.covariates:
            del data["covariates"]
        return {
            "format": FORMAT,
            **data,
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
        data = {"sha256": {}, **data}
        if missing := [name for name in _KINDS if name not in data]:
            raise ContractError(f"contract lacks {', '.join(missing)}")
        require_kinds(data, _KINDS)
        for name in ("versions", "sha256"):
            require_kinds(data[name], dict.fromkeys(data[name], str), where=f"{name}.")
        schema = RecordSchema.from_json(data["schema"])
        schema.require_recipe(data["spec"])
        target = schema.target
        require_kinds(data, _BINARY if target.task == "binary" else _OTHERS)
        if schema.covariates:
            require_kinds(data, {"covariates": ListOf(str)})
        _require_cohort(data["cohort"], target)
        calibration: Calibration | Temperatures
        if target.task == "binary":
            calibration, prior = Calibration.from_json(data["calibration"]), [data["prevalence"]]
        else:
            calibration = Temperatures.from_json(data["calibration"], target)
            prior = data["prior"]
        interval = None
        if target.task == "regression":
            require_kinds(data, {"interval": dict})
            interval = Interval.from_json(data["interval"])
        return cls(
            **{name: data[name] for name in _AS_THEY_ARE},
            schema=schema,
            covariates=tuple(data.get("covariates", ())),
            calibration=calibration,
            prior=tuple(map(float, prior)),
            interval=interval,
        )

    def dumps(self) -> str:
        """The text of contract.json."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"


def _require_cohort(cohort: Mapping[str, Any], target: Target) -> None:
    """Refuses counts that no cohort of this target can have.

    Raises:
      ContractError: names the member.
    """
    kinds: dict[str, Kind] = {name: Within(int, 0) for name in cohort}
    if target.task == "regression":
        kinds |= {name: Within(float, -math.inf) for name in ("mean", "sd") if name in cohort}
    elif target.task != "binary":
        kinds |= {name: dict for name in _BY_NAME if name in cohort}
    require_kinds(cohort, kinds, where="cohort.")
    for name, kind in kinds.items():
        if kind is dict:
            counts = dict.fromkeys(target.names, Within(int, 0))
            require_kinds(cohort[name], counts, where=f"cohort.{name}.")


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
