"""What a killed run goes on from: one file a fold, written after each epoch, whole or not at all.

The best epoch's network is written before the state that names it and gets its name after, so that
at any moment the state, the history and the kept network speak of the same epoch:

    .best-7.keras  →  state.npz (best epoch 7)  →  best.keras
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from trainer.config.run_layout import BEST_NETWORK_NAME, FOLD_STATE_NAME

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(kw_only=True)
class Progress:
    """How far a fold's training has come.

    Attributes:
      epoch: epochs done.
      best_epoch: the one kept, from 1; 0 before the first.
      best: (AUC, -log loss) of it.
      history: rows of history.csv.
      seconds: spent so far, over all starts.
    """

    epoch: int = 0
    best_epoch: int = 0
    best: tuple[float, float] = (float("-inf"), float("-inf"))
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def stopped(self, *, epochs: int, patience: int) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= epochs or (
            self.best_epoch > 0 and self.epoch - self.best_epoch >= patience
        )


def save_state(
    directory: Path, progress: Progress, arrays: Sequence[npt.NDArray[Any]], *, request: str
) -> None:
    """Writes the state.

    Args:
      directory: of the fold.
      progress: after the epoch.
      arrays: `Trainee.state()`.
      request: tells this run from another, should the file be met by one.
    """
    text = json.dumps({**dataclasses.asdict(progress), "request": request})
    temporary = directory / f".{FOLD_STATE_NAME}"
    with temporary.open("wb") as stream:
        np.savez(
            stream,
            progress=np.frombuffer(text.encode(), np.uint8),
            **{f"array-{place}": array for place, array in enumerate(arrays)},
        )
        stream.flush()
        os.fsync(stream.fileno())  # a machine that goes down is a kill too
    temporary.replace(directory / FOLD_STATE_NAME)


def load_state(directory: Path, *, request: str) -> tuple[Progress, list[npt.NDArray[Any]]] | None:
    """Reads what `save_state` wrote; None where there is nothing yet.

    Raises:
      ContractError: the file is not readable, or another run's.
    """
    file = directory / FOLD_STATE_NAME
    if not file.is_file():
        return None
    try:
        # Opened here: NumPy leaves a file open that it cannot make out.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            data = json.loads(found["progress"].tobytes())
            arrays = [found[f"array-{place}"] for place in range(len(found.files) - 1)]
            written_for = data.pop("request")
            data["best"] = tuple(data["best"])
            progress = Progress(**data)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ContractError(
            f"{file}: not a readable state ({error}); --overwrite starts the run over"
        ) from error
    if written_for != request:
        raise ContractError(f"{file}: of another run; --overwrite starts the run over")
    return progress, arrays


def keep_best(directory: Path, network: keras.Model, epoch: int) -> None:
    """Writes the network of a new best epoch, not yet under its name."""
    network.save(_candidate(directory, epoch))


def settle_best(directory: Path, best_epoch: int) -> None:
    """Gives the best epoch's network its name, and removes those no state speaks of."""
    candidate = _candidate(directory, best_epoch)
    if candidate.is_file():
        candidate.replace(directory / BEST_NETWORK_NAME)
    for other in directory.glob(f".best-*{Path(BEST_NETWORK_NAME).suffix}"):
        other.unlink()


def _candidate(directory: Path, epoch: int) -> Path:
    return directory / f".best-{epoch}.keras"  # Keras wants the suffix
