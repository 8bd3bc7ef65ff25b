"""A directory's series and their verdicts, without converting: `python -m beam_jobs.survey DIR`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from beam_jobs.common import cli, terminal
from beam_jobs.common.files import interface as files
from beam_jobs.convert.patient_plans import listing_of, plan_patients
from beam_jobs.convert.series_table import SERIES_COLUMNS, TableWriter, left_out_row, to_csv
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.layout import DirectoryOwner
from beam_jobs.core.cohort.plan import SeriesRow
from beam_jobs.core.cohort.rules import ModalityRule, read_rules_file
from beam_jobs.core.preprocess import DEFAULT_MODALITIES
from beam_jobs.core.reasons import SENTENCES, Reason, Rejection, Verdict

PROG = "python -m beam_jobs.survey"
EXAMPLES = """\
  # What is in there, and what would the conversion use?
  python -m beam_jobs.survey cohort/train

  # The same as a table for a spreadsheet, modalities by rules of one's own.
  python -m beam_jobs.survey heap --modalities T1wCE --series_rules rules.json --output series.csv
"""


def main(argv: Sequence[str]) -> int:
    """Flags to rows to a printed table."""
    parser = cli.Parser(
        prog=PROG,
        description="Lists the series of a directory, what the conversion would make of each and "
        "why. Reads headers only; writes nothing but --output.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("directory", metavar="DIR", help="directory or archive of DICOM files, anywhere")
    add("--modalities", **cli.LIST, default=",".join(DEFAULT_MODALITIES), help="wanted modalities")
    add("--series_rules", help="JSON file of rules that give modalities by header")
    add("--output", metavar="FILE", help="write the rows as CSV too")
    flags = parser.parse_args(argv)
    root = files.trimmed(flags.directory)
    if flags.output:
        files.require_writable(flags.output)
    rules = read_rules_file(flags.series_rules)
    found = listing_of(root, name=root)
    rows = survey(found.entries, cli.items(flags.modalities), rules, root=root)
    if found.left_out:
        rows.append(left_out_row(root, found.left_out))
    tables = TableWriter(root=root, id_policy=IdPolicy())
    if flags.output:
        files.write_text(flags.output, to_csv(SERIES_COLUMNS, tables.series(rows)))
    _print(rows, tables)
    if flags.output:
        terminal.row("table", flags.output)
    return cli.EXIT_OK


def survey(
    found: Sequence[files.Entry],
    modalities: Sequence[str],
    rules: Sequence[ModalityRule] = (),
    *,
    root: str = "",
) -> list[SeriesRow]:
    """A row for every series among the files found, and one for every file that is no image.

    What pixels alone show (a black series, pixels that do not decode) is not looked at.
    """
    plans = plan_patients(found, modalities, rules, root=root)
    rows = [_file_row(rejection, owner) for rejection, owner in plans.rejections]
    return rows + [row for plan in plans.patients for row in plan.rows]


def _file_row(rejection: Rejection, owner: DirectoryOwner | None) -> SeriesRow:
    return SeriesRow(
        patient=owner.patient if owner else "",
        path=rejection.paths[0],
        modality=owner.modality if owner else "",
        files=len(rejection.paths),
        verdict=rejection.verdict.value,
        reason=rejection.reason.value,
        detail=rejection.detail,
    )


def _print(rows: Sequence[SeriesRow], tables: TableWriter) -> None:
    table = Table("patient", "modality", "plane", "slices", "matrix", "spacing mm", "verdict")
    for row in sorted(rows, key=lambda row: (tables.patient(row.patient), row.modality)):
        spacing = (row.row_spacing, row.column_spacing, row.slice_step)
        table.add_row(
            tables.patient(row.patient) or tables.path(row.path),
            row.modality,
            f"{row.plane} {row.obliquity:.0f}°" if row.obliquity else row.plane,
            str(row.slices or row.files),
            f"{row.rows}×{row.columns}" if row.rows else "",
            " × ".join(f"{step:.3g}" for step in spacing if step is not None),
            row.verdict if row.verdict == Verdict.USED.value else f"{row.verdict}: {row.reason}",
        )
    terminal.show(table, width=200)
    for reason, count in sorted(Counter(row.reason for row in rows if row.reason).items()):
        terminal.row("reason", f"{reason} {count}: {SENTENCES[Reason(reason)]}")
    verdicts: Counter[str] = Counter()
    for row in rows:
        verdicts[row.verdict] += row.files
    terminal.row(
        "files",
        f"{sum(verdicts.values())} = {verdicts['used']} used + {verdicts['unused']} unused by rule "
        f"+ {verdicts['rejected']} rejected",
    )


if __name__ == "__main__":
    cli.run(main, PROG)
