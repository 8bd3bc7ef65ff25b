"""Trains a network on a dataset's folds: one fold held out, or each in turn."""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beam_jobs.core.cli import (
    EXIT_OK,
    LIST,
    CommandError,
    Parser,
    UsageError,
    items,
    read_text,
    run,
)
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import ContractError
from trainer.augment_config import PRESETS
from trainer.config import (
    CACHES,
    CLASS_WEIGHTS,
    PRECISIONS,
    SCHEDULES,
    XLA,
    TrainConfig,
    merged,
)
from trainer.environment import Cluster, Places, cluster_of, places_of
from trainer.evaluate import metrics_of, sigmoid, summary_line, verdict
from trainer.locations import read_manifest
from trainer.network_config import FUSIONS, HEADS, MODELS, POOLINGS
from trainer.runs import OOF_COLUMNS, OOF_NAME, RUN_NAME, Member, Run, claim, locked
from trainer.split import check_folds, folds_to_train, labels_of, permuted_labels

if TYPE_CHECKING:
    from trainer.results import FoldResult

PROG = "python -m trainer.task"

# A flag's place in the config, where it is not a field of the same name.
_PLACES = {
    "model": ("network", "name"),
    **{name: ("network", name) for name in ("width", "depth", "dropout", "pooling", "fusion")},
    **{name: ("network", name) for name in ("head", "encoder_weights")},
    **{name: ("optimizer", name) for name in ("learning_rate", "schedule", "warmup_epochs")},
    **{name: ("optimizer", name) for name in ("weight_decay", "clip_norm", "ema")},
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Trains a network on a dataset's folds and predicts every held-out patient. "
        "Killed at any moment, the same command goes on from the last epoch.",
        examples=(
            f"  {PROG} --data dataset --output_dir run --cross_validate\n"
            f"  {PROG} --data dataset --output_dir run0 --fold 0 \\\n"
            "      --modalities T1wCE --model resnet10 --epochs 30\n"
            f"  {PROG} --data dataset --output_dir null --cross_validate \\\n"
            "      --permute_labels"
        ),
    )
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="dataset: a directory, gs://, s3://, ...")
    add("--output_dir", type=Path, metavar="RUN", help="directory of the run")
    folds = parser.add_mutually_exclusive_group(required=True)
    folds.add_argument("--fold", type=int, metavar="K", help="hold out this fold")
    folds.add_argument("--cross_validate", action="store_true", help="hold out each fold in turn")
    add("--overwrite", action="store_true", help="replace the run that lies in RUN")
    add("--cache", default="auto", choices=CACHES, help="keep records between epochs")
    add(
        "--hyperparameters",
        type=Path,
        metavar="FILE",
        help="JSON of settings, as the search writes it; flags given beside it win",
    )
    _add_settings(parser)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags that make a `TrainConfig`; absent where they were not given."""
    defaults = TrainConfig()

    def adder(group: Any) -> Any:
        def add(name: str, text: str, **options: Any) -> None:
            place = _PLACES.get(name, (name,))
            default: Any = defaults
            for part in place:
                default = getattr(default, part)
            shown = "" if default is None or default is False else f" (default: {default})"
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text + shown, **options)

        return add

    add = adder(parser.add_argument_group("data"))
    add("modalities", "channels to train on, in this order (default: all)", **LIST)
    add("batch_size", "patients a step, all devices together", type=int)
    add("repeats", "members a fold, of seeds counted up from --seed", type=int, metavar="R")
    add("seed", "of weights, dropout, augmentation and order", type=int)
    add(
        "permute_labels",
        "shuffle the labels within each fold: the score where nothing can be learnt",
        action="store_true",
    )
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--augment",
        default=argparse.SUPPRESS,
        choices=tuple(PRESETS),
        help="random changes to training volumes (default: flip, left and right)",
    )
    add = adder(parser.add_argument_group("network"))
    add("model", f"one of: {', '.join(MODELS)}", metavar="NAME")
    add("width", "factor of the channels", type=float)
    add("depth", "factor of the blocks a stage", type=float)
    add("dropout", "every dropout's rate (default: the network's own)", type=float)
    add("pooling", "of the last feature map", choices=POOLINGS)
    add("fusion", "modalities as channels, or each through the network", choices=FUSIONS)
    add("head", "over the slices, of slice networks", choices=HEADS)
    add("encoder_weights", "weights of a slice network's 2D encoder", metavar="FILE")
    add = adder(parser.add_argument_group("training"))
    add("epochs", "at most so many", type=int)
    add("patience", "stop after so many epochs without a better validation AUC", type=int)
    add("learning_rate", "the highest", type=float)
    add("schedule", "of the learning rate", choices=SCHEDULES)
    add("warmup_epochs", "of the cosine schedule", type=int)
    add("weight_decay", "of AdamW; 0 is Adam", type=float)
    add("clip_norm", "limit to the norm of all gradients", type=float)
    add("ema", "decay of a moving average of the weights, which is then kept", type=float)
    add("label_smoothing", "training labels move by half of it towards 1/2", type=float)
    add("class_weights", "balanced: both classes weigh alike", choices=CLASS_WEIGHTS)
    add("precision", "auto is float32 on a CPU, mixed on a GPU", choices=PRECISIONS)
    add("xla", "compile the step; auto: on one GPU", choices=XLA)


def _config(args: argparse.Namespace) -> TrainConfig:
    """The config of the file and, over it, of the flags.

    Raises:
      UsageError: a file that is no JSON of settings, or a value that cannot be.
    """
    settings: dict[str, Any] = {}
    if args.hyperparameters is not None:
        text = read_text(args.hyperparameters, flag="--hyperparameters")
        try:
            settings = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{args.hyperparameters}: {error}") from error
        if not isinstance(settings, dict):
            raise UsageError(f"{args.hyperparameters}: a JSON object of settings is needed")
        if isinstance(settings.get("network"), str):
            settings["network"] = {"name": settings["network"]}
    given: dict[str, Any] = {"fold": args.fold}
    for name in vars(TrainConfig()):
        if hasattr(args, name):
            given[name] = getattr(args, name)
    for name, (part, field) in _PLACES.items():
        if hasattr(args, name):
            given.setdefault(part, {})[field] = getattr(args, name)
    if "modalities" in given:
        given["modalities"] = items(given["modalities"])
    try:
        return TrainConfig.from_json(merged(settings, given))
    except UsageError as error:
        where = "" if args.hyperparameters is None else f"{args.hyperparameters} and flags: "
        raise UsageError(f"{where}{error}") from error


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    config = _config(args)
    places, cluster = places_of(args.output_dir), cluster_of()
    manifest = read_manifest(args.data)
    config = config.resolve(manifest.schema.modalities)
    config.network.require_files()
    folds = folds_to_train(manifest, config.fold)
    check_folds(manifest)
    request = {"config": config.to_json(), "dataset_fingerprint": manifest.dataset_fingerprint}
    if not cluster.is_chief:
        if not (places.run / RUN_NAME).is_file():
            train(config, args.data, manifest, folds, places, cluster, cache=args.cache)
        return EXIT_OK
    with contextlib.ExitStack() as stack:
        finished = claim(places.run, request, overwrite=args.overwrite)
        stack.enter_context(locked(places.run))
        if finished:
            print(f"{places.run} is this very run, finished already; --overwrite trains it again")
            _print_summary(Run.load(places.run))
            print(f"report: {_report(places.run, args.data)}")
            return EXIT_OK
        if args.overwrite and places.checkpoints != places.run:
            for folder in places.checkpoints.glob("fold-*"):
                shutil.rmtree(folder)
        try:
            trained = train(config, args.data, manifest, folds, places, cluster, cache=args.cache)
        except FloatingPointError as error:
            raise CommandError(str(error)) from error
        assert trained is not None
        _print_summary(trained)
        print(f"report: {_report(places.run, args.data)}")
    return EXIT_OK


def _report(directory: Path, data: str) -> Path:
    """Writes metrics.json and report.html of a finished run, by scanner and plane if it can."""
    from trainer.evaluation_report import write_report  # matplotlib: a second
    from trainer.predictions import read_predictions

    predictions = read_predictions(directory / OOF_NAME)
    series = Path(data, "series.csv")
    if series.is_file():
        with contextlib.suppress(ContractError):  # its ids are not those of the records
            return write_report(directory, predictions, series=series, run=directory)
    return write_report(directory, predictions, run=directory)


def train(
    config: TrainConfig,
    data: str,
    manifest: Manifest,
    folds: Sequence[int],
    places: Places,
    cluster: Cluster,
    *,
    cache: str = "auto",
    quiet: bool = False,
) -> Run | None:
    """Trains the members, writes the out-of-fold predictions, then run.json.

    Args:
      config: resolved.
      data: the dataset's address.
      manifest: the dataset's.
      folds: those to hold out.
      places: claimed for this run.
      cluster: the processes that train together; all but the chief write nothing and get None.
      cache: how records are kept between epochs.
      quiet: no line an epoch.

    Raises:
      ContractError: the dataset is not what its manifest says.
      FloatingPointError: training diverged.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it warns of nothing one could act on
    # TensorFlow: seconds, only from here on
    from trainer.fit import Setting, prepare_devices, resolve_precision, train_fold
    from trainer.input_pipeline import open_records

    strategy = prepare_devices(cluster, seed=config.seed)
    setting = Setting(
        config=config,
        data=data,
        manifest=manifest,
        labels=permuted_labels(manifest, config.seed) if config.permute_labels else None,
        places=places,
        precision=resolve_precision(config.precision),
        cluster=cluster,
        strategy=strategy,
        cache=cache,
        quiet=quiet,
    )
    assert config.modalities is not None
    # Held open around all members: they share what is cached, and a store is read once.
    with open_records(
        data, manifest, range(manifest.folds), modalities=config.modalities, cache=cache
    ):
        results = [
            train_fold(setting, fold=fold, seed=seed) for seed in config.seeds for fold in folds
        ]
    if not cluster.is_chief:
        return None
    _write_predictions(places.run / OOF_NAME, results)
    return _finish(setting.precision, config, manifest, folds, places, results)


def _finish(
    precision: str,
    config: TrainConfig,
    manifest: Manifest,
    folds: Sequence[int],
    places: Places,
    results: Sequence[FoldResult],
) -> Run:
    """Writes run.json."""
    trained_on = [
        label
        for patient_id, label in labels_of(manifest).items()
        if len(folds) > 1 or patient_id not in results[0].held_out.patient_ids
    ]
    assert config.modalities is not None
    finished = Run(
        directory=places.run,
        config=config.to_json(),
        schema=manifest.schema,
        spec=manifest.spec,
        dataset_fingerprint=manifest.dataset_fingerprint,
        modalities=config.modalities,
        model=config.network.name,
        members=tuple(
            Member(
                fold=result.fold,
                seed=result.seed,
                path=result.path,
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
        wall_seconds=round(sum(result.seconds for result in results), 3),
        step_seconds=round(float(np.median([result.step_seconds for result in results])), 5),
        input_wait=round(float(np.median([result.input_wait for result in results])), 5),
    )
    finished.save()
    return finished


def _metrics(results: Sequence[FoldResult]) -> dict[str, Any]:
    """All held-out patients together, each seed and fold, and the last epochs, which nobody chose.

    A patient's score is the mean logit over the seeds: one row a patient, so that n is honest.
    """
    seeds = sorted({result.seed for result in results})
    return {
        **_pooled(results, "logits"),
        "folds": [
            {
                "fold": result.fold,
                "seed": result.seed,
                "best_epoch": result.best_epoch,
                "epochs": result.epochs,
                **metrics_of(result.held_out.labels, result.held_out.logits),
            }
            for result in results
        ],
        "seeds": [
            {
                "seed": seed,
                **_pooled([result for result in results if result.seed == seed], "logits"),
            }
            for seed in seeds
        ],
        "last_epoch": _pooled(results, "last_logits"),
    }


def _pooled(results: Sequence[FoldResult], scores: str) -> dict[str, Any]:
    """Metrics over the patients of several members, the mean logit of each."""
    labels: dict[str, int] = {}
    logits: dict[str, list[float]] = {}
    for result in results:
        held_out = result.held_out
        of_each = getattr(held_out, scores).tolist()
        for patient_id, label, logit in zip(
            held_out.patient_ids, held_out.labels.tolist(), of_each, strict=True
        ):
            labels[patient_id] = label
            logits.setdefault(patient_id, []).append(logit)
    return metrics_of(
        np.array(list(labels.values())), np.array([np.mean(logits[name]) for name in labels])
    )


def _write_predictions(file: Path, results: Sequence[FoldResult]) -> None:
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
                row = [patient_id, label, result.fold, result.seed, logit, probability]
                writer.writerow(row)


def _print_summary(trained: Run) -> None:
    metrics = trained.metrics
    print(f"out of fold: {summary_line(metrics)}")
    for fold in metrics["folds"]:
        seed = f", seed {fold['seed']}" if len(metrics["seeds"]) > 1 else ""
        print(
            f"  fold {fold['fold']}{seed}: {summary_line(fold)}, "
            f"epoch {fold['best_epoch']} of {fold['epochs']}"
        )
    if len(metrics["seeds"]) > 1:
        each = [seed["auc"] for seed in metrics["seeds"]]
        print(
            f"  seeds alone: AUC {min(each):.2f} to {max(each):.2f}; "
            "above, a patient's score is the mean over seeds"
        )
    print(f"  last epochs instead of the best: {summary_line(metrics['last_epoch'])}")
    print(verdict(metrics))
    print("The best epochs were chosen on these same patients, which flatters them.")
    if trained.config["permute_labels"]:
        print("The labels were permuted: this is what the recipe scores without any signal.")
    print(
        f"run: {trained.directory} ({trained.wall_seconds:.0f} s, "
        f"{trained.step_seconds:.2f} s a step, {100 * trained.input_wait:.1f} % of it waiting for "
        f"input, {trained.precision})"
    )


if __name__ == "__main__":
    run(main, PROG)
