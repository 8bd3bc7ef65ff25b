"""What is made of a patient: the series chosen for each modality, and the reason for every other.

The directory layout decides the modality where there is one, else the header rules.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pydicom import config
from pydicom.uid import UID

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import is_placeholder, normalised_id
from beam_jobs.core.cohort.layout import DirectoryOwner, why_nobodys
from beam_jobs.core.cohort.modality import combines_echoes, is_mask, modality_of, why_unknown
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.nifti.names import NIFTI_1, NIFTI_2
from beam_jobs.core.reasons import UNUSED_BY_RULE, Reason, Verdict
from beam_jobs.core.series import Series, assemble

# Where a user's own choice of `ids.PATIENT_FROM` makes a patient of it, all of it is one person's.
_WHOLE = {"directory": "the directory", "study": "the study"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """One row of series.csv: a series seen, and its verdict.

    Attributes:
      patient: key of the patient.
      path: a directory or file that stands for the series.
      modality: as recognised, "" when none.
      plane, obliquity, rows, columns, slices, row_spacing, column_spacing, slice_step,
      thickness, field_strength: geometry and acquisition; mm, degrees and tesla; None unknown.
      frame_of_reference: number of the patient's distinct frame of reference it lies in, from 1.
      blank_slices: how many of the slices are blank (see `pixels.BlankTally`); None where the
        pixels were not all read.
      files: how many files it stands for.
      verdict, reason, detail: what became of it; reason "" when used.
    """

    patient: str
    path: str
    modality: str
    files: int
    verdict: str
    reason: str
    detail: str
    plane: str = ""
    obliquity: float | None = None
    rows: int | None = None
    columns: int | None = None
    slices: int | None = None
    row_spacing: float | None = None
    column_spacing: float | None = None
    slice_step: float | None = None
    thickness: float | None = None
    field_strength: float | None = None
    transfer_syntax: str = ""
    even_steps: bool | None = None
    geometry_known: bool | None = None
    frame_of_reference: int | None = None
    blank_slices: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PatientPlan:
    """What will be made of one patient.

    Attributes:
      key: as `patient_of` gives it.
      series: the series chosen for each modality.
      rows: a row for every series of the patient, the chosen ones first, as "used".
      firsts: the first image of each row.
      refusal: why nothing can be made of the patient, None when something can. A series that is
        nobody's has a plan of its own, which is refused.
      person: the one PatientID, normalised, in all of a study that was chosen as the patient; "" of
        any other patient, and where placeholders hide it.
    """

    key: str
    series: dict[str, Series]
    rows: tuple[SeriesRow, ...]
    firsts: tuple[SliceHeader, ...]
    refusal: tuple[Reason, str] | None
    person: str = ""


def plan_patient(
    key: str,
    headers: Iterable[SliceHeader],
    modalities: Sequence[str],
    *,
    owners: Mapping[str, DirectoryOwner] | None = None,
    rules: Sequence[ModalityRule] = (),
    patient_from: str = "",
) -> PatientPlan:
    """Chooses a patient's series: one for each modality, every other with the reason why not.

    Among several candidates for a modality the first of these wins: geometry known, most slices,
    DICOM before NIfTI, finest voxels, echoes combined (the RMS of an MEMPRAGE), of NIfTI the
    shortest path, smallest series UID, and of one series its earliest repetition.

    Args:
      key: the patient's.
      headers: of all the patient's files, in any order.
      modalities: the wanted ones.
      owners: of the directories that the files lie in, as far as they say anything.
      rules: tried before the built-in ones.
      patient_from: how the key was found.
    """
    owners = owners or {}

    def owner_of(path: str) -> DirectoryOwner | None:
        owner = owners.get(posixpath.dirname(path))
        return owner if owner is not None and owner.modality is not None else None

    headers = list(headers)
    whole = _WHOLE.get(patient_from, "")
    people = _people(headers, together=bool(whole))
    mixed = len(people)
    nobodys = why_nobodys(key, headers, patient_from)
    stacks, rejections = assemble(headers)
    diffusion = {(h.study_uid, h.series_uid) for h in headers if (h.b_value or 0) >= 1}
    references = sorted({stack.first.frame_of_reference for stack in stacks})
    candidates: dict[str, list[Series]] = defaultdict(list)
    left: list[tuple[Series, str, Reason, str]] = []
    for stack in stacks:
        modality = modality_of(
            stack,
            owner_of(stack.first.path),
            modalities,
            rules,
            diffusion=(stack.first.study_uid, stack.first.series_uid) in diffusion,
        )
        if modality is None and is_mask(stack):
            left.append((stack, "", Reason.DERIVED_IMAGE, "the file's name says mask"))
        elif nobodys:
            left.append((stack, modality or "", Reason.NO_PATIENT_ID, nobodys))
        elif modality is None:
            left.append((stack, "", Reason.UNKNOWN_MODALITY, why_unknown(stack)))
        else:
            candidates[modality].append(stack)
    chosen: dict[str, Series] = {}
    for modality in modalities:
        ranked = sorted(candidates[modality], key=_preference)
        if ranked:
            chosen[modality] = ranked[0]
        for stack in ranked[1:]:
            detail = f"a {modality} of {len(ranked[0].headers)} slices was preferred"
            left.append((stack, modality, Reason.OTHER_CANDIDATE_PREFERRED, detail))
    # A multi-frame file may hold several stacks; it counts once, for the first of these.
    counted: set[str] = set()
    rows = [_row(key, stack, name, references, counted) for name, stack in chosen.items()]
    rows += [
        _row(key, stack, modality, references, counted, reason, detail)
        for stack, modality, reason, detail in left
    ]
    firsts = [stack.first for stack in chosen.values()] + [stack.first for stack, *_ in left]
    by_path = {header.path: header for header in headers} if rejections else {}
    for rejection in rejections:
        firsts.append(by_path[rejection.paths[0]])
        owner = owner_of(rejection.paths[0])
        if nobodys and rejection.verdict is Verdict.REJECTED:
            reason, detail = Reason.NO_PATIENT_ID, nobodys
            rejection = dataclasses.replace(rejection, reason=reason, detail=detail)
        rows.append(
            SeriesRow(
                patient=key,
                path=rejection.paths[0],
                modality=(owner.modality or "") if owner else "",
                files=_newly_counted(rejection.paths, counted),
                verdict=rejection.verdict.value,
                reason=rejection.reason.value,
                detail=rejection.detail,
            )
        )
    refusal = None
    if nobodys:
        refusal = Reason.NO_PATIENT_ID, nobodys
    elif mixed > 1:
        where = whole or "one of its directories"
        refusal = Reason.MIXED_PATIENTS, f"{mixed} different PatientIDs in {where}"
    elif not chosen:
        refusal = Reason.NO_USABLE_SERIES, "no series of a wanted modality can be used"
    return PatientPlan(
        key=key,
        series=chosen,
        rows=tuple(rows),
        firsts=tuple(firsts),
        refusal=refusal,
        person=min(people) if patient_from == "study" and mixed == 1 else "",
    )


def _people(headers: Iterable[SliceHeader], *, together: bool) -> set[str]:
    """The most PatientIDs in one directory, or in all files together; placeholders are none."""
    people: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        if not is_placeholder(header.patient_id):
            place = "" if together else posixpath.dirname(header.path)
            people[place].add(normalised_id(header.patient_id))
    return max(people.values(), key=len, default=set())


def _newly_counted(paths: Iterable[str], counted: set[str]) -> int:
    """How many of `paths` were not counted yet; marks them."""
    new = set(paths) - counted
    counted |= new
    return len(new)


def _syntax_name(uid: str) -> str:
    """The standard's name of a transfer syntax, or NIfTI's; nothing else is let through."""
    if uid in (NIFTI_1, NIFTI_2):
        return uid
    name = UID(uid, validation_mode=config.IGNORE).name  # a malformed one is unknown, no warning
    return name if name != uid else "unknown"


def _preference(series: Series) -> tuple[object, ...]:
    geometry = series.geometry
    voxel = geometry.spacing[0] * geometry.spacing[1] * geometry.spacing[2]
    first = series.first
    # A UID that is made of a file's content would choose among sessions by chance.
    path = files.logical(first.path) if first.is_nifti else ""
    return (
        *(not series.geometry_known, -len(series.headers), first.is_nifti),
        *(voxel, not combines_echoes(first), len(path), path),
        first.series_uid,  # of one series the first stack, its earliest repetition: as assembled
    )


def _row(
    key: str,
    series: Series,
    modality: str,
    references: Sequence[str],
    counted: set[str],
    reason: Reason | None = None,
    detail: str = "",
) -> SeriesRow:
    geometry, first = series.geometry, series.first
    spacing = [round(step, 4) for step in geometry.spacing]
    verdict = Verdict.USED
    if reason is not None:
        verdict = Verdict.UNUSED if reason in UNUSED_BY_RULE else Verdict.REJECTED
    return SeriesRow(
        patient=key,
        path=first.path,
        modality=modality,
        files=_newly_counted(series.paths, counted),
        verdict=verdict.value,
        reason=reason.value if reason else "",
        detail=detail,
        plane=geometry.plane if series.geometry_known else "unknown",
        obliquity=round(geometry.obliquity, 2) if series.geometry_known else None,
        rows=geometry.shape[0],
        columns=geometry.shape[1],
        slices=len(series.headers),
        row_spacing=spacing[0],
        column_spacing=spacing[1],
        slice_step=spacing[2],
        thickness=first.slice_thickness,
        field_strength=first.field_strength,
        transfer_syntax=_syntax_name(first.transfer_syntax),
        even_steps=series.even,
        geometry_known=series.geometry_known,
        frame_of_reference=references.index(first.frame_of_reference) + 1,
    )
