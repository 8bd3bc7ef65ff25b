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
    r"(?:week|w|month|m|year|y|day|d)[-_]?\d+(?:[-_]\d+)?|baseline|bl|follow[-_ ]?up\w*|fu[-_]?\d*|"
    r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d.*|"
    r"anat[-_]?\d*|nii(?:fti)?s?|nifti\d*|mri?|raw|orig|pre|preproc\w*|processed|scans?|images?|data",
    re.IGNORECASE,
)
_GROUP = re.compile(
    r"(?:19|20)\d\d|(?:site|center|centre|batch|part|fold|set)[-_ ]?\d+", re.IGNORECASE
)
# Two scans of one patient may lie side by side, and more of one word with numbers alone before it
# (those of series): so many names of one word are several people's.
_SEVERAL = 2
_SEVERAL_WHERE_NAMES_ARE_FREE = 4
_MOST_BEGINS = 12  # of one word, with a number or not: more are of several people
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
    held: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        held[posixpath.dirname(files.logical(path))].append(stem_of(path))
    owners: dict[str, str] = {}
    shared: dict[str, list[str]] = defaultdict(list)
    for directory, stems in held.items():
        start = starts.get(directory, directory)
        owner = _of_bids(start, stems, top) or _named_in(start, stems, top, tuple(modalities))
        if owner:
            owners[directory] = owner
        else:
            shared[_patient_above(start, top)].append(directory)
    for patient, directories in shared.items():
        named = [
            (stem, directory if directory != starts.get(directory, directory) else "")
            for directory in directories
            for stem in held[directory]
        ]
        words = tuple(modalities)
        apart = [(parts_of(stem, words), named_after) for stem, named_after in named]
        whole = _is_one_patient if patient == top else _may_be_one_patient
        one = whole(apart)
        if not one and (begin := _begin_of(patient, [stem for stem, _ in named])):
            rest = [(parts_of(stem[begin:].lstrip("_-. +"), words), after) for stem, after in named]
            one = _may_be_one_patient(rest, is_id=_has_digit)
        owners |= dict.fromkeys(directories, patient if one else "")
    return owners


def _begin_of(directory: str, stems: Sequence[str]) -> int:
    """Letters of the longest begin of a directory's name, with a digit, that all names begin with.

    `UCSF-PDGM-0004_nifti` is called after whom its files are called after; 0 of most others.
    """
    name = posixpath.basename(directory)
    ends = [found.end() for found in re.finditer(r"[^_\-. +]+", name)]
    for end in reversed(ends):
        begins = all(one.startswith(name[:end]) and one[end : end + 1] in "_-. +" for one in stems)
        if begins and _has_digit(name[:end]):
            return end
    return 0


def _of_bids(directory: str, stems: Sequence[str], top: str) -> str:
    """The topmost directory `sub-...`, or `BY_NAME` where every file begins so."""
    for ancestor in _below(directory, top):
        if BIDS_SUBJECT.fullmatch(posixpath.basename(ancestor)):
            return ancestor
    return BY_NAME if all(map(BIDS_SUBJECT.match, stems)) else ""


def _named_in(directory: str, stems: Sequence[str], top: str, modalities: tuple[str, ...]) -> str:
    """The topmost directory whose name, which has a digit, stands in the name of a file.

    Of a year or a site with a number only where no other does; none where numbers that follow it
    are people's: `BraTS2021/BraTS2021_00000_t1`.
    """
    found = []
    for ancestor in _below(directory, top):
        name = posixpath.basename(ancestor)
        if _has_digit(name) and not _NO_PATIENT.fullmatch(name) and not _is_of_image(name):
            pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])[-_. +]*")
            rest = [stem[one.end() :] for stem in stems if (one := pattern.search(stem))]
            if rest and _may_be_one_patient(
                [(parts_of(one, modalities), "") for one in rest], is_id=_is_long_id
            ):
                found.append(ancestor)
    people = [one for one in found if not _GROUP.fullmatch(posixpath.basename(one))]
    return next(iter(people or found), "")


def _is_of_image(name: str) -> bool:
    """Whether a directory is called after an image: `T1`, `T2_FLAIR`."""
    parts = parts_of(name)
    return bool(parts.word) and not parts.subject


def _patient_above(directory: str, top: str) -> str:
    """The directory itself, or the nearest one above it that may be called after a patient.

    `T1` and `T2_FLAIR` are called after an image, where a directory lies above them.
    """
    below = _below(directory, top)
    for ancestor in reversed(below):
        name = posixpath.basename(ancestor)
        of_image = ancestor != below[0] and _is_of_image(name)
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
        and _may_be_one_patient(named)
    )


def _has_digit(name: str) -> bool:
    return re.search(r"\d", name) is not None


def _is_id(name: str) -> bool:
    return _has_digit(name) and not _SERIES_NUMBER.fullmatch(name)


def _is_long_id(name: str) -> bool:
    """Behind the name of a directory a short number is one of a timepoint or a series."""
    return bool(re.search(r"\d{4}", name)) and not _NO_PATIENT.fullmatch(name)


def _may_be_one_patient(
    named: Sequence[tuple[Parts, str]], is_id: Callable[[str], bool] = _is_id
) -> bool:
    """Whether nothing in the names says that a directory's files are several patients'.

    Args:
      named: the parts of each name, and the directory named after a modality that it lies in or "".
      is_id: whether what stands before a word may be a person.
    """
    begun: dict[str, set[str]] = defaultdict(set)
    free: dict[str, set[str]] = defaultdict(set)
    for parts, named_after in named:
        if named_after or not parts.word:
            free[named_after].add(parts.subject or parts.rest)
        elif parts.subject:
            begun[parts.word].add(parts.subject)
        else:
            free[parts.word].add(parts.rest)
    most = [
        max((sum(map(is_id, names)) for names in each.values()), default=0)
        for each in (begun, free)
    ]
    begins = max(map(len, begun.values()), default=0)
    return begins <= _MOST_BEGINS and most[0] < _SEVERAL and most[1] < _SEVERAL_WHERE_NAMES_ARE_FREE
