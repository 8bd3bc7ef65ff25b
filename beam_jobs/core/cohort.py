"""Whose file is it, and which modality: from a directory layout where there is one, else headers.

<root>/…/<patient>/<modality>/<file>     the reference layout: names decide
any other heap of files                  PatientID and header rules decide
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from beam_jobs.core.dicom_index import SliceHeader
from beam_jobs.core.reasons import Reason, Verdict
from beam_jobs.core.rules import ModalityRule, modality_by_rules
from beam_jobs.core.series import Series, assemble


def _parts(path: str, root: str) -> list[str]:
    """Directory and file names of `path` below `root`."""
    base = root.rstrip("/") + "/"
    below = path[len(base) :] if path.startswith(base) else posixpath.basename(path)
    # A root that itself is a patient's or a modality's directory still names them.
    above = [part for part in root.split("/") if part][-2:]
    return above + below.split("/")


def layout_of(path: str, root: str, modalities: Sequence[str]) -> tuple[str, str] | None:
    """(patient directory, modality) where a directory of the path is named after a modality.

    Names compare without regard to case; the deepest such directory counts.

    Args:
      path: a file below `root`, with "/" between names.
      root: the input directory.
      modalities: the modalities' names.
    """
    names = {modality.lower(): modality for modality in modalities}
    parts = _parts(path, root)
    for index in range(len(parts) - 2, 0, -1):
        modality = names.get(parts[index].lower())
        if modality is not None:
            return "/".join(parts[:index]), modality
    return None


def patient_of(header: SliceHeader, root: str, modalities: Sequence[str]) -> str:
    """The key of a file's patient: the patient's directory in the layout, else the PatientID."""
    layout = layout_of(header.path, root, modalities)
    if layout is not None:
        return layout[0]
    return "/" + (header.patient_id or "unknown")


def patient_id_of(key: str) -> str:
    """The patient id of a key of `patient_of`."""
    return key.rsplit("/", 1)[-1]


def modality_of(
    series: Series, root: str, modalities: Sequence[str], rules: Sequence[ModalityRule] = ()
) -> str | None:
    """Which of `modalities` a series is, None when it is none of them.

    The directory's name decides where it is a modality's; else a SeriesDescription that is one;
    else the rules.
    """
    first = series.first
    layout = layout_of(first.path, root, modalities)
    if layout is not None:
        return layout[1]
    for name in modalities:
        if first.series_description.lower() == name.lower():
            return name
    found = modality_by_rules(series, rules)
    return found if found in modalities else None


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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PatientPlan:
    """What will be made of one patient.

    Attributes:
      key: as `patient_of` gives it.
      patient_id: the input's spelling.
      series: the series chosen for each modality.
      rows: a row for every series of the patient, the chosen ones first, as "used".
    """

    key: str
    patient_id: str
    series: dict[str, Series]
    rows: tuple[SeriesRow, ...]


def plan_patient(
    key: str,
    headers: Iterable[SliceHeader],
    root: str,
    modalities: Sequence[str],
    rules: Sequence[ModalityRule] = (),
) -> PatientPlan:
    """Chooses a patient's series: one for each modality, every other with the reason why not.

    Among several candidates for a modality the first of these wins: geometry known, most slices,
    finest voxels, smallest series UID.
    """
    stacks, rejections = assemble(headers)
    references = sorted({stack.first.frame_of_reference for stack in stacks})
    candidates: dict[str, list[Series]] = defaultdict(list)
    left: list[tuple[Series, str, Reason, str]] = []
    for stack in stacks:
        modality = modality_of(stack, root, modalities, rules)
        if modality is None:
            left.append((stack, "", Reason.UNKNOWN_MODALITY, "no modality rule fits"))
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
    rows += [
        SeriesRow(
            patient=key,
            path=rejection.paths[0],
            modality=(layout_of(rejection.paths[0], root, modalities) or ("", ""))[1],
            files=_count(rejection.paths, counted),
            verdict=rejection.verdict.value,
            reason=rejection.reason.value,
            detail=rejection.detail,
        )
        for rejection in rejections
    ]
    return PatientPlan(key=key, patient_id=patient_id_of(key), series=chosen, rows=tuple(rows))


def _count(paths: Iterable[str], counted: set[str]) -> int:
    """How many of `paths` were not counted yet; marks them."""
    new = set(paths) - counted
    counted |= new
    return len(new)


def _syntax_name(uid: str) -> str:
    """The standard's name of a transfer syntax; nothing else of that field is let through."""
    return UID(uid).name if uid in UID_dictionary else "unknown"


def _preference(series: Series) -> tuple[object, ...]:
    geometry = series.geometry
    voxel = geometry.spacing[0] * geometry.spacing[1] * geometry.spacing[2]
    first = series.first
    return (not series.geometry_known, -len(series.headers), voxel, first.series_uid, first.path)


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
    return SeriesRow(
        patient=key,
        path=first.path,
        modality=modality,
        files=_count(series.paths, counted),
        verdict=(Verdict.UNUSED if reason else Verdict.USED).value,
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
