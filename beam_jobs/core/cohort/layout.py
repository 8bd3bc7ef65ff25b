"""Whose file is it: from a directory layout where there is one, else from the header.

<root>/…/<patient>/<modality>/<file>     the reference layout: names decide
any other heap of files                  PatientID decides
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Iterable, Sequence

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.preprocess import DEFAULT_MODALITIES
from beam_jobs.core.reasons import Reason, Rejection

_BY_DIRECTORY, _BY_HEADER = "dir:", "id:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectoryOwner:
    """What a directory of the reference layout says of the files in it.

    Attributes:
      patient: key of the patient.
      modality: the wanted modality it is named after, "" when it is none of them.
    """

    patient: str
    modality: str


def find_owners(
    paths: Iterable[str], modalities: Sequence[str], *, root: str = ""
) -> dict[str, DirectoryOwner]:
    """The directories that follow the reference layout, among those of all files of an input.

    A directory that holds files and is named after a modality (a wanted one or one of the
    defaults, without regard to case) makes its parent a patient, unless that is named after a
    modality, too. All that lies directly in such a patient, or in another directory of it, is that
    patient's too and none of the wanted modalities. An archive counts as the directory of its name
    without suffix. The input itself may be the patient; what lies above it says nothing.

    Args:
      paths: all files of the input, "/" between names.
      modalities: the wanted modalities' names.
      root: the input, whose own name is that of no modality.

    Returns:
      Directory → owner; the headers decide for a directory that is not in it.
    """
    wanted = {name.casefold(): name for name in modalities}
    known = {*wanted, *(name.casefold() for name in DEFAULT_MODALITIES)}
    directories = {
        posixpath.dirname(path): posixpath.dirname(files.logical(path)) for path in paths
    }
    top = files.logical_root(root, f"{next(iter(directories))}/") if root and directories else ""
    patients: dict[str, str] = {}  # directory → its patient's key
    for directory in directories.values():
        if directory != top and posixpath.basename(directory).casefold() in known:
            parent = posixpath.dirname(directory)
            named = parent
            if parent == top and top and not files.is_remote(top):
                named = os.path.abspath(parent)  # it may be given as "." or ".."
            if posixpath.basename(named) and posixpath.basename(named).casefold() not in known:
                patients[parent] = _BY_DIRECTORY + named
    owners = {}
    for directory, logical in directories.items():
        parent, name = posixpath.split(logical)
        if logical != top and parent in patients:
            modality = wanted.get(name.casefold(), "")
            owners[directory] = DirectoryOwner(patient=patients[parent], modality=modality)
        elif logical in patients:
            owners[directory] = DirectoryOwner(patient=patients[logical], modality="")
    return owners


def patient_of(header: SliceHeader, owner: DirectoryOwner | None) -> str:
    """The key of a file's patient: by the layout, else by PatientID; "" when neither says."""
    if owner is not None:
        return owner.patient
    return _BY_HEADER + header.patient_id if header.patient_id else ""


def unowned(path: str) -> Rejection:
    """The refusal of a file for which `patient_of` finds no patient."""
    return Rejection(
        paths=(path,),
        reason=Reason.NO_PATIENT_ID,
        detail="PatientID (0010,0020) is empty, and no directory is a patient's",
    )


def patient_id_of(key: str) -> str:
    """The patient id of a key of `patient_of`."""
    if key.startswith(_BY_HEADER):
        return key.removeprefix(_BY_HEADER)
    return posixpath.basename(key)
