"""A SavedModel of ours, loaded with its contract: it answers records and volumes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.example import decode_case
from beam_jobs.core.record import PreparedCase, RecordSchema
from serving.model.answers import OUTPUTS, Prediction, number_columns
from serving.model.contract import SIGNATURES
from serving.model.graph_ops import require_known_ops
from serving.model.integrity import Checked, check_model


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
        cases = [decode_case(example, self.contract.schema) for example in examples]
        return self.answer([self.contract.taken(case) for case in cases])

    def answer(self, cases: Sequence[PreparedCase]) -> list[Prediction]:
        """The same for cases that hold what the model takes: see `Contract.taken`."""
        if not cases:
            return []
        contract = self.contract
        known = np.array([case.covariates for case in cases], np.float32)
        # Not `serving_default`: the members' own answers come with volumes alone.
        answer = self.outputs(
            np.stack([case.volume for case in cases]),
            known.reshape(len(cases), len(contract.covariates)),
        )
        names = number_columns(contract.target)
        rows = zip(*(column.tolist() for column in _columns(answer)), strict=True)
        return [
            Prediction(
                patient_id=case.patient_id,
                values=dict(zip(names, row, strict=True)),
                missing=(
                    *(
                        contract.schema.modalities[channel]
                        for channel in contract.channels
                        if not case.present[channel]
                    ),
                    *(
                        name
                        for name, value in zip(contract.covariates, case.covariates, strict=True)
                        if math.isnan(value)
                    ),
                ),
            )
            for case, row in zip(cases, rows, strict=True)
        ]

    def outputs(
        self, volumes: npt.NDArray[Any], covariates: npt.NDArray[np.float32] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """What the signature `volumes` gives, by name, for stored volumes with all channels.

        Args:
          volumes: (batch, row, column, slice, channel) in the schema's dtype.
          covariates: (batch, covariates) the contract's, NaN unknown, where it has some.
        """
        import tensorflow as tf

        inputs = {"volumes": tf.constant(volumes)}
        if self.contract.covariates:
            inputs["covariates"] = tf.constant(covariates)
        return {name: value.numpy() for name, value in self._volumes(**inputs).items()}

    def predict_volumes(
        self, volumes: npt.NDArray[Any], covariates: npt.NDArray[np.float32] | None = None
    ) -> tuple[npt.NDArray[np.float32], ...]:
        """`outputs` that are numbers: of a binary model probability, logit, member_probability.

        Of classes and findings these are probabilities, logits and member_probabilities, of values
        value, low, high and member_value.
        """
        answer = self.outputs(volumes, covariates)
        return tuple(answer[name] for name in OUTPUTS[self.contract.target.task])


def _columns(answer: Mapping[str, npt.NDArray[Any]]) -> Iterator[npt.NDArray[np.float32]]:
    """The columns (batch,) of `number_columns`, of a signature's outputs."""
    members = next(value for name, value in answer.items() if name.startswith("member_"))
    spread = members.std(axis=1, dtype=np.float64).astype(np.float32)
    for name in ("probability", "probabilities", "logit", "logits", "value", "low", "high"):
        if name in answer:
            yield from np.atleast_2d(answer[name].T)
    yield from np.atleast_2d(spread.T)


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
