"""A random forest on simple features, on the folds that networks are trained on: what to beat.

run/
  oof_predictions.csv      as trainer.task writes it: out of fold only
  feature_importance.csv   what shuffling a feature costs in AUC, on held-out folds
  baseline.json            what was asked, of which dataset, and how it scored; written last
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import EXIT_OK, LIST, Parser, UsageError, items, run
from beam_jobs.common.contract_json import ContractError, require_kinds
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.json_file import read_json, write_json
from beam_jobs.common.terminal import bar, row, say
from beam_jobs.core.manifest import Manifest, ShardEntry
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import decode_case, read_records
from trainer.config.run_layout import OOF_COLUMNS, OOF_NAME
from trainer.data.locations import join, read_bytes, read_manifest
from trainer.data.split import check_folds, folds_to_train, labels_of, permuted_labels
from trainer.forest.features import case_features, feature_names
from trainer.forest.model import Floats, HeldOut, Table, cross_validate, pooled_metrics
from trainer.metrics.ensemble import summary_rows
from trainer.metrics.roc_and_calibration import sigmoid
from trainer.metrics.wording import PERMUTED, verdict
from trainer.training.run_files import differences

PROG = "python -m trainer.baseline"
FORMAT = "voxelbeam-baseline"
BASELINE_NAME = "baseline.json"
IMPORTANCE_NAME = "feature_importance.csv"

# What the summary of a finished one is printed from.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("config", "metrics"), dict),
    **{"dataset_fingerprint": str, "features": int, "top_features": list, "wall_seconds": float},
}
_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What a baseline run is asked for.

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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="A random forest on intensity, texture and shape, on the dataset's folds.",
        examples=(
            f"  {PROG} --data dataset --output_dir forest\n"
            f"  {PROG} --data dataset --output_dir forest_t1 \\\n"
            "      --modalities T1wCE --repeats 5\n"
            f"  {PROG} --data dataset --output_dir null --permute_labels"
        ),
    )
    defaults = BaselineConfig()
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="dataset with a manifest.json")
    add("--output_dir", required=True, type=Path, metavar="RUN", help="directory of the run")
    add("--modalities", **LIST, help="whose features to use (default: all of the dataset's)")
    add("--trees", type=int, default=defaults.trees, metavar="N", help="of each forest")
    add(
        "--repeats",
        type=int,
        default=defaults.repeats,
        metavar="R",
        help="forests a fold, of seeds counted up from --seed",
    )
    add("--seed", type=int, default=defaults.seed, help="of forests and label permutation")
    add(
        "--permute_labels",
        action="store_true",
        help="shuffle the labels within each fold: the score where nothing can be learnt",
    )
    add("--overwrite", action="store_true", help="replace the baseline that lies in RUN")
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    config = BaselineConfig(
        modalities=None if args.modalities is None else items(args.modalities),
        trees=args.trees,
        repeats=args.repeats,
        seed=args.seed,
        permute_labels=args.permute_labels,
    )
    manifest = read_manifest(args.data)
    config = config.resolve(manifest.schema.modalities)
    folds_to_train(manifest, None)
    check_folds(manifest)
    request = {"config": config.to_json(), "dataset_fingerprint": manifest.dataset_fingerprint}
    if done := claim(args.output_dir, request, overwrite=args.overwrite):
        say(f"{args.output_dir} is this very baseline, finished already; --overwrite repeats it")
    else:
        started = time.perf_counter()
        table = read_table(args.data, manifest, config)
        labels = permuted_labels(manifest, config.seed) if config.permute_labels else None
        truth = table.labels_from(labels or labels_of(manifest))
        held_out = cross_validate(
            table, truth, trees=config.trees, seed=config.seed, repeats=config.repeats
        )
        done = _write(args.output_dir, request, table, truth, held_out, started)
    _print_summary(args.output_dir, done)
    return EXIT_OK


def claim(directory: Path, request: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Takes a directory for a baseline; nothing is written there before the work is done.

    Returns:
      The finished baseline.json of the same request, None where there is work to do.

    Raises:
      UsageError: the directory holds something that is not a baseline.
      ContractError: it holds a baseline of another request; the message names what differs.
    """
    file = directory / BASELINE_NAME
    if directory.exists() and not file.is_file():
        taken = not directory.is_dir() or any(
            not path.name.startswith(".") for path in directory.iterdir()
        )
        if taken:
            raise UsageError(
                f"{directory}: not empty and not a baseline; choose another --output_dir"
            )
    if file.is_file():
        there = read_json(file)
        if there.get("format") != FORMAT:
            raise ContractError(f"{file}: format {there.get('format')!r}, {FORMAT!r} required")
        if not overwrite:
            try:
                require_kinds(there, _KINDS)
            except ContractError as error:
                raise ContractError(f"{file}: {error}") from error
            _require_same(directory, there, request)
            return there
    directory.mkdir(parents=True, exist_ok=True)
    return None


def _require_same(directory: Path, there: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    here, asked = (
        {**side["config"], "dataset_fingerprint": side["dataset_fingerprint"]}
        for side in (there, request)
    )
    if differing := differences(here, asked):
        raise ContractError(
            f"{directory} holds another baseline ({differing}); --overwrite replaces it"
        )


def read_table(data: str, manifest: Manifest, config: BaselineConfig) -> Table:
    """Reads every labelled patient and measures its features.

    Args:
      data: the dataset's directory.
      manifest: the dataset's.
      config: resolved.

    Raises:
      ContractError: a shard or a record is not what the manifest says; the message names it.
    """
    assert config.modalities is not None
    channels = [manifest.schema.modalities.index(name) for name in config.modalities]
    entries = manifest.shards_of(range(manifest.folds))
    ids, folds, rows = [], [], []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        bar("features", sum(entry.count for entry in entries)) as step,
    ):
        for entry in entries:
            cases = _read_shard(join(data, entry.name), entry, manifest)
            measured = pool.map(lambda case: _measured(case, channels), cases)
            for case, features in zip(cases, measured, strict=True):
                ids.append(case.patient_id)
                folds.append(case.fold)
                rows.append(features)
                step()
    return Table(
        patient_ids=tuple(ids),
        folds=np.array(folds, dtype=np.int64),
        features=np.stack(rows),
        names=tuple(feature_names(config.modalities)),
    )


def _measured(case: PreparedCase, channels: Sequence[int]) -> Floats:
    return case_features(case.volume[..., channels], case.affine)


def _read_shard(path: str, entry: ShardEntry, manifest: Manifest) -> list[PreparedCase]:
    try:
        content = read_bytes(path)
    except FileNotFoundError as error:
        raise ContractError(f"{path}: the manifest lists this shard, it does not exist") from error
    if len(content) != entry.bytes:
        raise ContractError(f"{path}: {len(content)} bytes, the manifest says {entry.bytes}")
    try:
        cases = [decode_case(data, manifest.schema) for data in read_records(BytesIO(content))]
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    found = {(case.patient_id, case.label, case.fold) for case in cases}
    expected = {(patient.patient_id, patient.label, entry.fold) for patient in entry.patients}
    if found != expected or len(cases) != entry.count:
        odd = sorted({str(name) for name, _, _ in found ^ expected})
        raise ContractError(
            f"{path}: records and manifest differ in patients, labels or folds: "
            f"{', '.join(odd[:5]) or 'a patient stands twice'}"
        )
    if (digest := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise ContractError(f"{path}: sha256 {digest}, the manifest says {entry.sha256}")
    return cases


def _write(
    directory: Path,
    request: Mapping[str, Any],
    table: Table,
    truth: npt.NDArray[np.int64],
    held_out: Sequence[HeldOut],
    started: float,
) -> dict[str, Any]:
    """Writes the three files, baseline.json last; returns its object."""
    (directory / BASELINE_NAME).unlink(missing_ok=True)  # first: what is half gone is not finished
    rows = [
        (table.patient_ids[row], truth[row], result.fold, result.seed, logit, probability)
        for result in held_out
        for row, logit, probability in zip(
            result.rows, result.logits.tolist(), sigmoid(result.logits).tolist(), strict=True
        )
    ]
    write_table(directory / OOF_NAME, OOF_COLUMNS, rows)
    lost, gained = (
        np.concatenate([getattr(result, name) for result in held_out], axis=1)
        for name in ("auc_lost", "loss_gained")
    )
    mean = lost.mean(axis=1)
    order = np.lexsort((-gained.mean(axis=1), -mean))
    write_table(
        directory / IMPORTANCE_NAME,
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
        "metrics": pooled_metrics(truth, held_out),
        "features": len(table.names),
        "top_features": [table.names[at] for at in order[:_SHOWN]],
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("scikit-learn", "numpy")},
            "scipy": importlib.metadata.version("scipy"),
        },
        "wall_seconds": round(time.perf_counter() - started, 3),
    }
    write_json(directory / BASELINE_NAME, done)
    return done


def _print_summary(directory: Path, done: Mapping[str, Any]) -> None:
    metrics = done["metrics"]
    for name, text in summary_rows(metrics):
        row(name, text)
    row("verdict", verdict(metrics))
    if done["config"]["permute_labels"]:
        row("mind", PERMUTED)
    row("features", f"that mattered most: {', '.join(done['top_features'])}")
    row(
        "time",
        f"{done['wall_seconds']:.0f} s, {done['config']['trees']} trees on "
        f"{done['features']} features",
    )
    row("baseline", str(directory))


if __name__ == "__main__":
    run(main, PROG)
