"""Patients' labels, groups and given folds, found under any spelling of their ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.patient_column import PatientColumn, Value, read_columns
from beam_jobs.core.cohort.target import PLAIN, Label, Target
from beam_jobs.core.cohort.task_choice import Wanted, reader_of, said_of, target_of
from beam_jobs.core.manifest import FOLDS_MOST, TEST, Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels(PatientColumn[Label]):
    """The label of each labelled patient.

    Attributes:
      target: what the labels say.
      columns: they stand in.
      choice: how the target was chosen, in words; "" of labels 0 and 1.
    """

    target: Target = PLAIN
    columns: tuple[str, ...] = ()
    choice: str = ""


def read_labels(
    text: str,
    *,
    name: str,
    id_column: str,
    label_column: str | Sequence[str],
    wanted: Wanted | Target | None = None,
) -> Labels:
    """Reads a labels CSV.

    Messages name lines, not patients: they are shown in `hmac` runs too.

    Args:
      text: the CSV, with a header row.
      name: what to call it in messages.
      id_column: column of patient ids, read as text.
      label_column: column of labels, or several of a multilabel; an empty cell means unknown.
      wanted: what the user says of them; or a target that is known, whose labels they are.

    Raises:
      UsageError: not a CSV, a column is not there, an id is empty or stands twice, or the labels
        are none that can be learnt; the message says what to do.
    """
    source = f"labels {name}"
    columns = (label_column,) if isinstance(label_column, str) else label_column
    table = read_columns(text, source, (id_column,), columns)
    if not table.columns:
        raise UsageError(f"{source}: --label_column names no column")
    table.require_apart()
    if isinstance(wanted, Target):
        target, choice = wanted, ""
    else:
        wanted = wanted or Wanted()
        try:
            cells = [(line, row) for line, _, row in table.rows]
            target = target_of(table.columns, cells, wanted)
        except ValueError as error:
            raise UsageError(f"{source}: {error}") from error
        choice = said_of(target, wanted, cells)
    found = table.values(reader_of(target))
    labels = {patient_id: label for patient_id, label in found.items() if label is not None}
    if not labels:
        raise UsageError(f"{source} hold no labelled patient")
    return Labels(by_spelling=labels, target=target, columns=table.columns, choice=choice)


def read_groups(
    text: str, *, name: str, id_columns: tuple[str, ...], group_column: str
) -> PatientColumn[str]:
    """Reads which group (site, scanner, family) each patient is of.

    Args:
      text: the CSV, with a header row.
      name: what to call it in messages.
      id_columns: columns of patient ids; the first that is there is read.
      group_column: column of groups; an empty cell means that the patient stands alone.

    Raises:
      UsageError: not a CSV, a column is not there, or an id is empty or stands twice.
    """
    source = f"groups {name}"
    found = _read_column(text, source, id_columns, group_column, str)
    if not found:
        raise UsageError(f"{source} hold no patient")
    return PatientColumn(by_spelling=found, source=source)


def read_folds(text: str, *, name: str, id_columns: tuple[str, ...]) -> PatientColumn[Place]:
    """Reads which fold each patient stands in, from the column `fold`: 0, 1, ... or `test`.

    Args:
      text: the CSV, with a header row.
      name: what to call it in messages.
      id_columns: columns of patient ids; the first that is there is read.

    Raises:
      UsageError: not a CSV, a column is not there, an id is empty or stands twice, a fold is
        neither a whole number nor `test`, there are fewer than two, or one between them is empty.
    """

    def place_of(cell: str) -> Place:
        if cell == TEST:
            return TEST
        number = cell.removesuffix(".0")
        if not (number.isascii() and number.isdigit()):
            raise ValueError(f"the fold is {shown(cell)}, neither 0, 1, ... nor {TEST}")
        if len(number) > len(str(FOLDS_MOST)) or int(number) >= FOLDS_MOST:
            raise ValueError(f"the fold is {shown(cell)}, not below {FOLDS_MOST}")
        return int(number)

    source = f"folds {name}"
    found = _read_column(text, source, id_columns, "fold", place_of)
    folds = {place for place in found.values() if isinstance(place, int)}
    if len(folds) < 2:
        raise UsageError(f"{source}: {len(folds)} folds named, at least 2 required")
    gap = next((fold for fold in range(max(folds)) if fold not in folds), None)
    if gap is not None:
        raise UsageError(f"{source}: fold {gap} has no patient, fold {max(folds)} has")
    return PatientColumn(by_spelling=found, source=source)


def _read_column(
    text: str,
    source: str,
    id_columns: tuple[str, ...],
    column: str,
    parse: Callable[[str], Value],
) -> dict[str, Value]:
    """Patient id, as the CSV spells it, to the parsed cell of `column`.

    Raises:
      UsageError: as `read_columns`, or `parse` raises ValueError for a cell.
    """
    table = read_columns(text, source, id_columns, (column,), normalised_id)
    return table.values(lambda cells: parse(cells[0]))
