"""Which kind of file a path names, and what lies below a root."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import local, objects
from beam_jobs.common.files.archives import archive as archives
from beam_jobs.common.files.archives.inflate import GZIP, InflatedBytes
from beam_jobs.common.files.clients import pool
from beam_jobs.common.files.dicomweb import service
from beam_jobs.common.files.dicomweb.place import service_of
from beam_jobs.common.files.names import (
    GZIPPED,
    MEMBER,
    Entry,
    Listing,
    Status,
    is_archive,
    is_dicomweb,
    is_remote,
    join,
    left_out_as,
    logical,
    split_member,
)
from beam_jobs.common.files.sources import ByteSource, ObjectBytes


def open_bytes(path: str) -> closing[ByteSource]:
    """Opens a file for reading at any place; a `.dcm.gz` inflated."""
    source = open_source(path)
    if path[-1:] in "zZ" and path.lower().endswith(GZIPPED):
        source = InflatedBytes(source, path, window=GZIP)
    return closing(source)


def open_source(path: str) -> ByteSource:
    """A file as it is; who calls it closes it."""
    if MEMBER in path and (found := split_member(path)):
        return archives.open_member(*found)
    if is_dicomweb(path):
        return service.open_source(path)
    if is_remote(path):
        return ObjectBytes(path)
    if path.endswith("/"):
        raise local.unlisted(path)
    return local.LocalBytes(path)


def listing(root: str, *, counted: bool = True) -> Listing:
    """All below a root, as `interface.listing` has it.

    Args:
      root: a directory or an archive.
      counted: also count files in hidden directories of a disk, which costs a look into each.
    """
    if is_dicomweb(root):
        return service.listing(root)
    if found := split_member(root):
        files, left_out = archives.listing(*found)
        return Listing(_in_order(files), left_out)
    if is_archive(root) and not _is_directory(root):
        archive = archives.archive_of(root)
        if archive.fault and not archive.members:
            raise OSError(archives.DAMAGED, archive.fault, root)
        files, left_out = archives.listing(root)
        return Listing(_in_order(files), left_out)
    skipped: Counter[str] = Counter()
    if not is_remote(root):
        files = [Entry(path) for path in local.list_files(root, skipped if counted else None)]
    else:
        prefix = join(root, "")
        files = []
        for entry in objects.entries(prefix):
            if kind := left_out_as(entry.path[len(prefix) :]):
                skipped[kind] += 1
            else:
                files.append(entry)
        files.sort()
    packed = [entry.path for entry in files if is_archive(entry.path)]
    if not packed:
        return Listing(files, skipped)
    files = [entry for entry in files if not is_archive(entry.path)]
    # On a disk one after the other, for there the processor is what they wait for.
    for part in pool().map(_expanded, packed) if is_remote(root) else map(_expanded, packed):
        files += part.entries
        skipped.update(part.left_out)
    return Listing(_in_order(files), skipped)


def _expanded(archive: str) -> Listing:
    try:
        return archives.listing(archive)
    except OSError:  # whoever opens it gets the error again
        return Listing([Entry(f"{archive}{MEMBER}")], {})


def _in_order(found: list[Entry]) -> list[Entry]:
    return sorted(found, key=lambda entry: (logical(entry.path), entry))


def _is_directory(path: str) -> bool:
    """Whether a path that is named like an archive is a directory all the same."""
    return not is_remote(path) and os.path.isdir(path)


def holds_files(root: str) -> bool:
    """Whether `listing` would find any that is read."""
    if is_dicomweb(root):
        return service.holds_files(root)
    if not is_remote(root) or is_archive(root) or split_member(root):
        return bool(listing(root, counted=False).entries)
    prefix = join(root, "")
    return any(not left_out_as(entry.path[len(prefix) :]) for entry in objects.entries(prefix))


def stat(path: str) -> Status | None:
    """Size, time of change and version of a file; None where there is no such file."""
    if is_dicomweb(path):
        return service.stat(path)
    if found := split_member(path):
        return archives.stat(*found)
    return objects.stat(path) if is_remote(path) else local.stat(path)


def names(directory: str) -> list[str]:
    """Names of the files directly in a directory, sorted; none where it is not."""
    require_names(directory)
    if found := split_member(directory):
        return archives.names(*found)
    return objects.names(directory) if is_remote(directory) else local.list_names(directory)


def tree(directory: str) -> list[str]:
    """Every file below a directory, hidden ones too, as `interface.tree` has it."""
    require_names(directory)
    if not is_remote(directory):
        return local.tree(directory)
    prefix = join(directory, "")
    return sorted(entry.path[len(prefix) :] for entry in objects.entries(prefix))


def require_names(directory: str) -> None:
    """Refuses a DICOMweb service, which has series and no names of files.

    Raises:
      UsageError: it is one.
    """
    if is_dicomweb(directory):
        raise UsageError(f"{service_of(directory)}: a DICOMweb service holds no files but DICOM")


def is_dir(path: str) -> bool:
    """Whether anything lies below a path; an archive is a directory."""
    if is_dicomweb(path):
        return service.stat(path) is None and service.holds_files(path)
    if found := split_member(path):
        return archives.is_dir(*found)
    if is_archive(path) and stat(path) is not None:
        return True
    return objects.any_below(path) if is_remote(path) else os.path.isdir(path)
