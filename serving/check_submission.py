"""Checks a submission against the sample it must answer: ids, order, numbers, range."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m serving.check_submission")

import argparse
from collections.abc import Sequence

from beam_jobs.common import cli, terminal
from beam_jobs.common.csv_table import read_table
from beam_jobs.common.named_file import read_named
from serving.predict.check import problems
from serving.predict.outputs import VALUE_COLUMN
from serving.predict.submission import read_ids

PROG = "python -m serving.check_submission"


def main(argv: Sequence[str]) -> int:
    """Prints every problem found; 0 when there is none, 1 otherwise."""
    args = _parse(argv)
    submission = read_named(args.submission)
    required = read_named(args.sample, flag="--sample")
    sample = read_ids(required, args.id_column, source=args.sample)
    found = problems(
        submission,
        sample,
        id_column=args.id_column,
        value_column=args.value_column,
        header=read_table(required, ())[0],
    )
    for line in found:
        terminal.row("problem", f"{args.submission}: {line}")
    if found:
        return cli.EXIT_FAILURE
    terminal.row("submission", f"{args.submission}: {len(sample)} rows, as {args.sample} requires")
    return cli.EXIT_OK


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=PROG,
        description=__doc__,
        examples=f"  {PROG} submission.csv --sample sample_submission.csv",
        exit_codes={cli.EXIT_OK: "it answers the sample", cli.EXIT_FAILURE: "it does not"},
    )
    parser.add_argument("submission", help="the CSV file to check")
    parser.add_argument("--sample", required=True, help="CSV with the required ids, in order")
    parser.add_argument("--id_column", default="BraTS21ID", help="column of the ids")
    parser.add_argument(
        "--value_column",
        default=VALUE_COLUMN,
        help="column of a binary's probabilities; those of classes, findings and "
        "values are `probability_<name>` and `value`",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main, PROG)
