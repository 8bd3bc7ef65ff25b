"""What training one fold gives, and the file that says the fold is done. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    Within,
    json_object,
    require_kinds,
    require_known,
    require_that,
)
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import write_json
from beam_jobs.core.cohort.target import PLAIN, Label, Target
from trainer.config.run_layout import FOLD_RESULT_NAME
from trainer.data.targets import labels_in, truth_of
from trainer.metrics.stored import MOST
from trainer.metrics.tasks.measure import measure_of

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("fold", "seed"), Within(int, 0, MOST)),
    "epochs": ListOf(Within(int, 1, MOST), least=1),
    **dict.fromkeys(("optimistic", "held_out"), dict),
    **dict.fromkeys(("step_seconds", "seconds"), Within(float, 0, MOST)),
    "input_wait": Within(float, 0, 1),
}
_HELD_OUT: dict[str, Kind] = {
    **{"patient_ids": ListOf(str, least=1), "labels": list},
    "logits": ListOf(list),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutLogits:
    """The held-out patients, in one order for all arrays.

    Attributes:
      patient_ids: as in the records.
      labels: as `data.targets.truth_of` has them, of a binary 0 or 1, (n,); permuted ones where
        the run permutes them.
      logits: answers of the candidate epochs' networks, read back from their files: logits of a
        binary or values of a regression, (candidates, n); of others (candidates, n, outputs).
    """

    patient_ids: tuple[str, ...]
    labels: npt.NDArray[Any]
    logits: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What training one fold gave.

    Attributes:
      fold: the fold held out.
      seed: of this member.
      epochs: the candidates, from 1: one of them is kept.
      optimistic: `epoch` and `auc` (or `score`, see `Measure.key`) of the epoch that is best on
        these very patients.
      step_seconds: median over epochs, the first (tracing) left out where there are more.
      input_wait: share of the training time spent waiting for a batch, median likewise.
      seconds: spent on this fold, over all starts.
      held_out: predictions for the fold.
    """

    fold: int
    seed: int
    epochs: tuple[int, ...]
    optimistic: Mapping[str, Any]
    step_seconds: float
    input_wait: float
    seconds: float
    held_out: HeldOutLogits

    def at(self, place: int) -> FoldResult:
        """This result with one of its candidates alone."""
        logits = self.held_out.logits[[place]]
        return dataclasses.replace(
            self,
            epochs=(self.epochs[place],),
            held_out=dataclasses.replace(self.held_out, logits=logits),
        )

    def save(self, directory: Path, target: Target = PLAIN) -> None:
        """Writes result.json; floats come back bit for bit."""
        data = dataclasses.asdict(self)
        data["held_out"] = {
            "patient_ids": list(self.held_out.patient_ids),
            "labels": [
                target.label_to_json(one) for one in labels_in(target, self.held_out.labels)
            ],
            "logits": self.held_out.logits.tolist(),
        }
        write_json(directory / FOLD_RESULT_NAME, data)

    @classmethod
    def load(cls, directory: files.StrPath, target: Target = PLAIN) -> FoldResult | None:
        """Reads result.json; None where the fold is not done.

        Raises:
          ContractError: it is not a fold's result; the message names the member.
        """
        file = files.join(directory, FOLD_RESULT_NAME)
        try:
            data = json_object(files.read(file))
            labels = _require_result(data, target)
        except FileNotFoundError:
            return None
        except ContractError as error:
            raise ContractError(f"{file}: {error}; delete it to train the fold again") from error
        held_out = data.pop("held_out")
        return cls(
            **{**data, "epochs": tuple(data["epochs"])},
            held_out=HeldOutLogits(
                patient_ids=tuple(held_out["patient_ids"]),
                labels=truth_of(target, labels),
                logits=np.array(held_out["logits"], np.float64),
            ),
        )


def _require_result(data: Mapping[str, Any], target: Target) -> list[Label | None]:
    """Refuses what `FoldResult.save` would not have written; returns the labels."""
    require_kinds(data, _KINDS)
    require_known(data, _KINDS)
    measure = measure_of(target)
    optimistic: dict[str, Kind] = {
        **{"epoch": Within(int, 1, MOST), measure.key: Within(float, measure.least, 1)}
    }
    require_kinds(data["optimistic"], optimistic, where="optimistic.")
    held_out, where = data["held_out"], "held_out."
    require_kinds(held_out, _HELD_OUT, where=where)
    patients = len(held_out["patient_ids"])
    labels = [target.label_of_json(one, where=where) for one in held_out["labels"]]
    require_that(None not in labels, held_out, "labels", "a label of each patient", where=where)
    fits = len(labels) == patients
    require_that(fits, held_out, "labels", f"one of each of {patients} patients", where=where)
    fits = len(held_out["logits"]) == len(data["epochs"])
    require_that(fits, held_out, "logits", "a list of each of the epochs", where=where)
    for place, logits in enumerate(held_out["logits"]):
        name = f"logits[{place}]"
        several = target.task in ("multiclass", "multilabel")
        require_kinds({name: logits}, {name: ListOf(list if several else float)}, where=where)
        fits = len(logits) == patients
        required = f"one of each of {patients} patients"
        require_that(fits, {name: logits}, name, required, where=where)
        for row in logits if several else ():
            require_kinds({name: row}, {name: ListOf(float)}, where=where)
            required = f"{target.outputs} of each patient"
            require_that(len(row) == target.outputs, {name: row}, name, required, where=where)
    return labels
