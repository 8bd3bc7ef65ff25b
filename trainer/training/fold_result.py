"""What training one fold gives, and the file that says the fold is done. No TensorFlow."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json, write_json
from trainer.config.run_layout import FOLD_RESULT_NAME


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutLogits:
    """The held-out patients, in one order for all arrays (n,).

    Attributes:
      patient_ids: as in the records.
      labels: 0 or 1; permuted ones where the run permutes them.
      logits: of the best epoch's network, read back from its file.
      last_logits: of the last epoch's network: no epoch chosen on these very patients.
    """

    patient_ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    last_logits: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What training one fold gave.

    Attributes:
      fold: the fold held out.
      seed: of this member.
      path: of the kept network, relative to the run.
      best_epoch: from 1; its weights are in best.keras.
      epochs: trained until the early stop or the end.
      val_auc: of the best epoch.
      step_seconds: median over epochs, the first (tracing) left out where there are more.
      input_wait: share of the training time spent waiting for a batch, median likewise.
      seconds: spent on this fold, over all starts.
      held_out: predictions for the fold.
    """

    fold: int
    seed: int
    path: str
    best_epoch: int
    epochs: int
    val_auc: float
    step_seconds: float
    input_wait: float
    seconds: float
    held_out: HeldOutLogits

    def save(self, directory: Path) -> None:
        """Writes result.json; floats come back bit for bit."""
        data = dataclasses.asdict(self)
        for name, value in data["held_out"].items():
            data["held_out"][name] = list(value) if isinstance(value, tuple) else value.tolist()
        write_json(directory / FOLD_RESULT_NAME, data)

    @classmethod
    def load(cls, directory: files.StrPath) -> FoldResult | None:
        """Reads result.json; None where the fold is not done."""
        file = files.join(directory, FOLD_RESULT_NAME)
        try:
            data = read_json(file)
        except FileNotFoundError:
            return None
        try:
            held_out = data.pop("held_out")
            return cls(
                **data,
                held_out=HeldOutLogits(
                    patient_ids=tuple(held_out["patient_ids"]),
                    labels=np.array(held_out["labels"], np.int64),
                    logits=np.array(held_out["logits"], np.float64),
                    last_logits=np.array(held_out["last_logits"], np.float64),
                ),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ContractError(f"{file}: {error}; --overwrite starts the run over") from error
