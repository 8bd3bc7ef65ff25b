"""Every patient's plan in this process, without a pipeline: what a survey shows, a check samples.

Headers of all files are held.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence

from beam_jobs.common import terminal
from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.convert.planning import Refusal, refusals
from beam_jobs.core.cohort.by_name.sidecars import listing
from beam_jobs.core.cohort.by_name.words import said_of
from beam_jobs.core.cohort.layout import (
    DirectoryOwner,
    find_owners,
    only_patient,
    patient_of,
    series_owners,
)
from beam_jobs.core.cohort.modality import known_modalities
from beam_jobs.core.cohort.plan import PatientPlan, plan_patient
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.dicom.headers import SliceHeader, index_files
from beam_jobs.core.nifti.names import is_nifti
from beam_jobs.core.reasons import Rejection

_FILES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plans:
    """What the conversion would make of an input, as far as headers say.

    Attributes:
      patients: a plan for each patient, and for each series that is nobody's, in the order of
        their keys.
      refused: key of each patient whom the conversion refuses to the reason, also one that the
        whole cohort gives; to None where series say why.
      rejections: files that are no image, each with the owner of its directory.
      owners: what directories say of the files in them.
    """

    patients: tuple[PatientPlan, ...]
    refused: Mapping[str, Refusal]
    rejections: tuple[tuple[Rejection, DirectoryOwner | None], ...]
    owners: Mapping[str, DirectoryOwner]


def listing_of(root: str, *, name: str) -> files.Listing:
    """What lies below an input.

    Args:
      root: a directory, or an archive.
      name: what to call it in messages.

    Raises:
      UsageError: it is not there, cannot be listed, or holds no file that is read.
    """
    try:
        found = listing(root)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{name} is not a directory") from error
    except PermissionError as error:
        raise UsageError(f"{name} cannot be listed: {error.strerror}") from error
    if not found.entries:
        hidden, holds = sum(found.left_out.values()), "holds no file"
        kinds = "hidden, DICOMDIR"
        if files.is_dicomweb(root):
            holds, kinds = "finds no images", ", ".join(sorted(found.left_out))
        but = f" but {hidden} that are never read ({kinds})" if hidden else ""
        raise UsageError(f"{name} {holds}{but}")
    return found


def require_known(
    modalities: Sequence[str],
    rules: Sequence[ModalityRule],
    paths: Sequence[str],
    *,
    root: str,
    patient_from: str = "",
) -> None:
    """Refuses a modality that no directory, rule or NIfTI file's name could ever give.

    Args:
      modalities: the wanted ones.
      rules: tried before the built-in ones.
      paths: all files of the input.
      root: what they were listed below.
      patient_from: one of `PATIENT_FROM`, or "" for the automatic choice.

    Raises:
      UsageError: names the modality, and those that are known; or patients are to be known by what
        no file of the input has.
    """
    nifti = list(filter(is_nifti, paths))
    if patient_from in ("study", "patient_id") and 0 < len(nifti) == len(paths):
        raise UsageError(
            f"--patient_from {patient_from}: NIfTI files have neither study nor PatientID; "
            "directory or file_name says whose they are"
        )
    owners = find_owners(paths, modalities, root=root, patient_from=patient_from).values()
    known = {owner.modality or "" for owner in owners} | known_modalities(rules)
    unknown = [name for name in modalities if name not in known]
    if unknown and nifti:
        known |= {said_of(path, modalities).modality for path in nifti}
        unknown = [name for name in modalities if name not in known]
    if unknown:
        named = ", no file's name says it" if nifti else ""
        directory = f"no directory of {root} has that name{named}, and "
        raise UsageError(
            f"unknown modality {unknown[0]}: {'' if files.is_dicomweb(root) else directory}no "
            f"rule gives it (known: {', '.join(sorted(known - {''}))})"
        )


def plan_patients(
    found: Sequence[files.Entry],
    modalities: Sequence[str],
    rules: Sequence[ModalityRule] = (),
    *,
    root: str = "",
    patient_from: str = "",
) -> Plans:
    """Reads the headers of all files and plans each patient, with a bar on a terminal.

    What pixels alone show (a black series, pixels that do not decode) is not known then.

    Args:
      found: the files, as `files.entries` lists them.
      modalities: the wanted ones.
      rules: tried before the built-in ones.
      root: what they were listed below.
      patient_from: one of `PATIENT_FROM`, or "" for the automatic choice.
    """
    paths = [entry.path for entry in found]
    owners = find_owners(paths, modalities, root=root, patient_from=patient_from)

    def owner_of(path: str) -> DirectoryOwner | None:
        return owners.get(posixpath.dirname(path))

    chunks = [found[n : n + _FILES_AT_ONCE] for n in range(0, len(found), _FILES_AT_ONCE)]
    headers: dict[str, list[SliceHeader]] = defaultdict(list)
    series: dict[str, set[str]] = defaultdict(set)
    rejections: list[Rejection] = []
    for chunk in terminal.track(chunks, "reading headers", len(chunks)):
        with files.fetched_ahead(chunk, files.HEAD_BYTES):
            indexed, refused = index_files(entry.path for entry in chunk)
        for header in indexed:
            key = patient_of(header, owner_of(header.path), patient_from)
            headers[key].append(header)
            for name, patient in series_owners(header, key):
                series[name].add(patient)
        rejections += refused
    for name, keys in series.items():
        if patient := only_patient(keys):
            headers[patient] += headers.pop(name)
    patients = tuple(
        plan_patient(
            key, headers[key], modalities, owners=owners, rules=rules, patient_from=patient_from
        )
        for key in sorted(headers)
    )
    return Plans(
        patients=patients,
        refused=refusals((plan.key, plan.refusal) for plan in patients),
        rejections=tuple((rejection, owner_of(rejection.paths[0])) for rejection in rejections),
        owners=owners,
    )
