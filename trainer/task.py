"""Trains a network on a dataset's folds: one fold held out, or each in turn."""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beam_jobs.core.cli import EXIT_OK, LIST, CommandError, Parser, UsageError, items, run
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from beam_jobs.core.record import ContractError
from trainer.config import MODELS, PRECISIONS, OptimizerConfig, TrainConfig
from trainer.evaluate import metrics_of, sigmoid, summary_line, verdict
from trainer.runs import OOF_COLUMNS, OOF_NAME, Member, Run, claim
from trainer.split import check_folds, folds_to_train, labels_of, permuted_labels

if TYPE_CHECKING:
    from trainer.fit import FoldResult

PROG = "python -m trainer.task"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Trains a network on a dataset's folds and predicts every held-out patient.",
        examples=(
            f"  {PROG} --data dataset --output_dir run --cross_validate\n"
            f"  {PROG} --data dataset --output_dir run0 --fold 0 \\\n"
            "      --modalities T1wCE --epochs 30\n"
            f"  {PROG} --data dataset --output_dir null --cross_validate \\\n"
            "      --permute_labels"
        ),
    )
    defaults = TrainConfig()
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="DIR", help="dataset with a manifest.json")
    add("--output_dir", required=True, type=Path, metavar="RUN", help="directory of the run")
    folds = parser.add_mutually_exclusive_group(required=True)
    folds.add_argument("--fold", type=int, metavar="K", help="hold out this fold")
    folds.add_argument("--cross_validate", action="store_true", help="hold out each fold in turn")
    add("--model", default=defaults.model, help=f"network, one of: {', '.join(MODELS)}")
    add(
        "--modalities",
        **LIST,
        help="channels to train on, in this order (default: all of the dataset's)",
    )
    add("--epochs", type=int, default=defaults.epochs, help="at most so many")
    add("--batch_size", type=int, default=defaults.batch_size, help="patients a step")
    add(
        "--learning_rate",
        type=float,
        default=defaults.optimizer.learning_rate,
        help=f"at the start; times {defaults.optimizer.decay_rate} every "
        f"{defaults.optimizer.decay_steps} steps",
    )
    add(
        "--patience",
        type=int,
        default=defaults.patience,
        help="stop after so many epochs without a better validation AUC",
    )
    add(
        "--precision",
        default=defaults.precision,
        help=f"one of: {', '.join(PRECISIONS)}; auto is float32 on a CPU, mixed on a GPU",
    )
    add("--seed", type=int, default=defaults.seed, help="of weights, dropout and order")
    add(
        "--permute_labels",
        action="store_true",
        help="shuffle the labels within each fold: the score where nothing can be learnt",
    )
    add("--overwrite", action="store_true", help="replace the run that lies in RUN")
    return parser


def _config(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(
        fold=args.fold,
        model=args.model,
        modalities=None if args.modalities is None else items(args.modalities),
        epochs=args.epochs,
        batch_size=args.batch_size,
        patience=args.patience,
        precision=args.precision,
        seed=args.seed,
        permute_labels=args.permute_labels,
        optimizer=OptimizerConfig(learning_rate=args.learning_rate),
    )


def load_manifest(data: Path) -> Manifest:
    """Reads a dataset's manifest.

    Raises:
      UsageError: no such directory.
      ContractError: it holds no manifest, or one that is not valid.
    """
    if not data.is_dir():
        raise UsageError(f"--data {data}: no such directory")
    file = data / MANIFEST_NAME
    if not file.is_file():
        raise ContractError(
            f"{data}: no {MANIFEST_NAME}: no dataset, or its conversion is not done"
        )
    try:
        return Manifest.loads(file.read_bytes())
    except ContractError as error:
        raise ContractError(f"{file}: {error}") from error


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    config = _config(args)
    manifest = load_manifest(args.data)
    config = config.resolve(manifest.schema.modalities)
    folds = folds_to_train(manifest, config.fold)
    check_folds(manifest)
    request = {"config": config.to_json(), "dataset_fingerprint": manifest.dataset_fingerprint}
    if claim(args.output_dir, request, overwrite=args.overwrite):
        print(f"{args.output_dir} is this very run, finished already; --overwrite trains it again")
        _print_summary(Run.load(args.output_dir))
        return EXIT_OK
    try:
        trained = train(config, args.data, manifest, folds, args.output_dir)
    except FloatingPointError as error:
        raise CommandError(str(error)) from error
    _print_summary(trained)
    return EXIT_OK


def train(
    config: TrainConfig, data: Path, manifest: Manifest, folds: Sequence[int], output_dir: Path
) -> Run:
    """Trains a member for each of `folds`, writes the out-of-fold predictions, then run.json.

    Args:
      config: resolved.
      data: the dataset's directory.
      manifest: the dataset's.
      folds: those to hold out.
      output_dir: claimed for this run.

    Raises:
      ContractError: the dataset is not what its manifest says.
      FloatingPointError: training diverged.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it warns of nothing one could act on
    from trainer.fit import resolve_precision, train_fold  # TensorFlow: seconds, only from here on

    precision = resolve_precision(config.precision)
    labels = permuted_labels(manifest, config.seed) if config.permute_labels else None
    started = time.perf_counter()
    results = [
        train_fold(
            config,
            data=data,
            manifest=manifest,
            fold=fold,
            labels=labels,
            run_directory=output_dir,
            precision=precision,
        )
        for fold in folds
    ]
    _write_predictions(output_dir / OOF_NAME, results, seed=config.seed)
    trained_on = [
        label
        for patient_id, label in labels_of(manifest).items()
        if len(folds) > 1 or patient_id not in results[0].held_out.patient_ids
    ]
    assert config.modalities is not None
    finished = Run(
        directory=output_dir,
        config=config.to_json(),
        schema=manifest.schema,
        spec=manifest.spec,
        dataset_fingerprint=manifest.dataset_fingerprint,
        modalities=config.modalities,
        model=config.model,
        members=tuple(
            Member(
                fold=result.fold,
                seed=config.seed,
                path=f"fold-{result.fold}/best.keras",
                best_epoch=result.best_epoch,
                val_auc=result.val_auc,
            )
            for result in results
        ),
        prevalence=sum(trained_on) / len(trained_on),
        metrics=_metrics(results),
        precision=precision,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        },
        wall_seconds=round(time.perf_counter() - started, 3),
        step_seconds=round(float(np.median([result.step_seconds for result in results])), 5),
    )
    finished.save()
    return finished


def _metrics(results: Sequence[FoldResult]) -> dict[str, Any]:
    """All held-out patients together, each fold, and the last epochs, which nobody chose."""
    labels = np.concatenate([result.held_out.labels for result in results])
    return {
        **metrics_of(labels, np.concatenate([result.held_out.logits for result in results])),
        "folds": [
            {
                "fold": result.fold,
                "best_epoch": result.best_epoch,
                "epochs": result.epochs,
                **metrics_of(result.held_out.labels, result.held_out.logits),
            }
            for result in results
        ],
        "last_epoch": metrics_of(
            labels, np.concatenate([result.held_out.last_logits for result in results])
        ),
    }


def _write_predictions(file: Path, results: Sequence[FoldResult], *, seed: int) -> None:
    """oof_predictions.csv: floats in full, so that they read back bit for bit."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(OOF_COLUMNS)
        for result in results:
            held_out = result.held_out
            for patient_id, label, logit, probability in zip(
                held_out.patient_ids,
                held_out.labels.tolist(),
                held_out.logits.tolist(),
                sigmoid(held_out.logits).tolist(),
                strict=True,
            ):
                writer.writerow([patient_id, label, result.fold, seed, logit, probability])


def _print_summary(trained: Run) -> None:
    metrics = trained.metrics
    print(f"out of fold: {summary_line(metrics)}")
    for fold in metrics["folds"]:
        print(
            f"  fold {fold['fold']}: {summary_line(fold)}, "
            f"epoch {fold['best_epoch']} of {fold['epochs']}"
        )
    print(f"  last epochs instead of the best: {summary_line(metrics['last_epoch'])}")
    print(verdict(metrics))
    print("The best epochs were chosen on these same patients, which flatters them.")
    if trained.config["permute_labels"]:
        print("The labels were permuted: this is what the recipe scores without any signal.")
    print(
        f"run: {trained.directory} ({trained.wall_seconds:.0f} s, "
        f"{trained.step_seconds:.2f} s a step, {trained.precision})"
    )


if __name__ == "__main__":
    run(main, PROG)
