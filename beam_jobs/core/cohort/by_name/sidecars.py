"""What lies beside NIfTI files and holds no image to read: left out, and counted by what it is.

Only where an input holds NIfTI files. Of a heap of DICOM every file is looked into, whatever its
name: a letter or a table in it is a row of its own.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.by_name.words import BIDS_SUBJECT
from beam_jobs.core.nifti.names import is_nifti

_SUFFIXES = frozenset(
    {
        *("json", "tsv", "csv", "txt", "md", "rst", "bval", "bvec", "bvals", "bvecs", "log"),
        *("html", "htm", "svg", "png", "jpg", "jpeg", "gif", "pdf", "xls", "xlsx", "docx"),
        *("mat", "xfm", "lta", "h5", "m", "py", "sh", "r", "ipynb", "yml", "yaml", "toml", "xml"),
        *("cff", "sha256", "md5", "tmp", "edf", "vhdr", "vmrk", "eeg", "set", "fdt"),
    }
)
_NAMES = frozenset({"readme", "changes", "license", "licence", "citation", "dataset_description"})
# Directories of a BIDS dataset beside those of its subjects (BIDS, "Modality agnostic files").
_BESIDE = frozenset({"derivatives", "sourcedata", "code", "stimuli", "phenotype"})
# Suffixes of what BIDS has of volumes over time, fields and phases, that are no anatomy.
_NO_ANATOMY = re.compile(
    r"_(bold|sbref|cbv|dwi|asl|m0scan|epi|fieldmap|phase(?:diff|[12])?|magnitude[12]?|"
    r"TB[123]\w*|RB\w*)\.nii(?:\.gz)?$"
)


def listing(root: str) -> files.Listing:
    """All that lies below a root, as `files.listing`; beside NIfTI files only what may be an image.

    Args:
      root: a directory or an archive, anywhere.

    Raises:
      OSError, CommandError: as `files.listing`.
    """
    return without_sidecars(files.listing(root), root)


def without_sidecars(found: files.Listing, root: str) -> files.Listing:
    """The listing without what lies beside NIfTI files; that is counted as left out.

    Args:
      found: of `files.listing`.
      root: what it lists.
    """
    if not any(is_nifti(entry.path) for entry in found.entries):
        return found
    top = f"{files.logical_root(root, found.entries[0].path)}/"
    names = [files.logical(entry.path).removeprefix(top) for entry in found.entries]
    bids = any(map(_is_of_subject, names))
    kinds = [_left_out_as(name, bids=bids) for name in names]
    counts = Counter(found.left_out)
    counts.update(filter(None, kinds))
    entries = [entry for entry, kind in zip(found.entries, kinds, strict=True) if not kind]
    return found._replace(entries=entries, left_out=dict(counts))


def _is_of_subject(name: str) -> bool:
    """Whether a path below the input is a NIfTI file of a BIDS subject."""
    return is_nifti(name) and BIDS_SUBJECT.fullmatch(name.partition("/")[0]) is not None


def _left_out_as(name: str, *, bids: bool) -> str:
    """What a file below an input of NIfTI files is left out as, "" where it is read."""
    first, *_ = name.split("/")
    if bids and first in _BESIDE and "/" in name:
        return f"in {first}/"
    if first == "derivatives" and "/" in name:
        return "in derivatives/"
    if bids and (found := _NO_ANATOMY.search(name)):
        return f"_{found[1]}"
    stem, _, suffix = posixpath.basename(name).casefold().rpartition(".")
    if suffix in _SUFFIXES and stem:
        return f".{suffix}"
    return suffix.upper() if not stem and suffix in _NAMES else ""
