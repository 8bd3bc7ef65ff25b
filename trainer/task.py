"""Trains a network on a dataset's folds: one fold held out, or each in turn."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import EXIT_OK, LIST, CommandError, Parser, UsageError, items, run
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.named_file import read_named
from beam_jobs.common.terminal import row, say
from beam_jobs.core.manifest import read_manifest
from trainer.config.augment import PRESETS
from trainer.config.network import FUSIONS, HEADS, MODELS, POOLINGS
from trainer.config.run import (
    CACHES,
    CLASS_WEIGHTS,
    PRECISIONS,
    SCHEDULES,
    XLA,
    TrainConfig,
    merged,
)
from trainer.config.run_layout import OOF_NAME, RUN_NAME
from trainer.data.split import check_folds, folds_to_train
from trainer.metrics.ensemble import summary_rows
from trainer.metrics.wording import PERMUTED, summary_line, verdict
from trainer.training.claim import claimed
from trainer.training.environment import RunDirectories, cluster_of, run_addresses
from trainer.training.run import train
from trainer.training.run_files import Run

PROG = "python -m trainer.task"

# A flag's field in the config, where it is not a field of the same name.
_FIELDS = {
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
        "Killed at any moment, the same command resumes after the last epoch.",
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
    add("--output_dir", metavar="RUN", help="directory of the run, or a place in a store")
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
            place = _FIELDS.get(name, (name,))
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
        text = read_named(args.hyperparameters, flag="--hyperparameters")
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
    for name, (part, field) in _FIELDS.items():
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
    addresses, cluster = run_addresses(args.output_dir), cluster_of()
    manifest = read_manifest(args.data)
    config = config.resolve(manifest.schema.modalities)
    config.network.require_files()
    folds = folds_to_train(manifest, config.fold)
    check_folds(manifest)

    def train_into(directories: RunDirectories) -> Run | None:
        try:
            return train(config, args.data, manifest, folds, directories, cluster, cache=args.cache)
        except FloatingPointError as error:
            raise CommandError(str(error)) from error

    if not cluster.is_chief:
        # It reads which folds are done, and writes nothing.
        if args.overwrite or not files.exists(files.join(addresses.run, RUN_NAME)):
            run_, checkpoints, logs = map(Path, dataclasses.astuple(addresses))
            train_into(RunDirectories(run=run_, checkpoints=checkpoints, logs=logs))
        return EXIT_OK
    request = {"config": config.to_json(), "dataset_fingerprint": manifest.dataset_fingerprint}
    with claimed(addresses, request, overwrite=args.overwrite) as (directories, finished):
        if finished:
            say(f"{addresses.run} is this very run, finished already; --overwrite trains it again")
        else:
            train_into(directories)
        _print_summary(Run.load(directories.run), addresses.run)
        report = _report(directories.run, args.data)
    row("report", files.join(addresses.run, report.name))
    return EXIT_OK


def _report(directory: Path, data: str) -> Path:
    """Writes metrics.json and report.html of a finished run, by scanner and plane if it can."""
    from trainer.metrics.predictions import read_predictions
    from trainer.reports.evaluation import write_report  # matplotlib: a second

    predictions = read_predictions(directory / OOF_NAME)
    series = files.join(data, "series.csv")
    if files.stat(series) is not None:
        # Its ids may not be those of the records.
        with contextlib.suppress(ContractError), files.fetched(series) as table:
            return write_report(directory, predictions, series=table, run=directory)
    return write_report(directory, predictions, run=directory)


def _print_summary(trained: Run, address: str) -> None:
    metrics = trained.metrics
    for name, text in summary_rows(metrics):
        row(name, text)
    row("last epochs", f"instead of the best: {summary_line(metrics['last_epoch'])}")
    row("verdict", verdict(metrics))
    row("mind", "The best epochs were chosen on these same patients, which flatters them.")
    if trained.config["permute_labels"]:
        row("mind", PERMUTED)
    row(
        "time",
        f"{trained.wall_seconds:.0f} s, {trained.step_seconds:.2g} s a step, "
        f"{100 * trained.input_wait:.1f} % of it waiting for input; {trained.precision}",
    )
    row("run", address)


if __name__ == "__main__":
    run(main, PROG)
