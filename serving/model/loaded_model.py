"""A SavedModel of ours, loaded with its contract: it answers records and volumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.example import decode_case
from beam_jobs.core.record import PreparedCase, RecordSchema
from serving.model.contract import SIGNATURES
from serving.model.graph_ops import require_known_ops
from serving.model.integrity import Checked, check_model


class Prediction(NamedTuple):
    """One patient's answer.

    Attributes:
      patient_id: as in the record.
      probability: of the positive class, a float32's value.
      logit: the ensemble's, calibrated; a float32's value.
      spread: standard deviation of the members' calibrated probabilities; 0 of one member.
      missing: modalities that the model looks at and the patient does not have.
    """

    patient_id: str
    probability: float
    logit: float
    spread: float
    missing: tuple[str, ...]


class LoadedModel:
    """A loaded model with its contract and sha256. Calls may come from several threads."""

    def __init__(self, path: str, checked: Checked, model: Any) -> None:
        self.path = path
        self.contract = checked.contract
        self.sha256 = checked.sha256
        self._model = model  # keeps the variables alive
        self._volumes = model.signatures["volumes"]

    def require(self, schema: RecordSchema, *, records: str = "records") -> None:
        """Refuses records of another schema; see `Contract.require`."""
        self.contract.require(schema, model=self.path, records=records)

    def predict(self, examples: Sequence[bytes]) -> list[Prediction]:
        """Answers for serialized Examples, in their order.

        A patient's answer is the same to the last bit whoever else is in the batch.

        Raises:
          ContractError: an Example is not of this contract.
        """
        return self.answer([decode_case(example, self.contract.schema) for example in examples])

    def answer(self, cases: Sequence[PreparedCase]) -> list[Prediction]:
        """The same for cases that fit the contract's schema (`PreparedCase.check`)."""
        import tensorflow as tf

        if not cases:
            return []
        contract = self.contract
        # Not `serving_default`: the members' own probabilities come with volumes alone.
        answer = self._volumes(volumes=tf.constant(np.stack([case.volume for case in cases])))
        spread = answer["member_probability"].numpy().std(axis=1, dtype=np.float64)
        return [
            Prediction(
                patient_id=case.patient_id,
                probability=probability,
                logit=logit,
                spread=float(np.float32(deviation)),
                missing=tuple(
                    contract.schema.modalities[channel]
                    for channel in contract.channels
                    if not case.present[channel]
                ),
            )
            for case, probability, logit, deviation in zip(
                cases,
                answer["probability"].numpy().tolist(),
                answer["logit"].numpy().tolist(),
                spread,
                strict=True,
            )
        ]

    def predict_volumes(
        self, volumes: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(probability, logit, member_probability) for stored volumes with all channels.

        Args:
          volumes: (batch, row, column, slice, channel) in the schema's dtype.

        Returns:
          float32: [batch], [batch] and [batch, members].
        """
        import tensorflow as tf

        answer = self._volumes(volumes=tf.constant(volumes))
        return (
            answer["probability"].numpy(),
            answer["logit"].numpy(),
            answer["member_probability"].numpy(),
        )


def load_model(path: str | os.PathLike[str], *, name: str = "", sha256: str = "") -> LoadedModel:
    """Loads a model that `serving.export` wrote.

    Args:
      path: of its directory, on a disk (`files.fetched` brings it there).
      name: what to call it in messages; default `path`.
      sha256: of the only model that is loaded; "" loads any.

    Raises:
      ContractError: no contract, a foreign one, no SavedModel of ours beside it, one that was
        changed since its export or whose graph does more than compute, or another than `sha256`
        is of.
    """
    name = name or str(path)
    checked = check_model(path, name=name, sha256=sha256)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its start-up chatter; errors still raise
    import tensorflow as tf

    try:
        require_known_ops(Path(path), name=name)
        model = tf.saved_model.load(str(path))
    except (OSError, tf.errors.OpError) as error:
        raise ContractError(f"{name}: the SavedModel does not load: {error}") from error
    if missing := [signature for signature in SIGNATURES if signature not in model.signatures]:
        raise ContractError(f"{name}: the SavedModel lacks the signatures {', '.join(missing)}")
    return LoadedModel(name, checked, model)
