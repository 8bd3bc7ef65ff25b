"""Trains a network on a dataset's folds: one fold held out, or each in turn."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m trainer.task")

import argparse
from collections.abc import Sequence
from typing import Any

from beam_jobs.common.cli import EXIT_OK, LIST, Parser, UsageError, items, run
from beam_jobs.common.contract_json import ContractError, json_object
from beam_jobs.common.files import interface as files
from beam_jobs.common.named_file import read_named
from beam_jobs.common.terminal import row
from trainer.api import Run, train
from trainer.config.augment import PRESETS
from trainer.config.network import FUSIONS, HEADS, MODELS, PADDINGS, POOLINGS
from trainer.config.provenance import split_provenance
from trainer.config.run import (
    CACHES,
    CLASS_WEIGHTS,
    EPOCH_CHOICES,
    PRECISIONS,
    SCHEDULES,
    XLA,
    TrainConfig,
    merged,
)
from trainer.config.run_layout import OOF_NAME, REPORT_NAME
from trainer.metrics.ensemble import summary_rows
from trainer.metrics.wording import permutations_text, verdict
from trainer.training.environment import run_addresses

PROG = "python -m trainer.task"

# A flag's field in the config, where it is not a field of the same name.
_FIELDS = {
    "model": ("network", "name"),
    **{name: ("network", name) for name in ("width", "depth", "dropout", "pooling", "fusion")},
    **{name: ("network", name) for name in ("head", "encoder", "encoder_weights")},
    **{name: ("network", name) for name in ("weights", "padding")},
    **{name: ("optimizer", name) for name in ("learning_rate", "schedule", "warmup_epochs")},
    **{name: ("optimizer", name) for name in ("weight_decay", "clip_norm", "ema", "stage_decay")},
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
            f"  {PROG} --data dataset --output_dir run --cross_validate \\\n"
            "      --permutations 39 --processes 4"
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
        "--permutations",
        type=int,
        default=0,
        metavar="Q",
        help="then train everything anew on Q labelings permuted within folds: p = (1 + those at "
        "least as good) / (Q + 1); 39 decide at 5 %%; choose Q before looking: raised "
        "until it pleases, p is small too often",
    )
    add("--processes", type=int, default=1, metavar="N", help="permutations at the same time")
    add(
        "--hyperparameters",
        metavar="FILE",
        help="JSON of settings, as the search writes it; flags given beside it win; where it was "
        "searched on patients that are scored here, the scores are called optimistic",
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
    add(
        "covariates",
        "what else of a patient the network gets, of what the dataset holds; none: nothing "
        "(default: all)",
        **LIST,
    )
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
        metavar="NAME",
        help=f"random changes to training volumes: {', '.join(PRESETS)}; or your own, "
        "module:function (default: flip, left and right)",
    )
    add = adder(parser.add_argument_group("network"))
    add("model", f"one of: {', '.join(MODELS)}; or your own, module:function", metavar="NAME")
    add("width", "factor of the channels", type=float)
    add("depth", "factor of the blocks a stage", type=float)
    add("dropout", "every dropout's rate (default: the network's own)", type=float)
    add("pooling", "of the last feature map", choices=POOLINGS)
    add("fusion", "modalities as channels, or each through the network", choices=FUSIONS)
    add("head", "over the slices, of slice networks", choices=HEADS)
    add("encoder", "2D encoder of a slice network: module:function", metavar="NAME")
    add("encoder_weights", "weights of a slice network's 2D encoder", metavar="FILE")
    add("weights", "what a 3D network starts from: .keras, .h5, .pth, .safetensors", metavar="FILE")
    add("padding", "symmetric: as PyTorch (default: as the weights' own)", choices=PADDINGS)
    add("freeze", "so many first stages keep their weights", type=int, metavar="N")
    add = adder(parser.add_argument_group("training"))
    add("epochs", "passes over the training folds", type=int)
    add("epoch_choice", "crossfit: a fold's epoch by the other folds' loss", choices=EPOCH_CHOICES)
    add("learning_rate", "the highest", type=float)
    add("schedule", "of the learning rate", choices=SCHEDULES)
    add("warmup_epochs", "of the cosine schedule", type=int)
    add("weight_decay", "of AdamW; 0 is Adam", type=float)
    add("stage_decay", "rate of each stage, times that of the next one", type=float)
    add("loss", "or your own: module:function", metavar="NAME")
    add("clip_norm", "limit to the norm of all gradients", type=float)
    add("ema", "decay of a moving average of the weights, which is kept; 0: without", type=float)
    add("label_smoothing", "so much of a training label is dealt out to all outcomes", type=float)
    add("class_weights", "balanced: all classes weigh alike", choices=CLASS_WEIGHTS)
    add("precision", "auto is float32 on a CPU, mixed on a GPU", choices=PRECISIONS)
    add("xla", "compile the step; auto: on one GPU", choices=XLA)


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """The config, as JSON, of the file and, over it, of the flags; the file's provenance with it.

    Raises:
      UsageError: a file that is no JSON of settings, or a value that cannot be.
    """
    settings: dict[str, Any] = {}
    if args.hyperparameters is not None:
        text = read_named(args.hyperparameters, flag="--hyperparameters")
        try:
            settings = json_object(text)
        except ContractError as error:
            raise UsageError(f"{args.hyperparameters}: {error}") from error
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
    if "covariates" in given:
        told = given["covariates"]
        named = (told,) if isinstance(told, str) else tuple(told)
        given["covariates"] = () if items(told) == ("none",) else named
    settings = merged(settings, given)
    try:
        TrainConfig.from_json(split_provenance(settings)[0])
    except (UsageError, ContractError) as error:
        where = "" if args.hyperparameters is None else f"{args.hyperparameters} and flags: "
        raise UsageError(f"{where}{error}") from error
    return settings


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    trained = train(
        args.data,
        args.output_dir,
        _config(args),
        overwrite=args.overwrite,
        cache=args.cache,
        permutations=args.permutations,
        processes=args.processes,
        command=(*parser.prog.split(), *argv),
    )
    if trained is not None:
        _print_summary(trained, run_addresses(args.output_dir).run)
    return EXIT_OK


def _print_summary(trained: Run, address: str) -> None:
    metrics = trained.metrics
    for name, text in summary_rows(metrics):
        row(name, text, folded=True)
    if metrics["permutations"]:
        row("permuted", permutations_text(metrics), folded=True)
    row("verdict", verdict(metrics), folded=True)
    if trained.schema.covariates:
        # pandas and scikit-learn: a second
        from trainer.metrics.covariates.against import against_covariates
        from trainer.metrics.predictions import read_predictions
        from trainer.metrics.run_facts import headline_of

        own = read_predictions(files.join(address, OOF_NAME), target=trained.target)
        if alone := against_covariates(headline_of(own, address).predictions, address):
            row("covariates", f"alone: {alone['said']}", folded=True)
    row(
        "time",
        f"{trained.wall_seconds:.0f} s, {trained.step_seconds:.2g} s a step, "
        f"{100 * trained.input_wait:.1f} % of it waiting for input; {trained.precision}",
        folded=True,
    )
    row("run", address)
    row("report", files.join(address, REPORT_NAME))


if __name__ == "__main__":
    run(main, PROG)
