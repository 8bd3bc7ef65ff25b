"""Tar archives: the table from one pass over the headers, members by ranges."""

from __future__ import annotations

import errno
import io
import os
import tarfile

from beam_jobs.common.files.archives.members import Member, Members
from beam_jobs.common.files.objects import stamp_of
from beam_jobs.common.files.sources import ByteSource, TooLargeError

# A tarfile remembers all members; here they are in the table.
_FORGET_AFTER = 1000
# Long names and the like; what claims to be longer would only cost memory.
_HEADER_BYTES = 16 << 20


class _Headers(io.RawIOBase):
    """A source of unknown length as the stream that tarfile reads headers from."""

    def __init__(self, source: ByteSource) -> None:
        super().__init__()
        self._source = source
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset
        return offset

    def read(self, count: int | None = -1) -> bytes:
        if count is None or not 0 <= count <= _HEADER_BYTES:
            raise OSError(errno.EBADMSG, f"a header of {count} bytes")
        data = self._source.read_at(self._at, count)
        self._at += len(data)
        return data


def members_of(
    source: ByteSource, size: int | None, version: str, packed: int
) -> tuple[Members, str]:
    """The members of a tar archive, and why there may have been more ("" where not).

    Args:
      source: the archive, inflated; its headers are read from begin to end.
      size: its bytes, None where that is not known.
      version: of the archive. A tar knows no checksum of its members, and many are written with
        one time for all of them: a member is as old as its archive.
      packed: bytes of the archive as it lies there.

    Raises:
      tarfile.TarError, OSError: it is none.
    """
    stream = _Headers(source)
    members = Members(packed)
    # Where a hard link points to, links may point further.
    by_name: dict[str, Member] = {}
    with tarfile.open(fileobj=stream, mode="r:", errorlevel=2) as archive:
        while True:
            try:
                info = archive.next()
            except (tarfile.TarError, EOFError, ValueError, OSError) as error:
                return members, f"damaged tar archive: {getattr(error, 'strerror', '') or error}"
            if info is None:
                return members, ""
            if len(archive.members) > _FORGET_AFTER:  # type: ignore[attr-defined]
                archive.members = []  # type: ignore[attr-defined]
            if info.isdir():
                continue
            member = by_name.get(info.linkname) if info.islnk() else None
            member = member or _member(info, size, version)
            by_name[info.name] = member
            try:
                members.put(info.name, member)
            except TooLargeError as error:
                return members, str(error.strerror)


def _member(info: tarfile.TarInfo, size: int | None, version: str) -> Member:
    fault = ""
    if info.issym() or info.islnk():
        fault = "the member is a link"
    elif not info.isreg() or info.issparse():
        fault = "the member is not a regular file"
    elif size is not None and info.offset_data + info.size > size:
        fault = "the archive ends before the member does"
    return Member(
        size=info.size,
        stamp=stamp_of(f"{info.mtime} {info.size} {info.offset_data} {version}"),
        start=info.offset_data,
        packed=info.size,
        fault=fault,
    )
