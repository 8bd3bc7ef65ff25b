"""Maps as DICOM: of each patient and modality a Parametric Map on the series it was made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import fingerprint
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import require_own
from beam_jobs.common.printable import printable
from beam_jobs.common.terminal import bar, row
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.dicom_out.origin import read_origin
from beam_jobs.core.dicom_out.outgoing import WARNING, require_highdicom, require_place
from beam_jobs.core.dicom_out.parametric_map import (
    MapFacts,
    is_own,
    on_series,
    parametric_map,
)
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.reasons import RejectedError
from beam_jobs.core.series import Series
from trainer.explain.cases import Chosen, Explained
from trainer.explain.source_series import find_series, read_used
from trainer.training.run_files import Run

# Letters of names in texts of 63, so that what they end with stands there too.
_OF_MODALITY, _OF_NAME = 8, 14


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """Where maps go, and the series that they are laid on.

    Attributes:
      place: a directory or a DICOMweb service.
      series: by patient and modality, in the order they are written.
      names: of the files, likewise.
    """

    place: str
    series: Mapping[tuple[str, str], Series]
    names: Mapping[tuple[str, str], str]


def find_sources(
    place: str,
    root: str,
    data: str,
    manifest: Manifest,
    chosen: Sequence[Chosen],
    modalities: Sequence[str],
) -> Sources:
    """The series of the patients that will be explained; prints why others have none.

    Args:
      place: where maps go.
      root: the input that the dataset was made of.
      data: the dataset.
      manifest: of it.
      chosen: the patients.
      modalities: the run's.

    Raises:
      UsageError: highdicom is not installed; ids and paths of the dataset are hashes; maps cannot
        go there, or would replace files of others; the dataset has no series.csv.
      CommandError: no series of any of them is found.
    """
    require_highdicom("--dicom_pm")
    if manifest.id_policy == "hmac":
        raise UsageError(
            f"--dicom_pm: {data} has hashes in place of ids and paths (--id_policy hmac): a map in "
            "DICOM would undo that"
        )
    require_place(place, flag="--dicom_pm", source=root, source_flag="--dicom")
    patients = [one.patient_id for one in chosen]
    used = read_used(data, patients, modalities)
    found = find_series(root, used.values())
    series: dict[tuple[str, str], Series] = {}
    missing: list[str] = []
    for patient_id in patients:
        for modality in modalities:
            one = used.get((patient_id, modality))
            known = "" if one is None else found[one]
            if isinstance(known, Series):
                series[patient_id, modality] = known
            elif known:
                missing.append(f"{patient_id} {modality}: {known}")
        if not any((patient_id, modality) in used for modality in modalities):
            missing.append(f"{patient_id}: series.csv names no series that was used")
    if not series:
        raise CommandError(f"--dicom_pm: nothing to lay maps on: {missing[0]}")
    for text in missing:
        row("no map", text)
    ids = {key: f"{key[0]}-{key[1]}" for key in series}
    by_id = files.file_names(ids.values(), ".dcm")
    names = {key: by_id[ids[key]] for key in series}
    if not files.is_dicomweb(place):
        there = set(files.names(place)) & set(names.values())
        own = {name for name in there if is_own(files.join(place, name))}
        require_own(place, names.values(), own, flag="--dicom_pm")
    return Sources(place=place, series=series, names=names)


def write_maps(
    sources: Sources, trained: Run, explained: Sequence[Explained], *, method: str
) -> int:
    """Writes the maps, one after the other; returns how many, and prints why others are not.

    Raises:
      CommandError: none of them could be made, or the place refuses one.
    """
    members = [member.to_json() for member in trained.members]
    run = fingerprint({"dataset": trained.dataset_fingerprint, "members": members,
                       "config": dict(trained.config)})  # fmt: skip
    written, refusals = 0, []
    with bar("maps in DICOM", len(sources.series)) as step:
        for one in explained:
            for channel, modality in enumerate(trained.modalities):
                key = (one.chosen.patient_id, modality)
                if key not in sources.series:
                    continue
                facts = facts_of(one, trained.target, modality, method=method, run=run)
                try:
                    data = _map(one, channel, sources.series[key], facts)
                except RejectedError as error:
                    refusals.append(f"{' '.join(key)}: {error}")
                else:
                    files.store_dicom(sources.place, sources.names[key], data)
                    written += 1
                step()
    if not written:
        raise CommandError(f"--dicom_pm: no map could be made: {refusals[0]}")
    for text in refusals:
        row("no map", text)
    return written


def facts_of(one: Explained, target: Target, modality: str, *, method: str, run: str) -> MapFacts:
    """What a map says of itself.

    Args:
      one: the patient.
      target: what the networks answer.
      modality: that of the series.
      method: one of `MAP_METHODS`.
      run: what tells the run's networks apart from others.
    """
    gradcam = method == "gradcam"
    what = aim_of(target, one.output)
    kind = "Grad-CAM" if gradcam else "Saliency"
    number = "value" if target.task == "regression" else "logit"
    meaning = "weighted activation" if gradcam else f"share of the {number}"
    together = one.found.values.shape[-1] == 1 < len(one.case.present)
    return MapFacts(
        description=f"{kind} {modality[:_OF_MODALITY]}: {what}, {WARNING}",
        content=f"{'all modalities' if together else modality[:_OF_NAME]}: {what}; {WARNING}",
        explanation=f"{meaning}, + for {what}, - against it",
        gradcam=gradcam,
        run=run,
        key=f"{method} {modality} {one.output}",
    )


def aim_of(target: Target, output: int) -> str:
    """What positive numbers of a map speak for."""
    if target.task == "regression":
        return "a greater value"
    kind = "finding" if target.task == "multilabel" else "class"
    name = printable(target.names[1 if target.outputs == 1 else output])
    return f"{kind} {name if len(name) <= _OF_NAME else f'{name[: _OF_NAME - 1]}…'}"


def _map(one: Explained, channel: int, series: Series, facts: MapFacts) -> bytes:
    """One map's file.

    Raises:
      RejectedError: the series has no place for it, or its files cannot be read any more.
    """
    values = one.found.values[..., min(channel, one.found.values.shape[-1] - 1)]
    frames = on_series(values, one.case.affine, series)
    return parametric_map(frames, series, read_origin(series.first.path), facts)
