"""A random forest on simple features, on the folds that networks are trained on: what to beat.

With --covariates_only no image is looked at: a logistic regression (of values a ridge) of what else
is known of patients, to find out a network that has learnt no more than that.

run/
  oof_predictions.csv      as trainer.task writes it: out of fold only
  feature_importance.csv   what shuffling a feature costs in AUC, on held-out folds
  baseline.json            what was requested, of which dataset, and how it scored; written last
"""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m trainer.baseline")

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import EXIT_OK, LIST, Parser, items, run
from beam_jobs.common.terminal import row, say
from beam_jobs.core.manifest import read_manifest
from trainer.data.split import check_folds, folds_to_train, labels_of, permuted_labels
from trainer.forest.baseline import BaselineConfig, claim, write_baseline
from trainer.forest.model import cross_validate, forests, linear
from trainer.forest.table import covariates_table, measure_features
from trainer.metrics.ensemble import summary_rows
from trainer.metrics.wording import verdict

PROG = "python -m trainer.baseline"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="A random forest on intensity, texture and shape, and on covariates, on the "
        "dataset's folds; or a logistic or ridge regression of the covariates alone.",
        examples=(
            f"  {PROG} --data dataset --output_dir forest\n"
            f"  {PROG} --data dataset --output_dir forest_t1 \\\n"
            "      --modalities T1wCE --repeats 5\n"
            f"  {PROG} --data dataset --output_dir null --permute_labels\n"
            f"  {PROG} --data dataset --output_dir known --covariates_only"
        ),
    )
    defaults = BaselineConfig()
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="dataset with a manifest.json")
    add("--output_dir", required=True, metavar="RUN", help="directory of the run, or a store's")
    add("--modalities", **LIST, help="whose features to use (default: all of the dataset's)")
    add("--covariates", **LIST, help="which to use (default: all of the dataset's); none: without")
    add(
        "--covariates_only",
        action="store_true",
        help="no forest and no image: what covariates alone say",
    )
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
        covariates=_covariates(args.covariates),
        covariates_only=args.covariates_only,
    )
    manifest = read_manifest(args.data)
    target = manifest.schema.target
    config = config.resolve(manifest.schema)
    folds_to_train(manifest, None)
    check_folds(manifest)
    request = {"config": config.to_json(), "dataset_fingerprint": manifest.dataset_fingerprint}
    if done := claim(args.output_dir, request, overwrite=args.overwrite):
        say(f"{args.output_dir} is this very baseline, finished already; --overwrite repeats it")
    else:
        started = time.perf_counter()
        covariates = config.covariates or ()
        if config.covariates_only:
            table = covariates_table(args.data, manifest, covariates)
            by_name = {one.name: one for one in manifest.schema.covariates}
            fit = linear(target, [by_name[name] for name in covariates])
        else:
            table = measure_features(args.data, manifest, config.modalities or (), covariates)
            fit = forests(target, trees=config.trees)
        labels = permuted_labels(manifest, config.seed) if config.permute_labels else None
        truth = table.labels_from(labels or labels_of(manifest), target)
        held_out = cross_validate(
            table, truth, fit=fit, seed=config.seed, repeats=config.repeats, target=target
        )
        done = write_baseline(args.output_dir, request, table, truth, held_out, started, target)
    _print_summary(args.output_dir, done)
    return EXIT_OK


def _covariates(given: Any) -> tuple[str, ...] | None:
    """Names of the covariates; () of "none", None where nothing is said."""
    if given is None or items(given) == ("none",):
        return None if given is None else ()
    return (given,) if isinstance(given, str) else tuple(given)


def _print_summary(directory: str, done: Mapping[str, Any]) -> None:
    metrics = done["metrics"]
    for name, text in summary_rows(metrics):
        row(name, text)
    row("verdict", verdict(metrics))
    row("features", f"that mattered most: {', '.join(done['top_features'])}")
    what = (
        f"a regression of {done['features']} covariates alone"
        if done["config"].get("covariates_only")
        else f"{done['config']['trees']} trees on {done['features']} features"
    )
    row("time", f"{done['wall_seconds']:.0f} s, {what}")
    row("baseline", directory)


if __name__ == "__main__":
    run(main, PROG)
