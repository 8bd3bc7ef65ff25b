"""A baseline's settings and its directory: what was requested, and what the forests gave."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, Kind, ListOf, Within, require_kinds, shown
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import write_json
from trainer.config.run import MOST
from trainer.config.run_layout import OOF_COLUMNS, OOF_NAME
from trainer.forest.model import FoldForest, forest_metrics
from trainer.forest.table import FeatureTable
from trainer.metrics import stored
from trainer.metrics.logits import sigmoid
from trainer.training.claim import differences, marker_of

FORMAT = "voxelbeam-baseline"
BASELINE_NAME = "baseline.json"
IMPORTANCE_NAME = "feature_importance.csv"
_UNFINISHED = "unfinished"

# What the summary of a finished one is printed from.
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("config", "metrics"), dict),
    **{"dataset_fingerprint": str, "features": Within(int, 1, stored.MOST)},
    **{"top_features": ListOf(str), "wall_seconds": Within(float, 0, stored.MOST)},
}
_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What is requested of a baseline.

    Attributes:
      modalities: whose features are used; None takes all of the dataset's.
      trees: of each forest.
      repeats: forests a fold, of seeds `seed`, `seed + 1`, ...
      seed: of forests, label permutation and importance.
      permute_labels: shuffle the labels among the patients of each fold, as trainer.task does.

    Raises:
      UsageError: a value that no run can have.
    """

    modalities: tuple[str, ...] | None = None
    trees: int = 500
    repeats: int = 1
    seed: int = 0
    permute_labels: bool = False

    def __post_init__(self) -> None:
        for name in ("trees", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1: {getattr(self, name)}")
            if getattr(self, name) > MOST:
                raise UsageError(f"--{name} must be at most {MOST}: {getattr(self, name)}")
        if not 0 <= self.seed <= 2**31 - self.repeats:
            raise UsageError(f"--seed must lie in 0 .. 2**31 - --repeats: {self.seed}")
        if self.modalities is not None:
            object.__setattr__(self, "modalities", tuple(self.modalities))
            if not self.modalities or len(set(self.modalities)) != len(self.modalities):
                raise UsageError(f"--modalities must be distinct: {' '.join(self.modalities)}")

    def resolve(self, available: tuple[str, ...]) -> BaselineConfig:
        """The config with its modalities named, checked against those of a dataset.

        Raises:
          UsageError: a modality that the dataset does not hold.
        """
        chosen = self.modalities or available
        if unknown := [name for name in chosen if name not in available]:
            raise UsageError(
                f"unknown modality {', '.join(unknown)}; the dataset has {', '.join(available)}"
            )
        return dataclasses.replace(self, modalities=chosen)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        modalities = None if self.modalities is None else list(self.modalities)
        return {**dataclasses.asdict(self), "modalities": modalities}


def claim(
    directory: files.StrPath, request: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """Takes a directory for a baseline; nothing is written there before the work is done.

    Returns:
      The finished baseline.json of the same request, None where there is work to do.

    Raises:
      UsageError: the directory holds something that is not a baseline, or cannot be written to.
      ContractError: it holds a baseline of another request; the message names what differs.
    """
    there = marker_of(directory, BASELINE_NAME, kind="baseline")
    if there is None:
        if not files.is_remote(directory):  # where it cannot be made, it is better known now
            Path(directory).mkdir(parents=True, exist_ok=True)
        return None
    file = files.join(directory, BASELINE_NAME)
    if there.get("format") != FORMAT:
        raise ContractError(f"{file}: format {shown(there.get('format'))}, {FORMAT!r} required")
    if overwrite or there.get(_UNFINISHED) is True:
        return None
    try:
        require_kinds(there, _KINDS)
        require_kinds(there["config"], {"trees": int}, where="config.")
        if "no_claim" not in there["metrics"]:
            raise ContractError("of a version before 0.3; --overwrite makes it again")
        stored.require_metrics(there["metrics"], where="metrics.")
    except ContractError as error:
        raise ContractError(f"{file}: {error}") from error
    before, requested = (
        {**side["config"], "dataset_fingerprint": side["dataset_fingerprint"]}
        for side in (there, request)
    )
    if differing := differences(before, requested):
        raise ContractError(
            f"{directory} holds another baseline ({differing}); --overwrite replaces it"
        )
    return there


def write_baseline(
    directory: files.StrPath,
    request: Mapping[str, Any],
    table: FeatureTable,
    truth: npt.NDArray[np.int64],
    held_out: Sequence[FoldForest],
    started: float,
) -> dict[str, Any]:
    """Writes the three files, baseline.json last; returns its object.

    At first it says that it is unfinished: where the others fail, the directory is still ours.
    """
    claim_of_it = {"format": FORMAT, **request, _UNFINISHED: True}
    write_json(files.join(directory, BASELINE_NAME), claim_of_it)
    no_claim = ("permuted",) if request["config"]["permute_labels"] else ()
    chosen = ("", "none", "+".join(no_claim))  # no epoch, and no choice of one
    rows = [
        (table.patient_ids[row], truth[row], result.fold, result.seed, logit, probability, *chosen)
        for result in held_out
        for row, logit, probability in zip(
            result.rows, result.logits.tolist(), sigmoid(result.logits).tolist(), strict=True
        )
    ]
    write_table(files.join(directory, OOF_NAME), OOF_COLUMNS, rows)
    lost, gained = (
        np.concatenate([getattr(result, name) for result in held_out], axis=1)
        for name in ("auc_lost", "loss_gained")
    )
    mean = lost.mean(axis=1)
    order = np.lexsort((-gained.mean(axis=1), -mean))
    write_table(
        files.join(directory, IMPORTANCE_NAME),
        ("feature", "auc_lost", "deviation", "log_loss_gained"),
        zip(
            [table.names[at] for at in order],
            mean[order].tolist(),
            lost.std(axis=1)[order].tolist(),
            gained.mean(axis=1)[order].tolist(),
            strict=True,
        ),
    )
    done = {
        "format": FORMAT,
        **request,
        "metrics": forest_metrics(truth, held_out, no_claim=no_claim),
        "features": len(table.names),
        "top_features": [table.names[at] for at in order[:_SHOWN]],
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("scikit-learn", "numpy")},
            "scipy": importlib.metadata.version("scipy"),
        },
        "wall_seconds": round(time.perf_counter() - started, 3),
    }
    write_json(files.join(directory, BASELINE_NAME), done)
    return done
