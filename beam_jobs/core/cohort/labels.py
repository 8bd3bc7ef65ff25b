"""Patients' labels, groups and given folds, found under any spelling of their ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown
from beam_jobs.common.csv_table import read_table
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.manifest import FOLDS_MOST, TEST, Place

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatientColumn(Generic[Value]):
    """What a file says of each patient, found under any spelling of the id.

    Attributes:
      by_spelling: id as the file spells it to its value.
      source: what messages call the file.
    """

    by_spelling: Mapping[str, Value]
    source: str = "the labels"
    _spellings: Mapping[str, list[str]] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spellings: dict[str, list[str]] = {}
        for spelling in self.by_spelling:
            spellings.setdefault(normalised_id(spelling), []).append(spelling)
        object.__setattr__(self, "_spellings", spellings)

    def __len__(self) -> int:
        return len(self.by_spelling)

    def spelling_of(self, patient_id: str) -> str | None:
        """The file's spelling of a patient, None when it does not list it.

        Raises:
          UsageError: several of its ids could be meant (`5` and `005` for `00005`).
        """
        if patient_id in self.by_spelling:
            return patient_id
        found = self._spellings.get(normalised_id(patient_id), [])
        if len(found) > 1:
            listed = ", ".join(found)
            raise UsageError(f"patient {patient_id} is ambiguous: {self.source} list {listed}")
        return found[0] if found else None


Labels = PatientColumn[int]


def read_labels(text: str, *, name: str, id_column: str, label_column: str) -> Labels:
    """Reads a labels CSV.

    Messages name lines, not patients: they are shown in `hmac` runs too.

    Args:
      text: the CSV, with a header row.
      name: what to call it in messages.
      id_column: column of patient ids, read as text.
      label_column: column of class indices 0 or 1; an empty cell means unknown.

    Raises:
      UsageError: not a CSV, a column is not there, an id is empty or stands twice, or a label is
        not 0 or 1.
    """

    def label_of(cell: str) -> int | None:
        if cell.lower() in ("", "nan"):
            return None
        if cell not in ("0", "1", "0.0", "1.0"):
            raise ValueError(f"the label is {shown(cell)}, not 0 or 1")
        return int(float(cell))

    source = f"labels {name}"
    cells = _read_column(text, source, (id_column,), label_column, label_of)
    labels = {patient_id: label for patient_id, label in cells.items() if label is not None}
    if not labels:
        raise UsageError(f"{source} hold no labelled patient")
    return Labels(by_spelling=labels)


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
    found = _read_column(text, source, id_columns, group_column, str, normalised_id)
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
    found = _read_column(text, source, id_columns, "fold", place_of, normalised_id)
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
    patient_of: Callable[[str], str] = str,
) -> dict[str, Value]:
    """Patient id, as the CSV spells it, to the parsed cell of `column`.

    Args:
      patient_of: id to what no two lines may share.

    Raises:
      UsageError: not a CSV, a column is not there, an id is empty or stands twice, or `parse`
        raises ValueError for a cell; the message names the line.
    """
    try:
        header = read_table(text, ())[0]  # the rows are many
        id_column = next((name for name in id_columns if name in header), id_columns[0])
        _, rows = read_table(text, (id_column, column))
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    values: dict[str, Value] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        patient_id = row[id_column]
        if not patient_id:
            raise UsageError(f"{source} line {line}: the patient id is empty")
        if (known := lines.setdefault(patient_of(patient_id), line)) != line:
            raise UsageError(f"{source} line {line}: the patient of line {known} stands twice")
        try:
            values[patient_id] = parse(row[column])
        except ValueError as error:
            raise UsageError(f"{source} line {line}: {error}") from error
    return values
