"""A directory's series and their verdicts, without converting: `python -m beam_jobs.survey DIR`."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m beam_jobs.survey")

import argparse
import os
from collections import Counter
from collections.abc import Sequence

from beam_jobs.common import cli, csv_table, terminal
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb.flags import Spool, add_spool_flags
from beam_jobs.convert.patient_plans import listing_of, plan_patients, require_known
from beam_jobs.convert.series_table import TableWriter, left_out_row
from beam_jobs.core.cohort.ids import PATIENT_FROM_FLAG, IdPolicy
from beam_jobs.core.cohort.layout import require_directories
from beam_jobs.core.cohort.rules import ModalityRule, read_rules_file
from beam_jobs.core.preprocess import DEFAULT_MODALITIES
from beam_jobs.core.reasons import SENTENCES, Reason, Verdict
from beam_jobs.inventory import starter_rules
from beam_jobs.inventory.listing import kinds, listing
from beam_jobs.inventory.rows import (
    SURVEY_COLUMNS,
    SurveyRow,
    row_of_files,
    shown,
    survey_rows,
    values_of,
)

PROG = "python -m beam_jobs.survey"
EXAMPLES = """\
  # What is in there, and what would the conversion use?
  python -m beam_jobs.survey cohort/train

  # Every series with its geometry, times, texts and path, as a table for a spreadsheet.
  python -m beam_jobs.survey heap --output series.csv

  # Rules to begin with, for series that no rule knows: name their modality, look again, convert.
  python -m beam_jobs.survey heap --write_rules rules.json
  python -m beam_jobs.survey heap --series_rules rules.json
  python -m beam_jobs.dicom_to_tfrecord --input heap --series_rules rules.json --output dataset
"""
_SHOWN = 100  # series on the terminal; the CSV has all


def main(argv: Sequence[str]) -> int:
    """Flags to rows to lines."""
    parser = cli.Parser(
        prog=PROG,
        description="Lists the series of a directory by patient: what headers (of NIfTI: names) "
        "call them, what the conversion would make of each, and why. Reads headers, and pixels "
        "only to tell copies; writes nothing but --output and --write_rules. Both hold "
        "descriptions and names of files as they stand in the input, which may be names of people: "
        "they are for you, and get into no dataset.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add(
        "directory",
        metavar="DIR",
        help="directory or archive of DICOM or NIfTI, anywhere; or a search in a PACS (dicomweb+https://)",
    )
    add("--modalities", **cli.LIST, default=",".join(DEFAULT_MODALITIES), help="wanted modalities")
    add("--series_rules", help="JSON file of rules that give modalities by header or name")
    add("--patient_from", **PATIENT_FROM_FLAG)
    add("--output", metavar="FILE", help="write every row as CSV: a series each, or a refused file")
    add(
        "--write_rules",
        metavar="FILE",
        help="write a new --series_rules file to begin with: a rule for each kind of series that "
        'no rule knows, for you to replace its "?" by a modality',
    )
    add_spool_flags(parser)
    flags = parser.parse_args(argv)
    root = files.trimmed(flags.directory)
    spool = Spool(root, directory=flags.spool, refetch=flags.refetch)
    require_directories(root, flags.patient_from or "")
    modalities = cli.items(flags.modalities)
    rules = read_rules_file(flags.series_rules, (*modalities, *DEFAULT_MODALITIES))
    _check_outputs(flags)
    spool.begin()
    found = listing_of(root, name=files.told(root))
    patient_from = flags.patient_from or ""
    paths = [entry.path for entry in found.entries]
    require_known(modalities, rules, paths, root=root, patient_from=patient_from)
    rows = survey(found.entries, modalities, rules, root=root, patient_from=patient_from)
    if found.left_out:
        tables = TableWriter(root=root, id_policy=IdPolicy())
        rows.append(row_of_files(left_out_row(root, found.left_out), tables))
    seen = [shown(row) for row in rows]
    _print(seen)
    spool.tell()
    if flags.output:
        csv_table.write_table(flags.output, SURVEY_COLUMNS, values_of(seen))
        terminal.row("table", flags.output)
    if flags.write_rules:
        begun = starter_rules.starter_rules(rows)
        files.write_text(flags.write_rules, starter_rules.to_json(begun))
        terminal.row("rules", f"{flags.write_rules}: {len(begun)}")
        terminal.row("", _what_of_rules(rows, begun), folded=True)
    return cli.EXIT_OK


def _what_of_rules(rows: Sequence[SurveyRow], begun: Sequence[object]) -> str:
    hint = (
        'each passed over until you name its modality in place of "?"; rules travel in datasets '
        "made with them, so take out what names people or places"
    )
    if not begun:
        hint = "rules know every series, or directories decide"
    if untold := starter_rules.without_rule(rows):
        none = f"none can be made of {untold} series without text and times"
        hint = f"{hint}; {none}" if begun else none
    return hint


def _check_outputs(flags: argparse.Namespace) -> None:
    """Refuses, before anything is read, an output that could not or must not be written."""
    named = {
        name: path
        for name in ("output", "write_rules")
        if (path := getattr(flags, name)) is not None
    }
    for name, path in named.items():
        files.require_writable(path)
        if not path or (not files.is_remote(path) and os.path.isdir(path)):
            raise cli.UsageError(f"--{name}: {path or 'an empty name'} is no file's name")
    # Somebody may have named modalities in it.
    if flags.write_rules and files.exists(flags.write_rules):
        raise cli.UsageError(f"--write_rules: {flags.write_rules} exists; name a new file")
    others = {"write_rules": flags.write_rules, "series_rules": flags.series_rules}
    for name, path in others.items():
        if flags.output and path and _place(path) == _place(flags.output):
            raise cli.UsageError(f"--output and --{name} name the same file: {path}")


def _place(path: str) -> str:
    return path if files.is_remote(path) else os.path.realpath(path)


def survey(
    found: Sequence[files.Entry],
    modalities: Sequence[str],
    rules: Sequence[ModalityRule] = (),
    *,
    root: str = "",
    patient_from: str = "",
) -> list[SurveyRow]:
    """A row for every series among the files found, and one for every file that is no image.

    What pixels alone show (a black series, pixels that do not decode) is not looked at.
    """
    plans = plan_patients(found, modalities, rules, root=root, patient_from=patient_from)
    return survey_rows(plans, TableWriter(root=root, id_policy=IdPolicy()))


def _print(rows: Sequence[SurveyRow]) -> None:
    terminal.show_lines(listing(rows, terminal.width(), _SHOWN))
    used = Counter(row.modality for row in rows if row.verdict == Verdict.USED.value)
    patients = len({row.patient for row in rows} - {""})
    with_some = len({row.patient for row in rows if row.verdict == Verdict.USED.value})
    if used:
        of = f"{patients} patient{'' if patients == 1 else 's'}"
        if with_some < patients:
            of = f"{with_some} of {of}"
        terminal.row("used", f"{_each(used)}, of {of}", folded=True)
    if unknown := kinds(rows):
        terminal.row("unknown", "; ".join(unknown), folded=True)
    reasons = Counter(
        reason for row in rows for reason in (row.reason, *row.other_reasons.split(";")) if reason
    )
    # Of patients who are refused, once each.
    reasons.update(
        refusal.partition(":")[0]
        for _, refusal in {(row.patient, row.refusal) for row in rows if row.refusal}
    )
    for reason, count in sorted(reasons.items()):
        terminal.row("reason", f"{reason} {count}: {SENTENCES[Reason(reason)]}", folded=True)
    files_, used_, rejected = (
        sum(getattr(row, name) for row in rows) for name in ("files", "used", "rejected")
    )
    terminal.row(
        "files",
        f"{files_} = {used_} used + {files_ - used_ - rejected} unused by rule "
        f"+ {rejected} rejected",
        folded=True,
    )


def _each(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    cli.run(main, PROG)
