"""Files, wherever they lie: the only way to a path that a user names.

    from beam_jobs.common.files import interface as files

A path is a local one, `gs://bucket/name`, `s3://bucket/name`, `az://container/name`, `http(s)://…`
(read only), a member of an archive in any of these (`export.zip!/train/x.dcm`, read only), or
DICOM in a DICOMweb service (`dicomweb+https://host/path?Modality=MR`, read only).
Local paths cost no import of a store's client. Whatever the function, it raises

  FileNotFoundError   where there is no such file, object, bucket or member;
  OSError             where it is there and cannot be used: a disk's refusal, a damaged archive;
  CommandError        where a store refuses, or fails beyond all retries (`StoreError`);
  UsageError          where the path makes no sense: an unknown scheme, writing to a web server.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing
from typing import IO

from beam_jobs.common.files import ahead, local, objects, opening
from beam_jobs.common.files.archives.inflate import RAW, InflatedBytes, Window, most_inflated
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb import stow
from beam_jobs.common.files.dicomweb.place import names_local_file, told
from beam_jobs.common.files.local import LocalBytes
from beam_jobs.common.files.lock import Lock, claim, claimed, lock, unclaim
from beam_jobs.common.files.mirror import Mirror, fetched, fetched_once, mirrored
from beam_jobs.common.files.names import (
    Entry,
    Listing,
    Status,
    StrPath,
    file_name,
    file_names,
    is_dicomweb,
    is_remote,
    join,
    logical,
    logical_root,
    member,
    name_of,
    require_writable,
    require_written,
    split_member,
    temporary_of,
    text,
    trimmed,
)
from beam_jobs.common.files.scratch import remove_left, scratch
from beam_jobs.common.files.sources import (
    HEAD_BYTES,
    MOST_BYTES,
    TABLE_BYTES,
    ByteSource,
    SourceFile,
    SpecialFileError,
    TooLargeError,
    require_size,
)
from beam_jobs.common.files.store_lock import LockedError, owner
from beam_jobs.common.files.writer import REFUSALS, Writer, refused

__all__ = [
    "HEAD_BYTES",
    "MOST_BYTES",
    "REFUSALS",
    "TABLE_BYTES",
    "ByteSource",
    "Entry",
    "Listing",
    "LocalBytes",
    "Lock",
    "LockedError",
    "Mirror",
    "SourceFile",
    "SpecialFileError",
    "Status",
    "StoreError",
    "StrPath",
    "TooLargeError",
    "Writer",
    "claim",
    "claimed",
    "copy",
    "delete",
    "entries",
    "exists",
    "fetched",
    "fetched_ahead",
    "fetched_once",
    "file_name",
    "file_names",
    "holds_files",
    "inflated",
    "is_dicomweb",
    "is_dir",
    "is_remote",
    "join",
    "listing",
    "lock",
    "logical",
    "logical_root",
    "member",
    "mirrored",
    "most_inflated",
    "name_of",
    "names",
    "names_local_file",
    "open_bytes",
    "open_read",
    "open_write",
    "owner",
    "read",
    "read_range",
    "read_text",
    "refused",
    "remove_left",
    "replace",
    "require_writable",
    "scratch",
    "size",
    "stat",
    "store_dicom",
    "temporary_of",
    "text",
    "told",
    "tree",
    "trimmed",
    "unclaim",
    "write",
    "write_new",
    "write_text",
]


def entries(root: StrPath) -> list[Entry]:
    """Every file below a root that is read, in the order of their paths.

    Hidden files and directories, DICOMDIR and what file managers leave behind are no input. An
    archive, `root` itself or one below it, counts as a directory of its members; of a search in a
    DICOMweb service the files are the instances of the series that it finds. One that cannot
    be read is an entry that `open_bytes` refuses, as is a directory below a local `root` that
    cannot be listed, by its path with a slash at the end.

    Raises:
      NotADirectoryError: a local `root` that is no directory and no archive.
    """
    return opening.listing(text(root), counted=False).entries


def listing(root: StrPath) -> Listing:
    """`entries`, and how many files below a root are none of them.

    Together these are all files there are; of what cannot be listed, each counts as one.
    """
    return opening.listing(text(root))


def holds_files(root: StrPath) -> bool:
    """Whether `entries` would find any, without listing all of a store's."""
    return opening.holds_files(text(root))


def names(directory: StrPath) -> list[str]:
    """Names of the files directly in a directory, hidden ones too, sorted; none where it is not."""
    return opening.names(text(directory))


def tree(directory: StrPath) -> list[str]:
    """Every file below a directory by its path from there, hidden ones too; none where it is not.

    No link is followed and no archive opened. A link to a directory ends with a slash, as does a
    directory that cannot be listed: what lies behind either is not known.
    """
    return opening.tree(text(directory))


def exists(path: StrPath) -> bool:
    """Whether a file or directory is there."""
    return stat(path) is not None or is_dir(path)


def is_dir(path: StrPath) -> bool:
    """Whether a path is a directory: in a store, whether anything lies below it.

    An archive is one.
    """
    return opening.is_dir(text(path))


def stat(path: StrPath) -> Status | None:
    """Size, time of change and version of a file; None where there is no such file."""
    return opening.stat(text(path))


def size(path: StrPath) -> int:
    """Bytes of a file."""
    found = stat(path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), text(path))
    return found.size


def read(path: StrPath, *, limit: int | None = MOST_BYTES) -> bytes:
    """A whole file as it is, whatever its extension says of compression.

    Args:
      path: the file.
      limit: the most bytes that it may hold; None for shards, whose length is known otherwise.

    Raises:
      TooLargeError: it holds more; an `OSError` that is raised before all of it is read.
      SpecialFileError: a named pipe, a device or a socket; an `OSError` too.
    """
    path = text(path)

    def require(size: int) -> None:
        if limit is not None:
            require_size(size, limit, path)

    if split_member(path) is not None or is_dicomweb(path):
        with closing(opening.open_source(path)) as source:
            require(source.size)
            return source.read_at(0, source.size)
    return objects.read_whole(path, require) if is_remote(path) else local.read_whole(path, limit)


def read_text(path: StrPath, *, limit: int = MOST_BYTES) -> str:
    """A whole UTF-8 file.

    Raises:
      UnicodeDecodeError: it is not UTF-8.
      TooLargeError, SpecialFileError: as `read`.
    """
    return read(path, limit=limit).decode()


def read_range(path: StrPath, start: int, length: int) -> bytes:
    """At most `length` bytes from `start`; fewer only at the end of the file."""
    with open_bytes(path) as source:
        return source.read_at(start, length)


def open_read(path: StrPath) -> IO[bytes]:
    """A file as a stream with `seek`, as it is, whatever its extension says of compression.

    In a store, blocks that follow one another grow to 8 MiB; seeking costs no request.

    Raises:
      SpecialFileError: a named pipe, a device or a socket.
    """
    path = text(path)
    if not is_remote(path) and split_member(path) is None:
        return local.open_read(path)
    return io.BufferedReader(SourceFile(opening.open_source(path), path, owned=True), HEAD_BYTES)


def open_bytes(path: StrPath) -> AbstractContextManager[ByteSource]:
    """Opens a file for reading at any place, without a buffer on local disks.

    Named pipes and devices are refused. A `.dcm.gz` is what its decompression gives. Of a local
    file it is `LocalBytes`, which is never mapped: one that shrinks would end the process.
    """
    return opening.open_bytes(text(path))


def inflated(source: ByteSource, path: str, start: int) -> ByteSource:
    """A file's deflated bytes from `start` on, inflated as far as they are read; closed with it.

    Reading raises `TooLargeError` where they give more than any image of that size does.
    """
    packed = Window(source, start, source.size - start, source.modified)
    return InflatedBytes(packed, path, window=RAW)


def fetched_ahead(entries: Iterable[Entry], length: int) -> AbstractContextManager[None]:
    """For the time of the block, this thread's `open_bytes` finds the begins of files fetched.

    Args:
      entries: what will be opened, in that order; opening others, or in another order, costs time.
        Local files are left alone.
      length: how much of each; the listing's size and stamp are known with it.
    """
    return ahead.fetched_ahead(entries, length)


def open_write(path: StrPath) -> Writer:
    """A stream that becomes the file when it is closed; its directory is made.

    Left by an error its block leaves what was there before. A killed process leaves on a disk what
    `temporary_of` recognises, in a store nothing.
    """
    path = text(path)
    require_written(path)
    return objects.open_write(path) if is_remote(path) else local.open_write(path)


def write(path: StrPath, data: bytes) -> None:
    """Writes a file whole: no reader finds half of it, and a failure leaves the old one."""
    path = text(path)
    require_written(path)
    if is_remote(path):
        objects.put(path, data)
    else:
        local.write(path, data)


def store_dicom(place: StrPath, name: str, data: bytes) -> None:
    """Stores a DICOM object: as a file of a directory, or in a DICOMweb service (STOW-RS).

    Args:
      place: the directory, or the service's root.
      name: of the file in a directory; a service goes by the object's own UIDs.
      data: the object as a file (PS3.10). One that is there is replaced in a directory; a service
        keeps what it has.

    Raises:
      StoreError: the place refuses it, or fails beyond all retries.
    """
    place = text(place)
    if is_dicomweb(place):
        stow.store(place, [(name, data)])
    else:
        write(join(place, name), data)


def write_text(path: StrPath, data: str) -> None:
    """Writes a UTF-8 file whole."""
    write(path, data.encode())


def write_new(path: StrPath, data: bytes) -> bool:
    """Writes a file whole unless there is one, which no other writer can come between.

    Returns:
      Whether it was written; also where the very same bytes lie in a store already, for a retried
      request may find what its first try wrote. Whoever competes for it writes what only they can.
    """
    path = text(path)
    require_written(path)
    return objects.put_new(path, data) if is_remote(path) else local.write_new(path, data)


def copy(source: StrPath, target: StrPath) -> None:
    """Copies a file; the target appears whole. Within a bucket the store does it."""
    source, target = text(source), text(target)
    require_written(target)
    if is_remote(source) and is_remote(target) and not is_dicomweb(source):
        objects.copy(source, target)
        return
    with open_read(source) as stream, open_write(target) as copied:
        shutil.copyfileobj(stream, copied, objects.PART_BYTES)


def replace(source: StrPath, target: StrPath) -> None:
    """Renames `source` to `target`, which it replaces at once; stores copy and delete."""
    source, target = text(source), text(target)
    require_written(source)
    if is_remote(source) or is_remote(target):
        copy(source, target)
        delete([source])
    else:
        local.replace(source, target)


def delete(paths: Iterable[StrPath]) -> None:
    """Deletes files; one that is gone already is no error."""
    found = [text(path) for path in paths]
    for path in found:
        require_written(path)
        if not is_remote(path):
            local.delete(path)
    objects.delete([path for path in found if is_remote(path)])
