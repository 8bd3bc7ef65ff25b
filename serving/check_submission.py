"""Checks a submission against the sample it must answer: ids, order, numbers, range."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from beam_jobs.core import cli
from serving.submission import problems, read_ids

PROG = "python -m serving.check_submission"


def main(argv: Sequence[str]) -> int:
    """Prints every problem found; 0 when there is none, 1 otherwise."""
    args = _parse(argv)
    sample = read_ids(_read(args.sample), args.id_column, source=args.sample)
    found = problems(
        _read(args.submission),
        sample,
        source=args.submission,
        id_column=args.id_column,
        value_column=args.value_column,
    )
    for line in found:
        print(f"{args.submission}: {line}")
    if found:
        return cli.EXIT_FAILURE
    print(f"{args.submission}: {len(sample)} rows, as {args.sample} asks")
    return cli.EXIT_OK


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise cli.UsageError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise cli.UsageError(f"{path} is not UTF-8 text") from error


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(
        prog=PROG,
        description=__doc__,
        examples=f"  {PROG} submission.csv --sample sample_submission.csv",
    )
    parser.add_argument("submission", help="the CSV file to check")
    parser.add_argument("--sample", required=True, help="CSV with the ids asked for, in order")
    parser.add_argument("--id_column", default="BraTS21ID", help="column of the ids")
    parser.add_argument("--value_column", default="MGMT_value", help="column of the values")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main, PROG)
