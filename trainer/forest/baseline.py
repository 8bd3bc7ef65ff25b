"""A baseline's settings and its directory: what was requested, and what its models gave."""

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
from beam_jobs.core.cohort.patient_column import names_among
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.record import RecordSchema
from trainer.config.run import MOST
from trainer.config.run_layout import OOF_NAME
from trainer.forest.model import FoldModel, forest_metrics
from trainer.forest.table import FeatureTable
from trainer.metrics import stored
from trainer.metrics.tasks.measure import measure_of
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows
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
_OF_FORESTS = ("modalities", "trees", "repeats")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What is requested of a baseline.

    Attributes:
      modalities: whose features are used; None takes all of the dataset's.
      trees: of each forest.
      repeats: forests a fold, of seeds `seed`, `seed + 1`, ...
      seed: of forests, label permutation and importance.
      permute_labels: shuffle the labels among the patients of each fold, as trainer.task does.
      covariates: names of those that are features too; None takes all of the dataset's.
      covariates_only: a logistic or ridge regression of them, no forest and no image.

    Raises:
      UsageError: a value that no run can have.
    """

    modalities: tuple[str, ...] | None = None
    trees: int = 500
    repeats: int = 1
    seed: int = 0
    permute_labels: bool = False
    covariates: tuple[str, ...] | None = None
    covariates_only: bool = False

    def __post_init__(self) -> None:
        for name in ("trees", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1: {getattr(self, name)}")
            if getattr(self, name) > MOST:
                raise UsageError(f"--{name} must be at most {MOST}: {getattr(self, name)}")
        if not 0 <= self.seed <= 2**31 - self.repeats:
            raise UsageError(f"--seed must lie in 0 .. 2**31 - --repeats: {self.seed}")
        for name in ("modalities", "covariates"):
            names = getattr(self, name)
            if names is not None:
                object.__setattr__(self, name, tuple(names))
                if (name == "modalities" and not names) or len(set(names)) != len(names):
                    raise UsageError(f"--{name} must be distinct: {' '.join(names)}")
        if self.covariates_only:
            plain = BaselineConfig()
            for name in _OF_FORESTS:
                if getattr(self, name) != getattr(plain, name):
                    raise UsageError(f"--{name} is of forests: not with --covariates_only")

    def resolve(self, schema: RecordSchema) -> BaselineConfig:
        """The config with its modalities and covariates named, checked against a dataset's.

        Raises:
          UsageError: one that the dataset does not hold, or no covariates where only they count.
        """
        chosen: dict[str, Any] = {}
        for name, what, available in (
            ("modalities", "modality", schema.modalities),
            ("covariates", "covariate", tuple(one.name for one in schema.covariates)),
        ):
            wanted = getattr(self, name)
            chosen[name] = available if wanted is None else names_among(wanted, available)
            if unknown := [one for one in chosen[name] if one not in available]:
                raise UsageError(
                    f"unknown {what} {', '.join(unknown)}; the dataset has "
                    f"{', '.join(available) or 'none'}"
                )
        if self.covariates_only:
            if not chosen["covariates"]:
                raise UsageError(
                    "--covariates_only: the dataset has no covariates, or none is chosen; convert "
                    "it with --covariates CSV"
                )
            del chosen["modalities"]
        return dataclasses.replace(self, **chosen)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; what is new in 0.8 stands there only where it says something."""
        data = dataclasses.asdict(self)
        for name in ("modalities", "covariates"):
            data[name] = None if data[name] is None else list(data[name])
        if not self.covariates_only:
            del data["covariates_only"]
        for name in _OF_FORESTS if self.covariates_only else ():
            del data[name]
        if not self.covariates:
            del data["covariates"]
        return data


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
        only = there["config"].get("covariates_only")
        kinds: dict[str, Kind] = {"covariates_only": bool} if only else {"trees": int}
        require_kinds(there["config"], kinds, where="config.")
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
    truth: npt.NDArray[Any],
    held_out: Sequence[FoldModel],
    started: float,
    target: Target = PLAIN,
) -> dict[str, Any]:
    """Writes the three files, baseline.json last; returns its object.

    At first it says that it is unfinished: where the others fail, the directory is still ours.
    """
    claim_of_it = {"format": FORMAT, **request, _UNFINISHED: True}
    write_json(files.join(directory, BASELINE_NAME), claim_of_it)
    no_claim = ("permuted",) if request["config"]["permute_labels"] else ()
    rows: list[tuple[Any, ...]] = []
    for result in held_out:
        rows += oof_rows(
            target,
            patient_ids=[table.patient_ids[row] for row in result.rows],
            truth=truth[result.rows],
            answers=result.answers,
            fold=result.fold,
            seed=result.seed,
            chosen=("", "none", "+".join(no_claim)),  # no epoch, and no choice of one
        )
    write_table(files.join(directory, OOF_NAME), oof_columns(target), rows)
    lost, gained = (
        np.concatenate([getattr(result, name) for result in held_out], axis=1)
        for name in ("score_lost", "loss_gained")
    )
    mean = lost.mean(axis=1)
    order = np.lexsort((-gained.mean(axis=1), -mean))
    loss = "absolute_error" if target.task == "regression" else "log_loss"
    write_table(
        files.join(directory, IMPORTANCE_NAME),
        ("feature", f"{measure_of(target).name}_lost", "deviation", f"{loss}_gained"),
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
        "metrics": forest_metrics(truth, held_out, target=target, no_claim=no_claim),
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
