"""A dataset as one page to look at: `python -m beam_jobs.report DATASET`."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m beam_jobs.report")

import os
from collections.abc import Sequence

from beam_jobs.common import cli, terminal
from beam_jobs.common.files import interface as files
from beam_jobs.convert.ours import REPORT_NAME
from beam_jobs.report.make import make_report

PROG = "python -m beam_jobs.report"
EXAMPLES = """\
  # dataset/report.html: one file that opens offline, in any browser.
  python -m beam_jobs.report dataset

  # What drifted since the last cohort?
  python -m beam_jobs.report dataset --against older_dataset --output drift.html

"""


def main(argv: Sequence[str]) -> int:
    """Flags to a page to two lines."""
    parser = cli.Parser(
        prog=PROG,
        description="Writes one self-contained HTML page about a dataset: cohort, series, "
        "intensities, rejects and what to do about them, and every patient's slices.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="directory with a manifest.json")
    add("--output", metavar="FILE", help=f"page to write (default: DATASET/{REPORT_NAME})")
    add("--against", metavar="OTHER", help="another dataset, to see what drifted")
    add("--workers", type=int, default=os.cpu_count() or 1, help="shards read at a time")
    flags = parser.parse_args(argv)
    if flags.workers < 1:
        raise cli.UsageError("--workers must be at least 1")
    if flags.output is not None:
        _require_file_name(flags.output)
    report = make_report(
        flags.dataset,
        output=flags.output,
        against=flags.against,
        workers=flags.workers,
    )
    marked = "" if report.marked is None else f", {report.marked} differences marked"
    terminal.row("patients", f"{report.patients}{marked}")
    terminal.row("report", f"{report.path} ({report.bytes / 1e6:.1f} MB)")
    return cli.EXIT_OK


def _require_file_name(path: str) -> None:
    if not path or path.endswith("/"):
        raise cli.UsageError(f"--output {path or 'is empty'}: a file's name is required")
    files.require_writable(path)
    if files.is_dir(path):
        raise cli.UsageError(f"--output {path} is a directory: a file's name is required")


if __name__ == "__main__":
    cli.run(main, PROG)
