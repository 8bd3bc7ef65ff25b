"""What a killed fold resumes from: one file, written after each epoch, whole or not at all.

The best epoch's network is written before the state that names it, and keeps that name until it has
its final one, so that at any moment state, history and kept network can be of the same epoch:

    .best-7.keras  →  state.npz (best epoch 7)  →  best.keras  →  .best-7.keras goes

Where the directories are mirrors of a store's, each arrow is a push: what a kill leaves there is
one of these moments too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError
from trainer.config.run_layout import BEST_NETWORK_NAME, FOLD_STATE_NAME

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(kw_only=True)
class FoldState:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where one fold's state and networks lie.

    Attributes:
      directory: of the networks.
      state_directory: of the state.
      request: identifies this run, should another find its state.
      push: brings a store up to what lies in both; nothing to do on a disk.
    """

    directory: Path
    state_directory: Path
    request: str
    push: Callable[[], None]

    def save(
        self, state: FoldState, arrays: Sequence[npt.NDArray[Any]], network: keras.Model
    ) -> None:
        """Takes an epoch in.

        Args:
          state: after the epoch.
          arrays: `Trainee.state()`.
          network: of the epoch; kept where it is the best so far.
        """
        if state.epoch == state.best_epoch:
            network.save(_candidate(self.directory, state.epoch))
        save_state(self.state_directory, state, arrays, request=self.request)
        self.push()
        self.settle(state.best_epoch)

    def load(self) -> tuple[FoldState, list[npt.NDArray[Any]]] | None:
        """What was saved last, its best network under its name; None at first."""
        found = load_state(self.state_directory, request=self.request)
        self.settle(found[0].best_epoch if found else 0)
        return found

    def settle(self, best_epoch: int) -> None:
        """Gives the best epoch's network its name, and removes those that no state refers to."""
        candidate = _candidate(self.directory, best_epoch)
        if candidate.is_file():
            temporary = candidate.with_name(f".{BEST_NETWORK_NAME}")
            shutil.copyfile(candidate, temporary)
            temporary.replace(self.directory / BEST_NETWORK_NAME)
            self.push()
        for other in self.directory.glob(f".best-*{Path(BEST_NETWORK_NAME).suffix}"):
            other.unlink()

    def discard(self) -> None:
        """Removes the state of a fold that is done."""
        (self.state_directory / FOLD_STATE_NAME).unlink(missing_ok=True)


def save_state(
    directory: Path, state: FoldState, arrays: Sequence[npt.NDArray[Any]], *, request: str
) -> None:
    """Writes a state; `load_state` says what the arguments are."""
    text = json.dumps({**dataclasses.asdict(state), "request": request})
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


def load_state(directory: Path, *, request: str) -> tuple[FoldState, list[npt.NDArray[Any]]] | None:
    """Reads what `save_state` wrote; None where there is nothing yet.

    Args:
      directory: of the state.
      request: of this run.

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
            state = FoldState(**data)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ContractError(
            f"{file}: not a readable state ({error}); --overwrite starts the run over"
        ) from error
    if written_for != request:
        raise ContractError(f"{file}: of another run; --overwrite starts the run over")
    return state, arrays


def _candidate(directory: Path, epoch: int) -> Path:
    return directory / f".best-{epoch}.keras"  # Keras wants the suffix
