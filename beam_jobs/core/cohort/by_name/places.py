"""Whose NIfTI file is it: its directory's, or the one that its name tells.

NIfTI has no PatientID. What people make of one lies in layouts like these:

<patient>/<anything>_t1ce.nii.gz            BraTS and most others: the directory
sub-01/[ses-1/]anat/sub-01_..._T1w.nii.gz   BIDS: `sub-01`, wherever that stands
<patient>/MPRAGE/<date>/<image>/ADNI_<patient>_....nii   the topmost directory named in the name
<patient>/week-001/T1.nii.gz                a session is no patient, nor is `anat`, `orig`, `NIfTI`

A directory in which several patients' files lie side by side is nobody's: it would make one person
of a cohort, and a network would see those that it is tested on.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.by_name.words import BIDS_SUBJECT, Parts, parts_of, stem_of

BY_NAME = "name:"  # instead of a patient's directory: each file's own name tells
# Directories that are of a patient's images, and no patient.
_NO_PATIENT = re.compile(
    r"ses(?:sion)?[-_ ]?\w*|visit[-_ ]?\w*|(?:tp|timepoint)[-_ ]?\d+|"
    r"(?:week|month|year|day)[-_]?\d+(?:[-_]\d+)?|baseline|bl|follow[-_ ]?up\w*|fu[-_]?\d*|"
    r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d.*|"
    r"anat[-_]?\d*|nii(?:fti)?s?|nifti\d*|mri?|raw|orig|(?:pre|post)(?:[-_ ]?op)?|"
    r"preproc\w*|processed|scans?|images?|data|resources?|files",
    re.IGNORECASE,
)
_GROUP = re.compile(
    r"(?:19|20)\d\d|(?:site|center|centre|batch|part|fold|set)[-_ ]?\d+", re.IGNORECASE
)
# So many different ids before one word of the image are several people's; of words without a
# number, and of numbers of series, a patient's directory may hold a few.
_SEVERAL = 2
_SEVERAL_WHERE_NAMES_ARE_FREE = 4
_MOST_SESSIONS = 40
_SCAN = re.compile(r"\d{1,3}")  # its number before its name, as XNAT has them
_SERIES_NUMBER = re.compile(r"[a-z]{0,3}\d{1,2}", re.IGNORECASE)


def patients_of_places(
    paths: Iterable[str], modalities: Sequence[str], starts: Mapping[str, str], top: str
) -> dict[str, str]:
    """Whose the NIfTI files of each directory are.

    Args:
      paths: NIfTI files.
      modalities: the wanted ones.
      starts: directory of some files → the directory of their patient in the reference layout.
      top: the input, as the begin of all paths is once archives count as directories; "" where
        it does not matter.

    Returns:
      Directory of the files → the directory of the patient (both as `files.logical` names them),
      `BY_NAME` where names tell, or "" where it is nobody's.
    """
    held: dict[str, list[Parts]] = defaultdict(list)
    for path in paths:
        directory = posixpath.dirname(files.logical(path))
        held[directory].append(parts_of(stem_of(path), tuple(modalities)))
    owners: dict[str, str] = {}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for directory, names in held.items():
        start = starts.get(directory, directory)
        if owner := _of_bids(start, names, top):
            owners[directory] = owner
            continue
        found[_named_in(start, names, top) or (_patient_above(start, top), "")].append(directory)
    for (patient, name), directories in found.items():
        apart = [
            (_without(parts, name), layout)
            for directory in directories
            for layout in (directory if starts.get(directory, directory) != directory else "",)
            for parts in held[directory]
        ]
        if name:
            # Behind a directory's whole name a short number, or a date, is one of a timepoint.
            whole = name == posixpath.basename(patient)
            apart = [(parts, layout) for parts, layout in apart if parts.word]
            several = _are_several(apart, _is_long_id if whole else _has_digit)
        elif patient == top:
            several = not _is_one_patient(apart)
        else:
            several = _are_several(apart, _is_id) or len(directories) > _MOST_SESSIONS
        owners |= dict.fromkeys(directories, "" if several else patient)
    return owners


def _of_bids(directory: str, names: Sequence[Parts], top: str) -> str:
    """The topmost directory `sub-...`, or `BY_NAME` where every file begins so."""
    for ancestor in _below(directory, top):
        if BIDS_SUBJECT.fullmatch(posixpath.basename(ancestor)):
            return ancestor
    return BY_NAME if all(BIDS_SUBJECT.fullmatch(parts.subject) for parts in names) else ""


def _named_in(directory: str, names: Sequence[Parts], top: str) -> tuple[str, str] | None:
    """The topmost directory whose name, which has a digit, stands in the name of a file; that name.

    Not where that speaks of the image: `T1` of `T1/IXI002_T1.nii.gz` is no patient. Nor is a year,
    or a site with a number. Of `P-0004_nifti/P-0004_T1.nii.gz` the name is `P-0004`.
    """
    of_people = [parts.subject or parts.rest[len(parts.word) :] for parts in names]
    for ancestor in _below(directory, top):
        name = posixpath.basename(ancestor)
        if _has_digit(name) and not _NO_PATIENT.fullmatch(name) and not _GROUP.fullmatch(name):
            search = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])").search
            if any(map(search, of_people)):
                return ancestor, name
    name = posixpath.basename(directory)
    for end in reversed([found.end() for found in re.finditer(r"[^_\-. +]+", name)]):
        begin = name[:end]
        same = (one.startswith(begin) and not one[end : end + 1].isalnum() for one in of_people)
        if directory != top and _has_digit(begin) and not _GROUP.fullmatch(begin) and all(same):
            return directory, begin
    return None


def _without(parts: Parts, name: str) -> Parts:
    """The name without that of the patient's directory: what is left must not tell people apart."""
    return parts._replace(subject=parts.subject.replace(name, "")) if name else parts


def _patient_above(directory: str, top: str) -> str:
    """The directory itself, or the nearest one above it that may be called after a patient.

    `T1`, `T2_FLAIR` and `3-t1_mprage` are called after an image, where a directory lies above them.
    """
    below = _below(directory, top)
    for ancestor in reversed(below):
        name = posixpath.basename(ancestor)
        parts = parts_of(name)
        numbered = not parts.subject or _SCAN.fullmatch(parts.subject)
        of_image = parts.word and numbered and ancestor != below[0]
        if not of_image and not _NO_PATIENT.fullmatch(name):
            return ancestor
    return top


def _below(directory: str, top: str) -> list[str]:
    """The directories from the one below `top` to `directory`; none where that is `top`."""
    found = []
    while directory not in ("", "/", top) and directory != posixpath.dirname(directory):
        found.append(directory)
        directory = posixpath.dirname(directory)
    return found[::-1]


def _is_one_patient(named: Sequence[tuple[Parts, str]]) -> bool:
    """Whether the files of an input without directories are plainly one patient's.

    All begin alike, and no two tell of the image by the same word.
    """
    words = [parts.word for parts, named_after in named if not named_after]
    subjects = {parts.subject for parts, named_after in named if not named_after}
    return (
        all(words)
        and len(words) == len(set(words))
        and len(subjects) <= 1
        and not _are_several(named, _is_id)
    )


def _are_several(named: Sequence[tuple[Parts, str]], is_id: Callable[[str], bool]) -> bool:
    """Whether names say that the files of what seems to be one patient are several patients'.

    Args:
      named: the parts of each name, and the directory named after a modality that it lies in or "".
      is_id: whether what stands before a word is one, of which two are two people's.
    """
    begun: dict[str, set[str]] = defaultdict(set)  # what stands before the word
    followed: dict[str, set[str]] = defaultdict(set)  # what stands behind it
    within: dict[str, set[str]] = defaultdict(set)  # names in a directory of the layout
    for parts, named_after in named:
        if named_after:
            within[named_after].add(parts.subject or parts.rest)
        elif parts.word and parts.subject:
            begun[parts.word].add(parts.subject)
        else:
            followed[parts.word].add(parts.rest[len(parts.word) :].strip("_-. ") or parts.subject)
    if any(sum(map(is_id, names)) >= _SEVERAL for names in begun.values()):
        return True
    # A directory of one patient's may hold T1, T1_brain, T1_n4, T1_reg.
    ids = [sum(map(_is_id, names)) for names in followed.values()]
    counts = [*ids, *map(len, begun.values()), *map(len, within.values())]
    return max(counts, default=0) >= _SEVERAL_WHERE_NAMES_ARE_FREE


def _has_digit(name: str) -> bool:
    return re.search(r"\d", name) is not None


def _is_id(name: str) -> bool:
    return _has_digit(name) and not _SERIES_NUMBER.fullmatch(name)


def _is_long_id(name: str) -> bool:
    return re.search(r"\d{4,}", re.sub(r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d", "", name)) is not None
