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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.common import cli, terminal
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.common.named_file import read_named
from beam_jobs.common.printable import in_digits
from beam_jobs.core.drift import Statistics
from beam_jobs.core.manifest import Manifest, read_manifest
from serving.model.calibration import METHODS, Calibration, fit
from serving.model.cohort_statistics import of_dataset
from serving.model.contract import Contract
from serving.model.graph import in_float32
from serving.model.out_of_fold import ENSEMBLES, OutOfFold, out_of_fold, pooled
from serving.model.saved_model import Written, put_back, require_free, write_model
from serving.model.temperatures import (
    INTERVAL_LEVEL,
    Fitted,
    Interval,
    Temperatures,
    fit_temperatures,
    unfitted,
)
from trainer.config.run_layout import OOF_NAME
from trainer.data.trained_on import prior_of, trained_on
from trainer.metrics.wording import permutations_text, summary_line, verdict
from trainer.training.run_files import Run

PROG = "python -m serving.export"


def main(argv: Sequence[str]) -> int:
    """Loads the runs, exports, prints what was made."""
    args = _parse(argv)
    files.require_writable(args.output)
    cli.require_utf8(args.output)
    put_back(args.output)
    require_free(args.output, overwrite=args.overwrite)
    for path in args.runs:
        if not files.is_dir(path):
            raise cli.UsageError(f"--runs: {path} is not a directory")
    runs = [Run.load(path) for path in args.runs]
    _require_true_labels(runs)
    for run in runs[1:]:
        _require_alike(runs[0], run)
    data = None if args.data is None else _dataset(args.data, runs)
    fitted = _fitted(runs, data, args.ensemble, args.calibration)
    statistics = None
    if data is not None:
        statistics = of_dataset(args.data, data, _trained_folds(runs, range(data.folds)))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the graph is the same; verify on the CPU's arithmetic
    quiet_tensorflow()
    contract = contract_of(
        runs,
        ensemble=args.ensemble,
        calibration=fitted.calibration,
        interval=fitted.interval,
        cohort=_cohort(runs, data),
    )
    answers = "values" if contract.interval else "logits"
    averaged = "values" if contract.interval else contract.ensemble
    written = export(runs, contract, args.output, statistics=statistics)
    terminal.row(
        "members",
        f"{len(contract.members)} (mean of {averaged}) on "
        f"{', '.join((*contract.modalities, *contract.covariates))}; {answers} within "
        f"{in_digits(written.difference, 1)} of Keras",
    )
    terminal.row(*fitted.summary(contract.target))
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


def _fitted(
    runs: Sequence[Run], data: Manifest | None, ensemble: str, method: str | None
) -> Fitted:
    """The calibration, or of values their interval, of the runs' out-of-fold predictions.

    Raises:
      UsageError: a method that is none of these labels, or needs more predictions.
      ContractError: a row that is not out of fold, or no file though `method` was requested.
    """
    task = runs[0].target.task
    if task == "regression" and (method not in (None, "none") or ensemble != ENSEMBLES[0]):
        raise cli.UsageError(
            "values are averaged and have an interval: --calibration and --ensemble are for "
            "probabilities"
        )
    if method == "none" and task != "regression":
        return unfitted(task, "--calibration none was requested")
    for name, run in zip(_names(runs), runs, strict=True):
        file = files.join(run.directory, OOF_NAME)
        if files.stat(file) is None:
            if method not in (None, "none"):
                raise ContractError(f"--calibration {method}: {file} is not there")
            return unfitted(task, f"run {name} has no {OOF_NAME}")
    evidence = _evidence(runs, data)
    if task == "regression":
        from trainer.metrics.tasks.conformal import conformal_of

        values = evidence.ensembled(ensemble)
        found = conformal_of(evidence.labels, values, folds=evidence.folds, level=INTERVAL_LEVEL)
        too_few = str(found["too_few"]).rstrip(".")
        numbers = {name: found[name] for name in ("level", "half_width", "n", "coverage")}
        return Fitted(Temperatures(), Interval(**numbers, why=too_few))
    if task == "binary":
        return Fitted(fit(evidence, ensemble, method))
    return Fitted(fit_temperatures(evidence, ensemble, method))


def _evidence(runs: Sequence[Run], data: Manifest | None) -> OutOfFold:
    """The runs' out-of-fold predictions.

    Raises:
      ContractError: a row that is not out of fold.
    """
    target = runs[0].target
    folds = None
    if data is not None:
        folds = {name: fold for name, _, fold in data.patients if fold is not None}
    tables = []
    for run in runs:
        file = files.join(run.directory, OOF_NAME)
        members = {(member.fold, member.seed) for member in run.members}
        text = read_named(file)
        tables.append(out_of_fold(text, members, source=file, folds=folds, target=target))
    return pooled(tables, target)


def _trained_folds(runs: Sequence[Run], folds: Iterable[int]) -> set[int]:
    """The folds, of these, whose patients at least one member was trained on."""
    return {
        fold
        for run in runs
        for member in run.members
        for fold in folds
        if fold not in (member.fold, run.config.get("outer_fold"))
    }


def _cohort(runs: Sequence[Run], data: Manifest | None) -> dict[str, Any]:
    """Size and balance of the patients that at least one member was trained on, where known."""
    if data is not None:
        folds = _trained_folds(runs, range(data.folds))
        labels = [label for _, label, fold in data.patients if fold in folds and label is not None]
        return trained_on(data.schema.target, labels)
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


def contract_of(
    runs: Sequence[Run],
    *,
    ensemble: str = "logits",
    calibration: Calibration | Temperatures | None = None,
    interval: Interval | None = None,
    cohort: Mapping[str, Any] | None = None,
) -> Contract:
    """The contract of the model that `runs` make together; `cohort` as far as they know it.

    Raises:
      ContractError: runs that do not take the same volumes; the message names each field.
    """
    import keras
    import tensorflow as tf

    first = runs[0]
    for run in runs[1:]:
        _require_alike(first, run)
    # pandas takes half a second to import
    from trainer.metrics.run_facts import decided

    names = _names(runs)
    metrics = [decided(run.metrics, run.directory) for run in runs]
    known = cohort if cohort is not None else _cohort(runs, None)
    target = first.target
    neither = unfitted(target.task, "")
    score = "val_auc" if target.task == "binary" else "val_score"
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
                score: member.score,
            }
            for name, run in zip(names, runs, strict=True)
            for member in run.members
        ),
        ensemble=ensemble,
        covariates=tuple(one.name for one in first.covariates),
        calibration=calibration or neither.calibration,
        interval=interval or neither.interval,
        prior=(
            prior_of(target, known)
            if known
            else tuple(float(np.mean(of)) for of in zip(*(run.prior for run in runs), strict=True))
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


def _require_alike(first: Run, other: Run) -> None:
    """Refuses runs that take other volumes or covariates, or answer something else."""
    ours, theirs = f"run {first.directory}", f"run {other.directory}"
    differing = []
    for name, one, two in (
        ("spec", first.spec, other.spec),
        ("target", first.target.to_json(), other.target.to_json()),
        ("covariates", _covariates_of(first), _covariates_of(other)),
    ):
        differing += [
            f"{name}.{key}: {one.get(key)!r} in {ours}, {two.get(key)!r} in {theirs}"
            for key in sorted({*one, *two})
            if one.get(key) != two.get(key)
        ]
    if differing:
        raise ContractError(f"runs do not fit: {'; '.join(differing)}")
    first.schema.require_equal(other.schema, ours=ours, theirs=theirs)
    for name, taken in (("modalities", first.modalities), ("covariates", names_of(first))):
        found = other.modalities if name == "modalities" else names_of(other)
        if taken != found:
            raise ContractError(
                f"runs do not fit: {name}: {list(taken)} in {ours}, {list(found)} in {theirs}"
            )


def names_of(run: Run) -> tuple[str, ...]:
    """Names of the covariates that a run's members take."""
    return tuple(one.name for one in run.covariates)


def _covariates_of(run: Run) -> dict[str, Any]:
    """The covariates of the dataset that a run was trained on, by name."""
    return {one.name: list(one.categories) or "number" for one in run.schema.covariates}


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
