"""Archives as directories: `.zip`, `.tar`, `.tar.gz`; streamed, never unpacked to a disk.

A member's path says where it is, `s3://b/export.zip!/train/1/x.dcm`, and any process opens it from
that. Each process reads an archive's table once:

  .zip       its directory at the end, a few requests; members are ranges
  .tar       its headers: on a disk they are visited, in a store the archive streams by once;
             members are ranges
  .tar.gz    inflated once from begin to end; a member inflates from the nearest of some points

What is wrong with an archive or a member is an OSError where that member is opened.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter, OrderedDict
from concurrent.futures import Future
from typing import NamedTuple

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import local, objects
from beam_jobs.common.files.archives import tar_archive, zip_archive
from beam_jobs.common.files.archives.gzip_index import GzipIndex
from beam_jobs.common.files.archives.inflate import Window
from beam_jobs.common.files.archives.members import Member, Members
from beam_jobs.common.files.local import LocalBytes
from beam_jobs.common.files.names import (
    MEMBER,
    Entry,
    Listing,
    Status,
    is_remote,
    left_out_as,
)
from beam_jobs.common.files.sources import ByteSource, ObjectBytes
from beam_jobs.common.files.streamed import StreamedBytes

DAMAGED = errno.EBADMSG
_HEADER_BYTES = 256  # of a zip's member, with an extra field as long as most are
_OPEN = 256  # archives whose tables a process remembers


class Archive(NamedTuple):
    """An archive as this process found it.

    Attributes:
      path: of the archive.
      status: the version that the table is of.
      members: name → member.
      fault: why these are not all that was in it, "" where they are.
      inflated: the content of a `.tar.gz`, None of the others.
    """

    path: str
    status: Status
    members: Members
    fault: str
    inflated: GzipIndex | None = None


class _Opened:
    """The archives that this process knows; each is read once, whoever needs it first."""

    def __init__(self) -> None:
        self.archives: OrderedDict[tuple[str, Status | None], Future[Archive]] = OrderedDict()
        self.guard = threading.Lock()


_opened = _Opened()


def _after_fork() -> None:
    global _opened
    _opened = _Opened()


os.register_at_fork(after_in_child=_after_fork)


def archive_of(path: str) -> Archive:
    """An archive's table, remembered; on a disk for as long as the file is the same.

    In a store whoever reads a member of another version by now is refused.

    Raises:
      FileNotFoundError: there is no such archive.
      OSError: it cannot be opened. One that is damaged gives what there is, with its fault.
      StoreError: the store fails.
    """
    key = path, None if is_remote(path) else local.stat(path)
    with _opened.guard:
        future = _opened.archives.get(key)
        mine = future is None
        if future is None:
            future = _opened.archives[key] = Future()
            while len(_opened.archives) > _OPEN:
                _opened.archives.popitem(last=False)
        _opened.archives.move_to_end(key)
    if mine:
        try:
            future.set_result(_read(path))
        except BaseException as error:
            with _opened.guard:
                if _opened.archives.get(key) is future:
                    del _opened.archives[key]
            future.set_exception(error)
    return future.result()


def _read(path: str) -> Archive:
    status = objects.stat(path) if is_remote(path) else local.stat(path)
    if status is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    members, fault, inflated = Members(status.size), "", None
    lower = path.lower()
    kind = "zip" if _is_zip(path) else "tar"
    try:
        if kind == "zip":
            source = _source(path, status)
            try:
                members = zip_archive.members_of(source)
            finally:
                source.close()
        else:
            version = status.tag or f"{status.size} {status.modified}"
            stream = _stream(path, status)
            try:
                if lower.endswith(".tar"):
                    size = status.size
                    members, fault = tar_archive.members_of(stream, size, version, size)
                else:
                    inflated = GzipIndex(stream, lambda: _source(path, status), path)
                    members, fault = tar_archive.members_of(inflated, None, version, status.size)
                    inflated.end_of_first_pass()
            finally:
                stream.close()
    except (CommandError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # whatever a hostile file makes zipfile and tarfile raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        fault = f"not a readable {kind} archive: {reason}"
    return Archive(path, status, members, " ".join(fault.split())[:300], inflated)


def _is_zip(path: str) -> bool:
    return path.lower().endswith(".zip")


def _source(path: str, status: Status, address: str = "", start: int = 0) -> ByteSource:
    if is_remote(path):
        size, tag = status.size, status.tag
        return ObjectBytes(path, size=size, tag=tag, address=address, start=start)
    source = LocalBytes(path)
    if (source.size, source.modified) != status[:2]:
        source.close()
        raise OSError(errno.ESTALE, "was replaced while it was read", path)
    return source


def _stream(path: str, status: Status) -> ByteSource:
    if is_remote(path):
        return StreamedBytes(path, status.size, status.tag)
    return LocalBytes(path)


def listing(path: str, below: str = "") -> Listing:
    """The members of an archive that are read, in no order, and how many are not.

    One more stands for what could not be found because the archive is damaged.

    Args:
      path: of the archive.
      below: of its members only those in this directory.
    """
    archive = archive_of(path)
    prefix = _prefix(below)
    found: list[Entry] = []
    skipped: Counter[str] = Counter()
    for name, member in archive.members.items():
        if not name.startswith(prefix):
            continue
        if kind := left_out_as(name[len(prefix) :]):
            skipped[kind] += 1
        else:
            found.append(Entry(f"{path}{MEMBER}{name}", member.size, member.stamp))
    if archive.fault:
        found.append(Entry(f"{path}{MEMBER}"))
    return Listing(found, skipped)


def stat(path: str, name: str) -> Status | None:
    """What an archive's table says of a member, None where it has none of that name."""
    member = archive_of(path).members.get(name)
    return None if member is None else Status(member.size, member.stamp)


def names(path: str, below: str) -> list[str]:
    """Names of the members directly in a directory of an archive, sorted."""
    prefix = _prefix(below)
    found = (name[len(prefix) :] for name in archive_of(path).members if name.startswith(prefix))
    return sorted(name for name in found if "/" not in name)


def is_dir(path: str, below: str) -> bool:
    """Whether an archive has members below a directory of it."""
    prefix = _prefix(below)
    return any(name.startswith(prefix) for name in archive_of(path).members)


def _prefix(below: str) -> str:
    return f"{below.rstrip('/')}/" if below else ""


def find(path: str, name: str) -> tuple[Archive, Member]:
    """A member, with its archive.

    Raises:
      FileNotFoundError: there is none of that name.
      OSError: it cannot be read, or the archive is damaged and may have had it.
    """
    archive = archive_of(path)
    member = archive.members.get(name)
    if member is None:
        address = f"{path}{MEMBER}{name}"
        if archive.fault:
            raise OSError(DAMAGED, archive.fault, address)
        raise FileNotFoundError(errno.ENOENT, "no such member", address)
    if member.fault:
        raise OSError(DAMAGED, member.fault, f"{path}{MEMBER}{name}")
    return archive, member


class Span(NamedTuple):
    """Where in an archive the begin of a member lies.

    Attributes:
      path: of the member.
      archive: that it is in.
      start, end: bytes of the archive.
    """

    path: str
    archive: Archive
    start: int
    end: int


def span_of(path: str, name: str, length: int) -> Span | None:
    """The bytes of an archive that give a member's first `length`; None where none do.

    A deflated member's first bytes take at most about as many packed ones.
    """
    try:
        archive, member = find(path, name)
    except OSError:  # whoever opens it gets the error again
        return None
    if archive.inflated is not None:
        return None
    header = _HEADER_BYTES + 2 * len(name.encode(errors="surrogateescape")) if _is_zip(path) else 0
    end = min(archive.status.size, member.start + header + min(member.packed, length))
    return Span(f"{path}{MEMBER}{name}", archive, member.start, end)


def open_member(path: str, name: str) -> ByteSource:
    """A member as a source; opening costs no request where its begin was fetched ahead.

    Raises:
      FileNotFoundError: no such archive or member.
      OSError: it cannot be read.
      StoreError: the store fails, or has another version of the archive by now.
    """
    archive, member = find(path, name)
    if archive.inflated is not None:
        return Window(archive.inflated, member.start, member.size, member.stamp)
    address = f"{path}{MEMBER}{name}"
    source = _source(path, archive.status, address, member.start)
    try:
        if _is_zip(path):
            return zip_archive.open_member(source, member, address)
        return Window(source, member.start, member.size, member.stamp)
    except BaseException:
        source.close()
        raise
