"""What lies in an input, a row for each series, with what its headers call it.

Rows hold texts as headers have them, which rules are made of; `shown` makes them fit for a terminal
or a table. For whoever has the input: rows hold descriptions and paths, and never get into a
dataset.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from beam_jobs.common.printable import printable
from beam_jobs.convert.patient_plans import Plans
from beam_jobs.convert.planning import Refusal
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.core.cohort.by_name.words import parts_of, stem_of
from beam_jobs.core.cohort.layout import DirectoryOwner, patient_of_file
from beam_jobs.core.cohort.plan import PatientPlan, SeriesRow
from beam_jobs.core.cohort.rules import dicom_modality, file_name, sequence_name
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.reasons import Reason, Rejection, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyRow:
    """One row of a survey: a series, or a file that is none.

    Attributes:
      patient: its id, "" when unknown.
      series_number: (0020,0011).
      description, protocol, sequence_name: of SeriesDescription (0008,103E), ProtocolName
        (0018,1030) and SequenceName (0018,0024) or PulseSequenceName (0018,9005).
      dicom_modality: Modality (0008,0060).
      modality: as recognised, "" when none.
      verdict, reason, detail: what would become of it; of repetitions, of the best.
      other_reasons: of the other repetitions and files, joined by ";".
      plane, obliquity, rows, columns, slices, row_spacing, column_spacing, slice_step: as in
        series.csv; mm and degrees; None unknown.
      repetitions: how many volumes of this geometry the series holds.
      scanning_sequence, image_type: values joined by "\\".
      echo_time, repetition_time, inversion_time: ms.
      flip_angle: degrees.
      b_value: s/mm².
      field_strength: tesla.
      contrast_agent: (0018,0010).
      manufacturer: (0008,0070).
      files: how many files it stands for, copies and rejected ones included.
      used: how many of them would be used.
      copies: how many of them are exact duplicates.
      rejected: how many of them are rejected.
      path: a file or directory that stands for it, relative to the input.
      file_name: of a NIfTI file, of which names are all that says what it is; in no table: it is
        the end of `path`.
      by_directory: whether a directory's name, not a rule, decides what it is.
      study: StudyInstanceUID (0020,000D), which is in no table.
    """

    patient: str
    series_number: int | None = None
    description: str = ""
    protocol: str = ""
    sequence_name: str = ""
    dicom_modality: str = ""
    modality: str = ""
    verdict: str
    reason: str
    detail: str
    other_reasons: str = ""
    plane: str = ""
    obliquity: float | None = None
    rows: int | None = None
    columns: int | None = None
    slices: int | None = None
    repetitions: int | None = None
    row_spacing: float | None = None
    column_spacing: float | None = None
    slice_step: float | None = None
    scanning_sequence: str = ""
    image_type: str = ""
    echo_time: float | None = None
    repetition_time: float | None = None
    inversion_time: float | None = None
    flip_angle: float | None = None
    b_value: float | None = None
    field_strength: float | None = None
    contrast_agent: str = ""
    manufacturer: str = ""
    files: int
    used: int = 0
    copies: int = 0
    rejected: int = 0
    path: str
    file_name: str = ""
    by_directory: bool = False
    study: str = ""

    @property
    def refusal(self) -> str:
        """Why its patient is refused although the series could be used, as "reason: detail"."""
        return self.detail if self.reason == Reason.PATIENT_REJECTED.value else ""

    @property
    def name(self) -> str:
        """What to call it: description, protocol, sequence name or NIfTI file's name, else ""."""
        return self.description or self.protocol or self.sequence_name or self.file_name

    @property
    def kind(self) -> str:
        """What others of its kind are called, too: the name, of NIfTI without the patient's."""
        if not self.file_name:
            return self.name
        stem = stem_of(self.file_name)
        subject, word, rest = parts_of(stem)
        if not word:
            begin = self.patient if subject == stem and self.patient else subject
            rest = stem.removeprefix(begin) if begin != stem else stem
        return re.sub(r"^ses-[A-Za-z0-9]+_", "", rest.lstrip("_-. ")) or stem

    @property
    def is_series(self) -> bool:
        """Whether it is a series; else files that are no image."""
        return bool(self.dicom_modality or self.slices or self.name)


SURVEY_COLUMNS = tuple(
    field.name
    for field in dataclasses.fields(SurveyRow)
    if field.name not in ("file_name", "by_directory", "study")
)


def survey_rows(plans: Plans, tables: TableWriter) -> list[SurveyRow]:
    """The rows of an input, by patient, series number and description.

    Args:
      plans: of the input.
      tables: says how patients and paths are written.
    """
    decided = {
        directory: owner.modality
        for directory, owner in plans.owners.items()
        if owner.modality is not None
    }
    rows = [_file_row(rejection, owner, tables) for rejection, owner in plans.rejections]
    for plan in plans.patients:
        rows += _patient_rows(plan, plans.refused.get(plan.key), tables, decided)
    return sorted(rows, key=_order)


def row_of_files(row: SeriesRow, tables: TableWriter) -> SurveyRow:
    """The row of files that were never looked into."""
    return SurveyRow(
        patient="",
        verdict=row.verdict,
        reason=row.reason,
        detail=row.detail,
        files=row.files,
        path=tables.path(row.path),
    )


def shown(row: SurveyRow) -> SurveyRow:
    """The row without control characters in its texts."""
    texts: dict[str, Any] = {
        name: printable(value)
        for name in SURVEY_COLUMNS
        if isinstance(value := getattr(row, name), str) and not value.isprintable()
    }
    return dataclasses.replace(row, **texts) if texts else row


def values_of(rows: Iterable[SurveyRow]) -> list[list[Any]]:
    """The rows' values of `SURVEY_COLUMNS`, none a formula to a spreadsheet."""
    return [[_no_formula(getattr(row, name)) for name in SURVEY_COLUMNS] for row in rows]


# What a spreadsheet computes instead of showing, full-width signs too; a number is shown as it is.
_FORMULA = re.compile(r"(?![+-]?[\d.]+$)[=+\-@\uff1d\uff0b\uff0d\uff20]")


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _order(row: SurveyRow) -> tuple[Any, ...]:
    number = row.series_number
    return (
        *(not row.patient, row.patient, not row.is_series, number is None, number or 0),
        *(row.name, row.echo_time or 0, row.path),
    )


def _file_row(rejection: Rejection, owner: DirectoryOwner | None, tables: TableWriter) -> SurveyRow:
    rejected = rejection.verdict is Verdict.REJECTED
    return SurveyRow(
        patient=printable(tables.patient(patient_of_file(rejection.paths[0], owner))),
        verdict=rejection.verdict.value,
        reason=rejection.reason.value,
        detail=rejection.detail,
        files=len(rejection.paths),
        rejected=len(rejection.paths) if rejected else 0,
        path=tables.path(rejection.paths[0]),
    )


def _patient_rows(
    plan: PatientPlan, refusal: Refusal, tables: TableWriter, decided: Mapping[str, str]
) -> list[SurveyRow]:
    """A row for each geometry of each series; repetitions, copies and rejects are counted in it."""
    found: dict[tuple[object, ...], list[tuple[SeriesRow, SliceHeader]]] = {}
    leftovers: dict[tuple[object, ...], list[tuple[SeriesRow, SliceHeader]]] = {}
    for row, header in zip(plan.rows, plan.firsts, strict=True):
        if refusal and row.verdict == Verdict.USED.value:
            row = dataclasses.replace(
                row,
                verdict=Verdict.UNUSED.value,
                reason=Reason.PATIENT_REJECTED.value,
                detail=f"{refusal[0].value}: {refusal[1]}",
            )
        file = header.path if header.is_nifti else ""  # which is a series, and has no UIDs
        series = (header.study_uid, header.series_uid, file)
        if row.slices is None:
            leftovers.setdefault(series, []).append((row, header))
        else:
            key: tuple[object, ...] = (
                *(*series, row.rows, row.columns, row.slices, row.plane, row.slice_step),
                *(row.row_spacing, row.column_spacing, header.echo_time, row.modality),
            )
            found.setdefault(key, []).append((row, header))
    rows = []
    for key, members in found.items():
        # What is left of the series is counted with the first of its geometries.
        left = leftovers.pop(key[:3], [])
        rows.append(_merged(members, left, tables, decided))
    for left in leftovers.values():
        by_reason: dict[str, list[tuple[SeriesRow, SliceHeader]]] = {}
        for item in left:
            by_reason.setdefault(item[0].reason, []).append(item)
        copies = by_reason.pop(Reason.EXACT_DUPLICATE.value, []) if len(by_reason) > 1 else []
        for _, refused in sorted(by_reason.items()):
            rows.append(_merged(refused, copies, tables, decided))
            copies = []
    return rows


def _merged(
    members: list[tuple[SeriesRow, SliceHeader]],
    left: list[tuple[SeriesRow, SliceHeader]],
    tables: TableWriter,
    decided: Mapping[str, str],
) -> SurveyRow:
    order = [verdict.value for verdict in Verdict]
    best, header = min(members, key=lambda item: order.index(item[0].verdict))
    every = [row for row, _ in members + left]
    others = sorted({row.reason for row in every} - {"", best.reason})

    def files(column: str, value: str) -> int:
        return sum(row.files for row in every if getattr(row, column) == value)

    return SurveyRow(
        patient=printable(tables.patient(best.patient)),
        series_number=header.series_number,
        description=header.series_description,
        protocol=header.protocol_name,
        sequence_name=sequence_name(header),
        dicom_modality=dicom_modality(header),
        modality=best.modality,
        verdict=best.verdict,
        reason=best.reason,
        detail=best.detail,
        other_reasons=";".join(others),
        plane=best.plane,
        obliquity=best.obliquity,
        rows=best.rows,
        columns=best.columns,
        slices=best.slices,
        repetitions=len(members) if best.slices is not None else None,
        row_spacing=best.row_spacing,
        column_spacing=best.column_spacing,
        slice_step=best.slice_step,
        scanning_sequence="\\".join(header.scanning_sequence),
        image_type="\\".join(header.image_type),
        echo_time=header.echo_time,
        repetition_time=header.repetition_time,
        inversion_time=header.inversion_time,
        flip_angle=header.flip_angle,
        b_value=header.b_value,
        field_strength=header.field_strength,
        contrast_agent=header.contrast_agent,
        manufacturer=header.manufacturer,
        files=sum(row.files for row in every),
        used=files("verdict", Verdict.USED.value),
        copies=files("reason", Reason.EXACT_DUPLICATE.value),
        rejected=files("verdict", Verdict.REJECTED.value),
        path=tables.path(best.path),
        file_name=file_name(best.path) if header.is_nifti else "",
        by_directory=_is_decided(best, header, decided),
        study=header.study_uid,
    )


def _is_decided(row: SeriesRow, header: SliceHeader, decided: Mapping[str, str]) -> bool:
    """Whether the series' directory says what it is; of NIfTI only where it names a modality."""
    modality = decided.get(row.path.rpartition("/")[0])
    return bool(modality) if header.is_nifti else modality is not None
