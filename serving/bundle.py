"""A SavedModel with the contract it travels with: load both, refuse records that do not fit.

    MODEL/
      saved_model.pb, variables/, fingerprint.pb    loadable with TensorFlow alone
      assets/contract.json                          the fields of `Contract`
      assets/MODEL_CARD.md                          for people

Reading a contract costs no TensorFlow; only `load_bundle` does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from beam_jobs.core.manifest import json_object, objects_of, require_kinds
from beam_jobs.core.record import ContractError, RecordSchema

FORMAT = "voxelbeam-model"
CONTRACT_NAME = "assets/contract.json"
CARD_NAME = "assets/MODEL_CARD.md"
ENSEMBLE = "mean of logits"
SIGNATURES = ("serving_default", "volumes")
# What contract.json must hold, by type; the schema checks itself.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("schema", "spec", "versions"), dict),
    **dict.fromkeys(("temperature", "prevalence"), float),
    "modalities": list,
    "ensemble": str,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model takes, what it is made of and what it was measured to do.

    Attributes:
      schema: the record contract of the volumes it takes (all channels of a record).
      spec: the `PreprocessSpec` behind them, as JSON: the recipe from DICOM to such a volume.
      modalities: the channels the networks look at, in order; a subset of the schema's.
      members: one a network: run, model, fold, seed, best_epoch, val_auc, precision.
      ensemble: how the members' answers become one.
      temperature: the logit is divided by it; 1 is not calibrated.
      prevalence: share of positives in the training data; the answer where there is no image.
      training: one a run: name, dataset_fingerprint, metrics (out of fold).
      versions: of the libraries that exported it.
    """

    schema: RecordSchema
    spec: Mapping[str, Any]
    modalities: tuple[str, ...]
    members: tuple[Mapping[str, Any], ...]
    ensemble: str
    temperature: float
    prevalence: float
    training: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        object.__setattr__(self, "members", tuple(self.members))
        object.__setattr__(self, "training", tuple(self.training))
        unknown = [name for name in self.modalities if name not in self.schema.modalities]
        if unknown or not self.modalities:
            raise ContractError(
                f"modalities {list(self.modalities)} must be some of {list(self.schema.modalities)}"
            )
        if not self.members:
            raise ContractError("members must not be empty")
        if not 0 <= self.prevalence <= 1:
            raise ContractError(f"prevalence must be between 0 and 1: {self.prevalence}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ContractError(f"temperature must be a positive number: {self.temperature}")

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
            "spec_fingerprint": self.schema.spec_fingerprint,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Contract:
        """Reads `to_json`'s object.

        Raises:
          ContractError: not a model's contract, a field is missing, or it contradicts itself.
        """
        if data.get("format") != FORMAT:
            raise ContractError(f"format {data.get('format')!r} found, {FORMAT!r} required")
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in data]:
            raise ContractError(f"contract lacks {', '.join(missing)}")
        require_kinds(data, _KINDS)
        objects_of(data, "members")
        objects_of(data, "training")
        fields = {name: data[name] for name in names}
        try:
            return cls(**{**fields, "schema": RecordSchema.from_json(data["schema"])})
        except TypeError as error:
            raise ContractError(f"contract field malformed: {error}") from error

    def dumps(self) -> str:
        """The text of contract.json."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n"


class Prediction(NamedTuple):
    """One patient's answer.

    Attributes:
      patient_id: as in the record.
      probability: of the positive class, a float32's value.
      logit: the ensemble's, after the temperature; a float32's value.
    """

    patient_id: str
    probability: float
    logit: float


class Bundle:
    """A loaded model with its contract. Calls may come from several threads."""

    def __init__(self, path: str, contract: Contract, model: Any) -> None:
        self.path = path
        self.contract = contract
        self._model = model  # keeps the variables alive
        self._examples = model.signatures["serving_default"]
        self._volumes = model.signatures["volumes"]

    def require(self, schema: RecordSchema, *, records: str = "records") -> None:
        """Refuses records of another schema; see `Contract.require`."""
        self.contract.require(schema, model=self.path, records=records)

    def predict(self, examples: Sequence[bytes]) -> list[Prediction]:
        """Answers for serialized Examples, in their order.

        A patient's answer is the same to the last bit whoever else is in the batch.

        Raises:
          tensorflow.errors.InvalidArgumentError: an Example is not of this contract.
        """
        import tensorflow as tf

        answer = self._examples(examples=tf.constant(list(examples), tf.string))
        return [
            Prediction(patient_id.decode(), probability, logit)
            for patient_id, probability, logit in zip(
                answer["patient_id"].numpy().tolist(),
                answer["probability"].numpy().tolist(),
                answer["logit"].numpy().tolist(),
                strict=True,
            )
        ]

    def predict_volumes(
        self, volumes: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(probability, logit), each [batch] float32, for stored volumes with all channels.

        Args:
          volumes: (batch, row, column, slice, channel) in the schema's dtype.
        """
        import tensorflow as tf

        answer = self._volumes(volumes=tf.constant(volumes))
        return answer["probability"].numpy(), answer["logit"].numpy()


def load_contract(path: str | Path) -> Contract:
    """Reads a model's contract without loading the model.

    Raises:
      ContractError: there is none, or it is not one of ours; the message names the path.
    """
    file = f"{str(path).rstrip('/')}/{CONTRACT_NAME}"
    try:
        return Contract.from_json(json_object(_read_bytes(file)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ContractError(f"{path} is not a voxelbeam model: no {CONTRACT_NAME}") from error
    except ContractError as error:
        raise ContractError(f"{file}: {error}") from error


def load_bundle(path: str | Path) -> Bundle:
    """Loads a model that `serving.export` wrote.

    Raises:
      ContractError: no contract, a foreign one, or no SavedModel of ours beside it.
    """
    contract = load_contract(path)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its start-up chatter; errors still raise
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(path))
    except (OSError, tf.errors.OpError) as error:
        raise ContractError(f"{path}: the SavedModel does not load: {error}") from error
    if missing := [name for name in SIGNATURES if name not in model.signatures]:
        raise ContractError(f"{path}: the SavedModel lacks the signatures {', '.join(missing)}")
    return Bundle(str(path), contract, model)


def _read_bytes(file: str) -> bytes:
    if "://" not in file:
        return Path(file).read_bytes()
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(file, "rb") as stream:
            data: bytes = stream.read()
            return data
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(file) from error
