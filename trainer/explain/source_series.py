"""The series that a patient's record was made of, found in the input again by series.csv.

    series.csv (used rows) --path--> its directory below the input --headers--> Series | why not

A series lies in one directory, as a rule, or in those beside it; only there is it looked for.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import read_own_table
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.names import MEMBER, is_archive, name_below, split_member
from beam_jobs.common.printable import printable
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.dicom.headers import SliceHeader, index_files
from beam_jobs.core.series import Series, assemble

TABLE = "series.csv"
_SIZES = ("rows", "columns", "slices")
_ASKED = "is --dicom the input of the dataset?"
_CHUNK = 1000  # files whose headers are read before those of other series are let go


@dataclasses.dataclass(frozen=True, kw_only=True)
class UsedSeries:
    """A row of series.csv of a series that became a channel.

    Attributes:
      path: of its first slice's file, relative to the input.
      sizes: (rows, columns, slices), as texts of the table.
      nifti: whether it came as NIfTI.
    """

    path: str
    sizes: tuple[str, str, str]
    nifti: bool


def read_used(
    data: str, patients: Iterable[str], modalities: Sequence[str]
) -> dict[tuple[str, str], UsedSeries]:
    """The used series of some patients by patient, with the id as it is given, and modality.

    The table has ids as the input spells them; leading zeros do not count.

    Raises:
      UsageError: the dataset has no series.csv.
      ContractError: it is none.
    """
    file = files.join(data, TABLE)
    spelt = {normalised_id(patient_id): patient_id for patient_id in patients}
    try:
        columns = ("patient", "modality", "path", "verdict", "transfer_syntax", *_SIZES)
        rows = read_own_table(file, columns)
    except FileNotFoundError as error:
        raise UsageError(f"--dicom needs {file}, which says what series were used") from error
    except ValueError as error:
        raise ContractError(f"{file}: {error}") from error
    used = {}
    for _, row in rows:
        patient_id, modality = spelt.get(normalised_id(row["patient"])), row["modality"]
        if patient_id is not None and modality in modalities and row["verdict"] == "used":
            used[patient_id, modality] = UsedSeries(
                path=row["path"],
                sizes=(row["rows"], row["columns"], row["slices"]),
                nifti=row["transfer_syntax"].startswith("NIfTI"),
            )
    return used


def find_series(root: str, wanted: Iterable[UsedSeries]) -> dict[UsedSeries, Series | str]:
    """Each row's series below the input, or why there is none in words.

    A directory is listed and its headers are read once for all rows that point into it.

    Args:
      root: the input that the dataset was made of, wherever it lies now.
      wanted: the rows.

    Raises:
      CommandError: a store refuses or fails.
    """
    found: dict[UsedSeries, Series | str] = {}
    directories: dict[str, list[UsedSeries]] = defaultdict(list)
    for one in wanted:
        if one.nifti:
            found[one] = "it came as NIfTI, which says nothing of a patient's study"
        else:
            directories[posixpath.dirname(one.path)].append(one)
    for directory, rows in directories.items():
        found |= _found_in(root, directory, rows)
        # One whose files lie in several directories, as discs have them.
        left = [one for one in rows if not isinstance(found[one], Series)]
        if left and directory and not files.is_dicomweb(root):
            wider = _found_in(root, posixpath.dirname(directory), left)
            found |= {one: series for one, series in wider.items() if isinstance(series, Series)}
    return found


def _found_in(
    root: str, directory: str, rows: Sequence[UsedSeries]
) -> dict[UsedSeries, Series | str]:
    """Of each row the series below one directory of the input, or why there is none."""
    entries: dict[str, files.Entry] = {}
    for place in _places(root, directory):
        entries |= {_name(root, entry.path): entry for entry in _entries(place)}
        if all(one.path in entries for one in rows):
            break
    found: dict[UsedSeries, Series | str] = {}
    wanted: dict[tuple[str, str], list[UsedSeries]] = defaultdict(list)
    for one in rows:
        entry = entries.get(one.path)
        if entry is None:
            # Of a service without its search, which may tell names.
            found[one] = f"{one.path} is not below {files.join(root)}: {_ASKED}"
            continue
        headers, rejections = index_files([entry.path])
        if rejections:
            found[one] = f"{one.path}: {rejections[0].detail}"
        else:
            wanted[headers[0].study_uid, headers[0].series_uid].append(one)
    if not wanted:
        return found
    of_series: dict[tuple[str, str], list[SliceHeader]] = defaultdict(list)
    everything = list(entries.values())
    for start in range(0, len(everything), _CHUNK):
        chunk = everything[start : start + _CHUNK]
        with files.fetched_ahead(chunk, files.HEAD_BYTES):
            headers, _ = index_files(entry.path for entry in chunk)
        for header in headers:
            if (header.study_uid, header.series_uid) in wanted:
                of_series[header.study_uid, header.series_uid].append(header)
    for key, of_key in wanted.items():
        volumes, _ = assemble(of_series.pop(key))
        for one in of_key:
            found[one] = _matching(root, volumes, one)
    return found


def _matching(root: str, volumes: Sequence[Series], one: UsedSeries) -> Series | str:
    """The first of some volumes that is the row's, or what differs."""
    begun = [series for series in volumes if _name(root, series.first.path) == one.path]
    for series in begun:
        sizes = (*series.geometry.shape[:2], len(series.headers))
        if one.sizes == tuple(map(str, sizes)):
            return series
    there = " or ".join(
        " x ".join(map(str, (*s.geometry.shape[:2], len(s.headers)))) for s in begun
    )
    return (
        f"the series of {one.path} has {there or 'other'} voxels now, {TABLE} says "
        f"{' x '.join(one.sizes)}: {_ASKED}"
    )


def _places(root: str, directory: str) -> Iterator[str]:
    """Where a directory of the input's tables may lie: a directory, or one in an archive.

    Args:
      root: the input.
      directory: relative to it, an archive counted as the directory of its name.
    """
    parts = directory.split("/") if directory else []
    if not {"", ".", ".."}.isdisjoint(parts):  # a table that is not ours leads nowhere else
        return
    if files.is_dicomweb(root):
        yield files.join(root, *(parts[:-1] if parts[-1:] == ["instances"] else parts))
        return
    if split_member(root) or is_archive(root):
        inside = root if split_member(root) else f"{root}{MEMBER}"
        yield files.join(inside, *parts) if parts else inside
    yield files.join(root, *parts) if parts else root
    for count, part in enumerate(parts):
        above = files.join(root, *parts[:count]) if count else root
        for name in files.names(above):
            if name != part and files.logical(name) == part:
                yield f"{above.rstrip('/')}/{name}{MEMBER}{'/'.join(parts[count + 1 :])}"


def _entries(place: str) -> list[files.Entry]:
    """The files below a directory that may not be there."""
    try:
        return files.entries(place)
    except OSError:
        return []


def _name(root: str, path: str) -> str:
    """A file's path as series.csv has it."""
    return printable(name_below(root, path))
