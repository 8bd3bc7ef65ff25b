"""How good predictions are, and how sure one can be: the command; no TensorFlow."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m trainer.evaluate")

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import EXIT_OK, Parser, UsageError, run
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import own_json, require_own
from beam_jobs.common.printable import printable
from beam_jobs.common.terminal import row
from trainer.config.run_layout import (
    ALONE_NAME,
    CONFIG_NAME,
    METRICS_FORMAT,
    METRICS_NAME,
    REPORT_NAME,
    RUN_NAME,
)
from trainer.metrics.predictions import Predictions, read_predictions
from trainer.metrics.tasks.evaluation_words import figure_lines
from trainer.metrics.tasks.labels_file import read_labels
from trainer.metrics.wording import (
    comparison_line,
    conformal_line,
    part_line,
    parts_text,
    permutations_text,
    summary_line,
    verdict,
)

PROG = "python -m trainer.evaluate"
_SHOWN = 10  # ids listed on the terminal; metrics.json has all


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        description="Predictions against labels: AUC, macro AUC of classes, mean AUC of findings "
        "or rank correlation of values, as the predictions' columns say, with its interval, a "
        "verdict in words, and a report in HTML.",
        examples=(
            f"  {PROG} --predictions submission.csv --labels labels.csv\n"
            f"  {PROG} --predictions run/oof_predictions.csv \\\n"
            "      --series dataset/series.csv --output report\n"
            f"  {PROG} --predictions test/submission.csv \\\n"
            "      --labels labels.csv --run run\n"
            f"  {PROG} --predictions a/oof_predictions.csv \\\n"
            "      b/oof_predictions.csv --output report"
        ),
    )
    add = parser.add_argument
    add(
        "--predictions",
        required=True,
        nargs="+",
        metavar="CSV",
        help="submission.csv or oof_predictions.csv; further ones are compared with the first, "
        "patients paired, each judged by the run it lies in",
    )
    add(
        "--labels",
        metavar="CSV",
        help="an id and a label a row: 0 or 1, a class, a value, or a column a finding (default: "
        "the predictions' own columns)",
    )
    add(
        "--id_column",
        default="BraTS21ID",
        help="of all files (patient_id is understood too); leading zeros do not matter",
    )
    add(
        "--label_column",
        nargs="+",
        metavar="NAME",
        help="of the labels file (default: MGMT_value; of findings, each finding's name)",
    )
    add(
        "--probability_column",
        default="MGMT_value",
        help="of the predictions files, of labels of 0 and 1 (logit and probability are understood "
        "too)",
    )
    add(
        "--series",
        metavar="CSV",
        help="the dataset's series.csv: the score by scanner field strength and plane",
    )
    add(
        "--run",
        help="directory of the training run that made the first predictions (default: where they "
        "lie, if that is a run); those of a test set must be of patients that it never saw",
    )
    add(
        "--output",
        metavar="DIR",
        help="folder to write metrics.json and report.html into",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    if args.run and not _is_run(args.run):
        raise UsageError(f"--run {args.run}: no {RUN_NAME} and no {CONFIG_NAME} there")
    if args.series and not args.output:
        raise UsageError("--series is for the report: --output DIR is needed")
    if args.output:
        files.require_writable(args.output)
        names = (METRICS_NAME, REPORT_NAME)
        ours = own_json(files.join(args.output, METRICS_NAME), METRICS_FORMAT) is not None
        require_own(args.output, names, names if ours else (), flag="--output")
    ids = (args.id_column, "patient_id")
    run_, *other_runs = map(_run_beside, args.predictions)
    run_ = args.run or run_
    # pandas and scikit-learn take a second to import.
    from trainer.metrics.comparisons import comparisons_of
    from trainer.metrics.covariates.against import against_covariates
    from trainer.metrics.run_facts import headline_of, target_of_run

    targets = [target_of_run(one) if one else None for one in (run_, *other_runs)]
    target = targets[0]
    scores = (args.probability_column, "logit", "probability")
    labels = None
    if args.labels:
        labels = read_labels(
            args.labels,
            args.label_column,
            id_columns=ids,
            predictions=args.predictions[0],
            score_columns=scores,
            target=target,
        )
    models = _distinct(
        [
            read_predictions(
                file, labels, id_columns=ids, score_columns=scores, target=own or target
            )
            for file, own in zip(args.predictions, targets, strict=True)
        ]
    )
    first, *others = models

    headline = headline_of(first, run_, others=others)
    estimate = headline.estimate
    row("auc" if "auc" in estimate else "score", summary_line(estimate))
    row("verdict", verdict(estimate))
    _tell_more(headline.predictions, estimate)
    if estimate["permutations"]:
        row("permuted", permutations_text(estimate))
    if headline.out_of_fold:
        row("out of fold", summary_line(headline.out_of_fold))
    others = [
        headline_of(other, beside, others=models).predictions
        for other, beside in zip(others, other_runs, strict=True)
    ]
    for one in comparisons_of(headline.predictions, others):
        row("against", comparison_line(one))
    if alone := against_covariates(headline.predictions, run_):
        row("covariates", f"alone: {alone['said']}")
    for note in (*headline.notes, *(note for other in others for note in other.notes)):
        row("mind", note)
    _print_missing(first)
    if args.output:
        # Drawing libraries take a second to import.
        from trainer.reports.evaluation import write_report

        write_report(
            args.output,
            first,
            others=others,
            series=args.series,
            run=run_,
        )
        row("numbers", files.join(args.output, METRICS_NAME))
        row("report", files.join(args.output, REPORT_NAME))
    return EXIT_OK


def _is_run(directory: str) -> bool:
    return any(files.stat(files.join(directory, name)) for name in (RUN_NAME, CONFIG_NAME))


def _run_beside(file: str) -> str | None:
    """The run that a file lies in; None where there is none, or on a web server: it has no list."""
    directory = os.path.dirname(file) or "."
    if files.name_of(file) == ALONE_NAME:
        return None  # made for the run, by none of its networks
    if file.startswith(("http://", "https://")) or not _is_run(directory):
        return None
    return directory


def _distinct(models: Sequence[Predictions]) -> list[Predictions]:
    """The same models; a name that came before gets a number."""
    names = [model.name for model in models]
    counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
    return [
        model if count == 1 else dataclasses.replace(model, name=f"{model.name} ({count})")
        for model, count in zip(models, counts, strict=True)
    ]


def _tell_more(predictions: Predictions, estimate: Mapping[str, Any]) -> None:
    """Each class or finding by itself, figures, and of values the intervals that hold new ones."""
    target, parts = predictions.target, estimate.get("parts", [])
    called = "class " if target.task == "multiclass" else ""
    for part in parts[:_SHOWN]:
        row(printable(f"{called}{part['name']}"), part_line(part, estimate["level"]))
    if parts and not estimate["no_claim"]:
        row("each", printable(parts_text(estimate)))
    if target.task != "binary":
        from trainer.metrics.tasks.evaluation import figures_of

        found = figures_of(predictions, estimate)
        for name, text in figure_lines(found, target.unit):
            row(name, printable(text))
        if conformal := found.get("conformal"):
            row("intervals", conformal_line(conformal, target.unit))


def _print_missing(predictions: Predictions) -> None:
    for missing, text in (
        (predictions.without_label, "predicted but without a label"),
        (predictions.without_prediction, "labelled but not predicted"),
    ):
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            named = printable(", ".join(missing[:_SHOWN]))
            print(f"{len(missing)} {text}: {named}{more}", file=sys.stderr)


if __name__ == "__main__":
    run(main, PROG)
