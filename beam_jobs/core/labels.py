"""Patients' labels, found under any spelling of their ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import IO

import pandas as pd

from beam_jobs.core.cli import UsageError
from beam_jobs.core.ids import normalised_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Class index of each patient, found under any spelling of the id.

    Attributes:
      by_spelling: id as the file spells it to class index.
    """

    by_spelling: Mapping[str, int]

    def __post_init__(self) -> None:
        spellings: dict[str, list[str]] = {}
        for spelling in self.by_spelling:
            spellings.setdefault(normalised_id(spelling), []).append(spelling)
        object.__setattr__(self, "_spellings", spellings)

    def __len__(self) -> int:
        return len(self.by_spelling)

    def spelling_of(self, patient_id: str) -> str | None:
        """The labels' spelling of a patient, None when they do not speak of it.

        Raises:
          UsageError: several labelled ids could be meant (`5` and `005` for `00005`).
        """
        if patient_id in self.by_spelling:
            return patient_id
        found: list[str] = getattr(self, "_spellings").get(normalised_id(patient_id), [])  # noqa: B009
        if len(found) > 1:
            raise UsageError(
                f"patient {patient_id} is ambiguous: the labels speak of {', '.join(found)}"
            )
        return found[0] if found else None


def read_labels(file: IO[bytes], *, name: str, id_column: str, label_column: str) -> Labels:
    """Reads a labels CSV.

    Args:
      file: the CSV, with a header row.
      name: what to call it in messages.
      id_column: column of patient ids, read as text.
      label_column: column of class indices 0 or 1; an empty cell means unknown.

    Raises:
      UsageError: not a CSV, a column is not there, a patient stands twice, or a label is not 0
        or 1.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(f"labels {name} cannot be read as CSV: {error}") from error
    for column in (id_column, label_column):
        if column not in table.columns:
            raise UsageError(
                f"labels {name} have no column {column!r}; columns: {', '.join(table.columns)}"
            )
    labels: dict[str, int] = {}
    for patient_id, value in zip(table[id_column], table[label_column], strict=True):
        patient_id, value = patient_id.strip(), value.strip()
        if patient_id in labels:
            raise UsageError(f"labels {name} have patient {patient_id} twice")
        if value in ("", "nan", "NaN"):
            continue
        if value not in ("0", "1", "0.0", "1.0"):
            raise UsageError(
                f"labels {name}: label of patient {patient_id} is {value!r}, not 0 or 1"
            )
        labels[patient_id] = int(float(value))
    if not labels:
        raise UsageError(f"labels {name} hold no labelled patient")
    return Labels(by_spelling=labels)
