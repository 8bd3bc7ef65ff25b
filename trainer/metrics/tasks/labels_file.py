"""Labels read from a CSV of their own: one a patient, or one of each finding."""

from __future__ import annotations

from collections.abc import Sequence

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.patient_column import is_unknown, names_among
from beam_jobs.core.cohort.target import Target
from trainer.metrics.predictions import column_of, read_rows
from trainer.metrics.tasks.answers_table import target_of_columns

_DEFAULT = "MGMT_value"


def read_labels(
    file: files.StrPath,
    wanted: Sequence[str] | None,
    *,
    id_columns: Sequence[str],
    predictions: files.StrPath,
    score_columns: Sequence[str],
    target: Target | None = None,
) -> dict[str, str] | dict[str, tuple[str, ...]]:
    """Patient key → text of its label, or a text of each finding in the predictions' order.

    Args:
      file: the CSV of labels.
      wanted: its columns, also several in one text with commas between, of findings in their
        order or called as they are; None takes `MGMT_value`, or of findings the columns called as
        they are.
      id_columns: names the id's column may have, the first that exists is taken.
      predictions: the file whose columns say what labels there are.
      score_columns, target: as `predictions.read_predictions`.

    Raises:
      UsageError: as `read_rows`, more or fewer columns than labels, or a finding's column where
        another one's is asked for.
      ContractError: as `read_column`, or columns of classes or findings that no target has.
    """
    columns, _ = read_rows(predictions)
    if wanted:
        wanted = names_among(wanted, read_rows(file)[0])
    found = target_of_columns(
        columns,
        score_columns,
        one_label=wanted is not None and len(wanted) == 1,
        known=target,
        where=f"{predictions}: ",
    )
    findings = found.names if found.task == "multilabel" else ()
    names = wanted or findings or (_DEFAULT,)
    if len(names) != max(1, len(findings)):
        needed = f"one for each of {', '.join(findings)}" if findings else "one"
        raise UsageError(
            f"--label_column: {len(names)} columns, {shown(needed)[1:-1]} required by {predictions}"
        )
    if findings:
        names = _in_order(names, findings, predictions)
    return (
        _read_columns(file, id_columns, names) if findings else read_column(file, id_columns, names)
    )


def _in_order(
    names: Sequence[str], findings: Sequence[str], predictions: files.StrPath
) -> Sequence[str]:
    """The columns in the findings' order: by their names where all are, else as they are given."""
    if set(names) == set(findings):
        return findings
    for name, finding in zip(names, findings, strict=True):
        if name != finding and name in findings:
            raise UsageError(
                f"--label_column: {shown(name)[1:-1]} stands where {predictions} has "
                f"{shown(finding)[1:-1]}: the order of {shown(', '.join(findings))[1:-1]} required"
            )
    return names


def read_column(
    file: files.StrPath, id_columns: Sequence[str], columns: Sequence[str]
) -> dict[str, str]:
    """Patient key → text of a CSV's column; the first of the given names that exists is taken.

    The key is `normalised_id`: tools that read "00005" as a number write "5".

    Raises:
      UsageError: as `read_rows`.
      ContractError: an id that stands twice, or two ids that differ in leading zeros only.
    """
    found, rows = read_rows(file, id_columns, columns)
    column = column_of(file, found, columns)
    by_patient = _by_patient(file, found, rows, id_columns)
    return {key: _text(row[column]) for key, row in by_patient.items()}


def _read_columns(
    file: files.StrPath, id_columns: Sequence[str], columns: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Patient key → texts of all of these columns of a CSV, as `read_column`."""
    found, rows = read_rows(file, id_columns, *((name,) for name in columns))
    by_patient = _by_patient(file, found, rows, id_columns)
    return {key: tuple(_text(row[name]) for name in columns) for key, row in by_patient.items()}


def _text(cell: str) -> str:
    """A cell's text; "" where it says that nothing is known, as conversion takes it."""
    return "" if is_unknown(cell) else cell


def _by_patient(
    file: files.StrPath,
    columns: Sequence[str],
    rows: Sequence[dict[str, str]],
    id_columns: Sequence[str],
) -> dict[str, dict[str, str]]:
    id_column = column_of(file, columns, id_columns)
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        key = normalised_id(row[id_column])
        if key in found:
            raise ContractError(
                f"{file}: ambiguous ids {shown(found[key][id_column])} and {shown(row[id_column])}"
            )
        found[key] = row
    return found
