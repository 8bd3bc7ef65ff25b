"""Whose file is it: from a directory layout where there is one, else from the header.

<root>/…/<patient>/<modality>/<file>     the reference layout: names decide
any other heap of DICOM                  PatientID decides
any other heap of NIfTI                  directories and names decide (`by_name.places`)

That is what happens by itself; `ids.PATIENT_FROM` are a user's own choices of who is a patient. The
modality is the layout's wherever a directory follows it.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.by_name.places import BY_NAME, patients_of_places
from beam_jobs.core.cohort.by_name.words import subject_of
from beam_jobs.core.cohort.ids import is_placeholder, may_be_number_zero, study_id
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.nifti.names import is_nifti
from beam_jobs.core.preprocess import DEFAULT_MODALITIES

_BY_DIRECTORY, _BY_HEADER, _BY_STUDY, _NOBODYS = "dir:", "id:", "study:", "nobody:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectoryOwner:
    """What a directory says of the files in it.

    Attributes:
      patient: key of the patient, "" where the headers decide.
      modality: the wanted modality it is named after, "" when it is none of them; None where the
        headers decide.
      nifti: key of the patient of NIfTI files in it; `BY_NAME` where each file's name says whose
        it is, "" where they are nobody's.
      words: the wanted modalities, which stand in names, where those say whose a file is.
    """

    patient: str
    modality: str | None
    nifti: str = ""
    words: tuple[str, ...] = ()


def find_owners(
    paths: Iterable[str], modalities: Sequence[str], *, root: str = "", patient_from: str = ""
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
      patient_from: "directory" makes a patient of every directory that lies directly in the input,
        but of none that is named after a modality; with "study" and "patient_id" directories give
        modalities alone; with "file_name" they do so for NIfTI, of which names say whose it is; ""
        is as above.

    Returns:
      Directory → owner; the headers decide for a directory that is not in it.

    Raises:
      UsageError: patients are to be directories, and `root` has none.
    """
    require_directories(root, patient_from)
    if files.is_dicomweb(root):
        return {}
    wanted = {name.casefold(): name for name in modalities}
    known = {*wanted, *(name.casefold() for name in DEFAULT_MODALITIES)}
    # A directory has hundreds of files: one of them tells its name.
    paths = list(paths)
    one_of = {path[: path.rfind("/")]: path for path in paths}
    directories = {
        posixpath.dirname(path): posixpath.dirname(files.logical(path)) for path in one_of.values()
    }
    top = files.logical_root(root, f"{next(iter(directories))}/") if root and directories else ""
    patients = _patients_of_the_layout(directories.values(), known, top)
    if patient_from == "directory":
        patients.pop(top, None)  # its patients lie below the input
    of_nifti: dict[str, str] = {}
    if patient_from in ("", "file_name") and (nifti := list(filter(is_nifti, paths))):
        starts = {}
        for logical in directories.values():
            parent = posixpath.dirname(logical)
            if logical in patients or (logical != top and parent in patients):
                starts[logical] = parent if parent in patients and logical != top else logical
        of_nifti = patients_of_places(nifti, modalities, starts, top)
        if patient_from:
            of_nifti = dict.fromkeys(of_nifti, BY_NAME)
    owners = {}
    modality: str | None
    for directory, logical in directories.items():
        parent, name = posixpath.split(logical)
        if logical != top and parent in patients:
            patient, modality = patients[parent], wanted.get(name.casefold(), "")
        elif logical in patients:
            patient, modality = patients[logical], ""
        else:
            patient, modality = "", None
        if patient_from == "directory":
            first = logical.removeprefix(top).lstrip("/").partition("/")[0]
            is_person = first and first.casefold() not in known
            patient = f"{_BY_DIRECTORY}{top}/{first}" if is_person else ""
        elif patient_from in ("study", "patient_id"):
            patient = ""
        named = of_nifti.get(logical, "")
        if named and named != BY_NAME:
            named = _BY_DIRECTORY + _as_named(named, top)
        if patient_from == "directory":
            named = patient
        if patient or modality is not None or named:
            owners[directory] = DirectoryOwner(
                patient=patient,
                modality=modality,
                nifti=named,
                words=tuple(modalities) if named == BY_NAME else (),
            )
    return owners


def _as_named(directory: str, top: str) -> str:
    """A directory by its own name: the input may be given as "." or ".."."""
    is_top = directory == top and top and not files.is_remote(top)
    return os.path.abspath(directory) if is_top else directory


def require_directories(root: str, patient_from: str) -> None:
    """Refuses patients by directory of an input that has no directories.

    Args:
      root: the input.
      patient_from: one of `PATIENT_FROM`, or "".

    Raises:
      UsageError: a search in a DICOMweb service, and "directory" or "file_name".
    """
    if patient_from in ("directory", "file_name") and files.is_dicomweb(root):
        raise UsageError(
            f"--patient_from {patient_from}: a DICOMweb service has no names of files; study or "
            "patient_id say whose it is"
        )


def _patients_of_the_layout(
    directories: Iterable[str], known: Set[str], top: str
) -> dict[str, str]:
    """The directories above those that are named after a modality, each with its patient's key.

    Args:
      directories: all that hold files.
      known: modalities' names, casefolded.
      top: the input, "" where it does not matter.
    """
    patients: dict[str, str] = {}
    for directory in directories:
        if directory != top and posixpath.basename(directory).casefold() in known:
            parent = posixpath.dirname(directory)
            named = _as_named(parent, top)
            if posixpath.basename(named) and posixpath.basename(named).casefold() not in known:
                patients[parent] = _BY_DIRECTORY + named
    return patients


def patient_of(header: SliceHeader, owner: DirectoryOwner | None, patient_from: str = "") -> str:
    """The key of a file's patient.

    Args:
      header: of one of the file's images.
      owner: what the file's directory says, of `find_owners` with the same choice.
      patient_from: one of `PATIENT_FROM`, "" for a directory of the layout, else PatientID.

    Returns:
      The patient's key, or a key of the series alone where there is no id (`is_nobody`).
    """
    if header.is_nifti:
        return patient_of_file(header.path, owner) or _series_key(header)
    if owner is not None and owner.patient:
        return owner.patient
    if patient_from == "study" and not is_placeholder(header.study_uid):
        return _BY_STUDY + study_id(header.study_uid)
    patient_id = header.patient_id
    if patient_from in ("", "patient_id", "file_name") and (
        not is_placeholder(patient_id) or may_be_number_zero(patient_id)
    ):
        return _BY_HEADER + patient_id
    return _series_key(header)


def patient_of_file(path: str, owner: DirectoryOwner | None) -> str:
    """The key of a file's patient as far as names tell it, "" where they do not.

    Args:
      path: the file's.
      owner: what its directory says.
    """
    if owner is None:
        return ""
    if not is_nifti(path):
        return owner.patient
    if owner.nifti != BY_NAME:
        return owner.nifti
    subject = subject_of(path, owner.words)
    return f"{BY_NAME}{subject}" if subject else ""


def _series_key(header: SliceHeader) -> str:
    if header.is_nifti:  # it has no UIDs, and a file is a series
        return f"{_NOBODYS}{header.path}"
    return f"{_NOBODYS}{header.study_uid}/{header.series_uid}"


def series_owners(header: SliceHeader, key: str) -> Iterator[tuple[str, str]]:
    """(key of the series as nobody's, key of the patient), where that might be of use.

    Some files of a series may have lost their PatientID and others not; `only_patient` tells whose
    it is. Series are known by UID alone, hence nothing where a UID is a placeholder.

    Args:
      header: of one of the series' files.
      key: of `patient_of`.
    """
    if not key.startswith((_BY_HEADER, _NOBODYS)) or may_be_number_zero(header.patient_id):
        return
    if not is_placeholder(header.study_uid) and not is_placeholder(header.series_uid):
        yield _series_key(header), key


def only_patient(keys: Iterable[str]) -> str:
    """The one patient of a series of which some files are nobody's, "" where there is none.

    Args:
      keys: of `patient_of`, of all files of the series.
    """
    keys = set(keys)
    patients = {key for key in keys if not is_nobody(key)}
    return patients.pop() if len(patients) == 1 and len(keys) > 1 else ""


def is_nobody(key: str) -> bool:
    """Whether a key is that of one series, of which nothing says whose it is."""
    return key.startswith(_NOBODYS)


def why_nobodys(key: str, headers: Sequence[SliceHeader], patient_from: str = "") -> str:
    """Why the images of one key of `patient_of` are no patient's, "" where they are one's.

    An id that ends in zeros is somebody's only within one study, which DICOM gives to one patient.
    """
    header = headers[0]
    if is_nobody(key) and header.is_nifti:
        return _why_nobodys_nifti(patient_from)
    zeros = key.startswith(_BY_HEADER) and may_be_number_zero(patient_id_of(key))
    if not is_nobody(key) and not (zeros and len({other.study_uid for other in headers}) > 1):
        return ""
    if patient_from == "directory":
        return "--patient_from directory: it lies in no directory of a patient below the input"
    if patient_from == "study":
        return "--patient_from study: StudyInstanceUID (0020,000D) is empty"
    said = "a placeholder, nobody's id" if header.patient_id else "empty"
    layout = "" if patient_from else ", and no directory is a patient's"
    return (
        f"PatientID (0010,0020) is {said}{layout}; --patient_from directory or study takes "
        "something else for the id"
    )


def _why_nobodys_nifti(patient_from: str) -> str:
    if patient_from == "directory":
        return "--patient_from directory: it lies in no directory of a patient below the input"
    if patient_from == "file_name":
        return "--patient_from file_name: its name begins with no patient's"
    if patient_from:
        return f"--patient_from {patient_from}: a NIfTI file has neither study nor PatientID"
    return (
        "NIfTI files of several patients lie in its directory, or none is a patient's; "
        "--patient_from directory takes the first below the input for the patient, "
        "--patient_from file_name what a name begins with"
    )


def patients_named(paths: Iterable[str], owners: Mapping[str, DirectoryOwner]) -> set[str]:
    """The keys of the patients that are known before any header is read.

    Args:
      paths: all files of the input.
      owners: of `find_owners`.
    """
    keys = set()
    for path in paths:
        owner = owners.get(path[: path.rfind("/")])
        if owner is not None and (owner.modality != "" or is_nifti(path)):
            keys.add(patient_of_file(path, owner))
    return keys - {""}


def nobodys_hint(series: int, patient_from: str = "") -> str:
    """What to tell a user of so many series that are nobody's, "" of none.

    Args:
      series: how many.
      patient_from: who was a patient.
    """
    if not series:
        return ""
    whose = "--patient_from directory or study says whose (of NIfTI: directory or file_name)"
    hint = "the tables say why" if patient_from else whose
    return f"{series} series {'is' if series == 1 else 'are'} nobody's: {hint}"


def patient_id_of(key: str) -> str:
    """The patient id of a key of `patient_of`, "" of nobody."""
    if is_nobody(key):
        return ""
    for prefix in (_BY_HEADER, _BY_STUDY, BY_NAME):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return posixpath.basename(key)
