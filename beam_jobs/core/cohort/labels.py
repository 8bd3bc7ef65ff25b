"""Patients' labels, found under any spelling of their ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from beam_jobs.common.cli import UsageError
from beam_jobs.common.csv_table import read_table
from beam_jobs.core.cohort.ids import normalised_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Class index of each patient, found under any spelling of the id.

    Attributes:
      by_spelling: id as the file spells it to class index.
    """

    by_spelling: Mapping[str, int]
    _spellings: Mapping[str, list[str]] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spellings: dict[str, list[str]] = {}
        for spelling in self.by_spelling:
            spellings.setdefault(normalised_id(spelling), []).append(spelling)
        object.__setattr__(self, "_spellings", spellings)

    def __len__(self) -> int:
        return len(self.by_spelling)

    def spelling_of(self, patient_id: str) -> str | None:
        """The labels' spelling of a patient, None when they do not list it.

        Raises:
          UsageError: several labelled ids could be meant (`5` and `005` for `00005`).
        """
        if patient_id in self.by_spelling:
            return patient_id
        found = self._spellings.get(normalised_id(patient_id), [])
        if len(found) > 1:
            raise UsageError(
                f"patient {patient_id} is ambiguous: the labels list {', '.join(found)}"
            )
        return found[0] if found else None


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
    source = f"labels {name}"
    try:
        _, rows = read_table(text, (id_column, label_column))
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    labels: dict[str, int] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        patient_id, value = row[id_column], row[label_column]
        if not patient_id:
            raise UsageError(f"{source} line {line}: the patient id is empty")
        if patient_id in lines:
            raise UsageError(
                f"{source} line {line}: the patient of line {lines[patient_id]} stands twice"
            )
        lines[patient_id] = line
        if value.lower() in ("", "nan"):
            continue
        if value not in ("0", "1", "0.0", "1.0"):
            raise UsageError(f"{source} line {line}: the label is {value!r}, not 0 or 1")
        labels[patient_id] = int(float(value))
    if not labels:
        raise UsageError(f"{source} hold no labelled patient")
    return Labels(by_spelling=labels)
