"""Turns training runs into one SavedModel: every member of every run, ensembled in the graph.

    serving_default   examples [batch] string (serialized tf.Examples)
                      -> patient_id [batch] string, probability, logit [batch] float32
    volumes           volumes [batch, row, column, slice, channel] in the stored dtype, all channels
                      -> probability, logit [batch], member_probability [batch, members] float32

The SavedModel loads with TensorFlow alone. It is verified against the Keras members before it
takes its name, so a MODEL that exists is a MODEL that answers as trained. Its calibration is fitted
on the runs' out-of-fold predictions, each row proven to be one (`serving.model.calibration`).
"""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m serving.export")

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.common import cli, terminal
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import own_json
from beam_jobs.common.named_file import read_named
from beam_jobs.core.drift import Statistics
from beam_jobs.core.manifest import Manifest, read_manifest
from serving.model.calibration import METHODS, Calibration, fit
from serving.model.cohort_statistics import STATISTICS_NAME, of_dataset
from serving.model.contract import CARD_NAME, CONTRACT_NAME, FORMAT, Contract
from serving.model.graph import in_float32
from serving.model.out_of_fold import ENSEMBLES, OutOfFold, out_of_fold, pooled
from serving.model.saved_model import Written, put_back, write_model
from serving.model.warmup import WARMUP_NAME
from trainer.config.run_layout import OOF_NAME
from trainer.metrics.wording import permutations_text, summary_line, verdict
from trainer.training.run_files import Run

PROG = "python -m serving.export"
# What `serving.model.contract` says of a model's files, and what TensorFlow calls its own.
_MODEL_FILE = re.compile(
    r"saved_model\.pb|fingerprint\.pb|variables/variables\.(?:index|data-[0-9]{5}-of-[0-9]{5})|"
    + "|".join(map(re.escape, (CARD_NAME, CONTRACT_NAME, STATISTICS_NAME, WARMUP_NAME)))
)


def main(argv: Sequence[str]) -> int:
    """Loads the runs, exports, prints what was made."""
    args = _parse(argv)
    files.require_writable(args.output)
    cli.require_utf8(args.output)
    put_back(args.output)
    _require_free(args.output, overwrite=args.overwrite)
    for path in args.runs:
        if not files.is_dir(path):
            raise cli.UsageError(f"--runs: {path} is not a directory")
    runs = [Run.load(path) for path in args.runs]
    _require_true_labels(runs)
    data = None if args.data is None else _dataset(args.data, runs)
    calibration = _calibrated(runs, data, args.ensemble, args.calibration)
    statistics = None
    if data is not None:
        statistics = of_dataset(args.data, data, _trained_folds(runs, range(data.folds)))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the graph is the same; verify on the CPU's arithmetic
    cli.quiet_tensorflow()
    contract = contract_of(
        runs, ensemble=args.ensemble, calibration=calibration, cohort=_cohort(runs, data)
    )
    written = export(runs, contract, args.output, statistics=statistics)
    terminal.row(
        "members",
        f"{len(contract.members)} (mean of {contract.ensemble}) on "
        f"{', '.join(contract.modalities)}; logits within {written.difference:.1g} of Keras",
    )
    terminal.row("calibration", _summary(calibration))
    terminal.row("model", f"{args.output}: sha256 {written.sha256}")
    return cli.EXIT_OK


def _require_true_labels(runs: Sequence[Run]) -> None:
    """Refuses runs whose labels were permuted: what they learnt is noise by design."""
    for run in runs:
        if "permuted" in run.no_claim:
            raise ContractError(
                f"run {run.directory} was trained on permuted labels (--permute_labels): its "
                "answers are noise by design and are not to be served"
            )


def _dataset(path: str, runs: Sequence[Run]) -> Manifest:
    """The manifest of `--data`, which every run must have been trained on.

    Raises:
      UsageError: no dataset there.
      ContractError: it is not the runs' dataset, or its manifest is damaged.
    """
    try:
        manifest = read_manifest(path)
    except cli.UsageError as error:
        raise cli.UsageError(f"--data: {error}") from error
    for run in runs:
        if run.dataset_fingerprint != manifest.dataset_fingerprint:
            raise ContractError(
                f"--data: dataset_fingerprint: {manifest.dataset_fingerprint[:12]} in {path}, "
                f"{run.dataset_fingerprint[:12]} in run {run.directory}"
            )
    return manifest


def _calibrated(
    runs: Sequence[Run], data: Manifest | None, ensemble: str, method: str | None
) -> Calibration:
    """The calibration, fitted on the runs' out-of-fold predictions.

    Raises:
      ContractError: a row that is not out of fold, or no file though `method` was requested.
    """
    if method == "none":
        return Calibration(why="--calibration none was requested")
    for name, run in zip(_names(runs), runs, strict=True):
        file = files.join(run.directory, OOF_NAME)
        if files.stat(file) is None:
            if method is not None:
                raise ContractError(f"--calibration {method}: {file} is not there")
            return Calibration(why=f"run {name} has no {OOF_NAME}")
    return fit(_evidence(runs, data), ensemble, method)


def _evidence(runs: Sequence[Run], data: Manifest | None) -> OutOfFold:
    """The runs' out-of-fold predictions.

    Raises:
      ContractError: a row that is not out of fold.
    """
    folds = None
    if data is not None:
        folds = {name: fold for name, _, fold in data.patients if fold is not None}
    tables = []
    for run in runs:
        file = files.join(run.directory, OOF_NAME)
        members = {(member.fold, member.seed) for member in run.members}
        tables.append(out_of_fold(read_named(file), members, source=file, folds=folds))
    return pooled(tables)


def _trained_folds(runs: Sequence[Run], folds: Iterable[int]) -> set[int]:
    """The folds, of these, whose patients at least one member was trained on."""
    return {
        fold
        for run in runs
        for member in run.members
        for fold in folds
        if fold not in (member.fold, run.config.get("outer_fold"))
    }


def _cohort(runs: Sequence[Run], data: Manifest | None) -> dict[str, int]:
    """Size and balance of the patients that at least one member was trained on, where known."""
    if data is not None:
        folds = _trained_folds(runs, range(data.folds))
        labels = [label for _, label, fold in data.patients if fold in folds and label is not None]
        return {"patients": len(labels), "positive": sum(label == 1 for label in labels)}
    # Runs may share patients or not; that they share them all is sure of the same folds alone.
    left_out = {
        (
            run.dataset_fingerprint,
            frozenset.intersection(*(frozenset([member.fold]) for member in run.members)),
            run.config.get("outer_fold"),
        )
        for run in runs
    }
    return dict(runs[0].trained_on) if len(left_out) == 1 else {}


def _summary(calibration: Calibration) -> str:
    """One line on the calibration, for the terminal."""
    if calibration.method == "none":
        return f"none ({calibration.why})"
    measured = calibration.measured
    name = calibration.method
    if name == "temperature":
        name = f"temperature {calibration.temperature:.4g}"
    return (
        f"{name}; out-of-fold log loss {measured['before']['log_loss']:.4f} before, "
        f"{measured['after']['log_loss']:.4f} after (n = {measured['n']}: "
        f"{measured['positive']} positive){f'; {calibration.why}' if calibration.why else ''}"
    )


def contract_of(
    runs: Sequence[Run],
    *,
    ensemble: str = "logits",
    calibration: Calibration | None = None,
    cohort: Mapping[str, int] | None = None,
) -> Contract:
    """The contract of the model that `runs` make together; `cohort` as far as they know it.

    Raises:
      ContractError: runs that do not take the same volumes; the message names each field.
    """
    import keras
    import tensorflow as tf

    first = runs[0]
    for run in runs[1:]:
        _require_same_volumes(first, run)
    # pandas takes half a second to import
    from trainer.metrics.run_facts import decided

    names = _names(runs)
    metrics = [decided(run.metrics, run.directory) for run in runs]
    known = cohort if cohort is not None else _cohort(runs, None)
    return Contract(
        schema=first.schema,
        spec=dict(first.spec),
        modalities=first.modalities,
        members=tuple(
            {
                "run": name,
                "model": run.model,
                "precision": run.precision,
                "fold": member.fold,
                "seed": member.seed,
                "epoch": member.epoch,
                "epoch_choice": run.epoch_choice,
                "val_auc": member.val_auc,
            }
            for name, run in zip(names, runs, strict=True)
            for member in run.members
        ),
        ensemble=ensemble,
        calibration=calibration or Calibration(),
        prior=(
            known["positive"] / known["patients"]
            if known
            else float(np.mean([run.prevalence for run in runs])),
        ),
        cohort=dict(known),
        training=tuple(
            {
                "run": name,
                "dataset_fingerprint": run.dataset_fingerprint,
                "trained_on": dict(run.trained_on),
                "no_claim": list(run.no_claim),
                "metrics": measured,
                "said": _said(measured),
                **{name: list(made_of) for name, made_of in _made_of(run).items() if made_of},
            }
            for name, run, measured in zip(names, runs, metrics, strict=True)
        ),
        versions={"tensorflow": tf.__version__, "keras": keras.__version__},
    )


def _made_of(run: Run) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What a run names beside the package's own: a user's code, weights that it started from.

    Where the files of weights lay is nobody's business.
    """
    weights = [{**file, "file": files.name_of(file["file"])} for file in run.weights]
    return {"code": run.code, "weights": weights}


def _said(metrics: Mapping[str, Any]) -> str:
    """What a run's metrics allow one to say, for the card."""
    retrained = f" {permutations_text(metrics)}" if metrics["permutations"] else ""
    return f"{summary_line(metrics)}. {verdict(metrics)}{retrained}"


def export(
    runs: Sequence[Run],
    contract: Contract,
    output: files.StrPath,
    *,
    statistics: Statistics | None = None,
) -> Written:
    """Writes the model to `output`, which it replaces; whole and verified, or not at all.

    Raises:
      ContractError: a member is missing or unreadable, or the export answers otherwise than Keras.
    """
    places = [(run, index) for run in runs for index in range(len(run.members))]
    members = [
        run.load_member(index)
        if run.has_own_code  # which is in float32 already, and cannot be cloned
        else in_float32(run.load_member(index), run.precision)
        for run, index in terminal.track(places, "loading members", len(places))
    ]
    return write_model(members, contract, output, statistics=statistics)


def _require_free(output: str, *, overwrite: bool) -> None:
    """Refuses to write over anything but, when requested, a model or an empty directory.

    A model that somebody put a file of their own into would be replaced with that file.
    """
    if not files.exists(output):
        return
    if not overwrite:
        raise cli.UsageError(f"{output} exists (--overwrite replaces it)")
    # A directory of a store is what lies below it: never empty.
    local = not files.is_remote(output) and Path(output).is_dir()
    empty = local and not any(Path(output).iterdir())
    if not empty and own_json(files.join(output, CONTRACT_NAME), FORMAT) is None:
        raise cli.UsageError(f"{output} is not a model: it will not be replaced")
    foreign = [name for name in files.tree(output) if not _MODEL_FILE.fullmatch(name)]
    if foreign:
        raise cli.UsageError(
            f"{output} holds {shown(foreign[0])}, which is no file of a model: "
            "it will not be replaced"
        )


def _require_same_volumes(first: Run, other: Run) -> None:
    ours, theirs = f"run {first.directory}", f"run {other.directory}"
    if first.spec != other.spec:
        fields = sorted(
            key for key in {*first.spec, *other.spec} if first.spec.get(key) != other.spec.get(key)
        )
        differing = "; ".join(
            f"spec.{key}: {first.spec.get(key)!r} in {ours}, {other.spec.get(key)!r} in {theirs}"
            for key in fields
        )
        raise ContractError(f"runs do not fit: {differing}")
    first.schema.require_equal(other.schema, ours=ours, theirs=theirs)
    if first.modalities != other.modalities:
        raise ContractError(
            f"runs do not fit: modalities: {list(first.modalities)} in {ours}, "
            f"{list(other.modalities)} in {theirs}"
        )


def _names(runs: Sequence[Run]) -> list[str]:
    """What a model calls its runs: their places, from 1; where they lay is nobody's business."""
    return [str(number) for number in range(1, len(runs) + 1)]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=PROG,
        description="Turns training runs into one verified SavedModel with its contract and card.",
        examples=(
            f"  {PROG} --runs run --output model\n"
            f"  {PROG} --runs run-seed0 run-seed1 --output model --overwrite\n"
            f"  {PROG} --runs run --data dataset --output model --ensemble probabilities"
        ),
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="RUN", help="training runs")
    parser.add_argument("--output", required=True, metavar="MODEL", help="directory to write")
    parser.add_argument(
        "--data",
        metavar="DATASET",
        help="the dataset the runs were trained on: its statistics go into the model, so that "
        "batch prediction can report how far its patients are from these",
    )
    parser.add_argument(
        "--ensemble", choices=ENSEMBLES, default="logits", help="what of the members is averaged"
    )
    parser.add_argument(
        "--calibration",
        choices=METHODS,
        help="fitted on the out-of-fold predictions (default: temperature where these are enough "
        "and it helps on patients it was not fitted on)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing MODEL once the new one stands"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main, PROG)
