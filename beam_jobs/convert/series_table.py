"""Rows of series.csv and rejects.csv: what was seen, what became of it, in words fit to be kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.common.csv_table import Lines, inert
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.names import name_below
from beam_jobs.common.printable import printable
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.layout import DirectoryOwner, patient_id_of, patient_of_file
from beam_jobs.core.cohort.plan import SeriesRow
from beam_jobs.core.reasons import Reason, Rejection, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class RejectRow:
    """One row of rejects.csv.

    Attributes:
      scope: "file", "series" or "patient".
      subject: the file (for a series, its first), relative to the input; a token under `hmac`.
      patient: its id as written, "" when unknown.
      modality: as recognised, "" when none.
      reason: the stable code.
      detail: what was required and what was found.
      files: how many files it stands for.
    """

    scope: str
    subject: str
    patient: str
    modality: str
    reason: str
    detail: str
    files: int


SERIES_COLUMNS = tuple(field.name for field in dataclasses.fields(SeriesRow))
REJECT_COLUMNS = tuple(field.name for field in dataclasses.fields(RejectRow))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableWriter:
    """Makes rows that name files and patients as the id policy allows.

    Attributes:
      root: the input directory; paths are written relative to it.
      id_policy: how patients and, with them, paths are named.
    """

    root: str
    id_policy: IdPolicy

    def patient(self, key: str) -> str:
        """The id to write for a patient key, "" of nobody."""
        patient_id = patient_id_of(key)
        return _utf8(self.id_policy.apply(patient_id)) if patient_id else ""

    def path(self, path: str) -> str:
        """The path to write: names of files and directories may be names of people."""
        return printable(self.id_policy.token(name_below(self.root, path)))

    def reject_file(self, rejection: Rejection, owner: DirectoryOwner | None) -> RejectRow:
        """The row of one refused file."""
        return RejectRow(
            scope="file",
            subject=self.path(rejection.paths[0]),
            patient=self.patient(patient_of_file(rejection.paths[0], owner)),
            modality=(owner.modality or "") if owner else "",
            reason=rejection.reason.value,
            detail=rejection.detail,
            files=len(rejection.paths),
        )

    def reject_patient(self, key: str, reason: Reason, detail: str) -> RejectRow:
        """The row of a refused patient; its series have rows of their own."""
        return RejectRow(
            scope="patient",
            subject=self.patient(key),
            patient=self.patient(key),
            modality="",
            reason=reason.value,
            detail=detail,
            files=0,
        )

    def rejects_of(self, rows: Iterable[SeriesRow]) -> list[RejectRow]:
        """The rows of refused series among rows still in the input's words."""
        return [
            RejectRow(
                scope="series",
                subject=self.path(row.path),
                patient=self.patient(row.patient),
                modality=row.modality,
                reason=row.reason,
                detail=row.detail,
                files=row.files,
            )
            for row in rows
            if row.verdict == Verdict.REJECTED.value
        ]

    def series(self, rows: Iterable[SeriesRow]) -> list[dict[str, Any]]:
        """The rows as series.csv has them."""
        return [
            {
                **dataclasses.asdict(row),
                "patient": self.patient(row.patient),
                "path": self.path(row.path),
            }
            for row in rows
        ]


def left_out_row(root: str, left_out: Mapping[str, int]) -> SeriesRow:
    """The one row of all files of an input that are never read, so that its sum is even.

    It names none of them: there may be one beside every image.

    Args:
      root: the input.
      left_out: as `files.Listing` has it.
    """
    return SeriesRow(
        patient="",
        path=files.join(root, "."),
        modality="",
        files=sum(left_out.values()),
        verdict=Verdict.UNUSED.value,
        reason=Reason.NOT_INPUT.value,
        detail=", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items())),
    )


def _utf8(name: str) -> str:
    """The name, with bytes that are not UTF-8 in escapes; else an id stays what records call it."""
    return name.encode(errors="backslashreplace").decode()


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV text, rows sorted, so that equal content is equal text; no spreadsheet runs its cells."""
    import pandas as pd  # takes as long to import as a command's --help takes

    # As objects: a column of whole numbers and blanks must not become one of fractions.
    table = pd.DataFrame(list(rows), columns=list(columns), dtype=object)
    table = table.sort_values(list(columns[:6]), key=lambda column: column.map(str), kind="stable")
    cells = [[inert(value) for value in row] for row in table.itertuples(index=False, name=None)]
    table = pd.DataFrame(cells, columns=list(columns), dtype=object)  # `map` would make fractions
    stream = Lines(newline="")
    table.to_csv(stream, index=False, lineterminator=stream.TERMINATOR)
    return stream.getvalue()
