"""Zip archives: the table from the central directory, members by ranges."""

from __future__ import annotations

import errno
import stat
import struct
import zipfile

from beam_jobs.common.files.archives.inflate import (
    INFLATED_BYTES,
    RAW,
    InflatedBytes,
    Window,
    most_inflated,
)
from beam_jobs.common.files.archives.members import DEFLATED, STORED, Member, Members
from beam_jobs.common.files.objects import stamp_of
from beam_jobs.common.files.sources import ByteSource, SourceFile

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # PKWARE's APPNOTE 4.3.7: lengths of name and extra field
_ENCRYPTED = 1


def members_of(source: ByteSource) -> Members:
    """The members of a zip archive.

    Raises:
      OSError, ValueError, zipfile.BadZipFile, and more: it is none, or it is damaged.
    """
    members = Members(source.size)
    with zipfile.ZipFile(SourceFile(source)) as archive:
        # Where the next record begins: none of an archive that somebody packed reaches there.
        starts = sorted({info.header_offset for info in archive.infolist()})
        ends = dict(zip(starts, [*starts[1:], archive.start_dir], strict=True))
        seen: set[int] = set()
        for info in archive.infolist():
            # Some exporters on Windows take the wrong slash.
            name = info.orig_filename.replace("\\", "/")
            if name.endswith("/"):
                continue
            at = info.header_offset
            apart = at not in seen and at + _LOCAL_HEADER.size + info.compress_size <= ends[at]
            seen.add(at)
            members.put(name, _member(info, apart=apart))
    return members


def _member(info: zipfile.ZipInfo, *, apart: bool) -> Member:
    fault = ""
    most = min(most_inflated(info.compress_size), INFLATED_BYTES)
    if info.flag_bits & _ENCRYPTED:
        fault = "the member is encrypted"
    elif info.compress_type not in (STORED, DEFLATED):
        fault = f"the member is compressed by method {info.compress_type}, not deflated or stored"
    elif stat.S_ISLNK(info.external_attr >> 16):
        fault = "the member is a link"
    elif not apart:
        fault = "the member overlaps with another one"
    elif info.compress_type == DEFLATED and info.file_size > most:
        fault = f"the member would unpack to {info.file_size} bytes, {most} are allowed"
    elif info.compress_type == STORED and info.file_size != info.compress_size:
        fault = "the archive's table contradicts itself"
    return Member(
        size=info.file_size,
        stamp=stamp_of(f"{info.CRC:08x} {info.file_size}"),
        start=info.header_offset,
        packed=info.compress_size,
        method=info.compress_type,
        crc=info.CRC,
        fault=fault,
    )


def open_member(source: ByteSource, member: Member, path: str) -> ByteSource:
    """A member as a source.

    Args:
      source: the archive; closed with the member.
      member: of its table.
      path: of the member, for messages.

    Raises:
      OSError: what lies where the table points to is no member.
    """
    header = source.read_at(member.start, _LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise OSError(errno.EBADMSG, "damaged zip archive: no member where one is listed", path)
    _, name, extra = _LOCAL_HEADER.unpack(header)
    start = member.start + _LOCAL_HEADER.size + name + extra
    window = Window(source, start, member.packed, member.stamp)
    if member.method == STORED:
        return window
    return InflatedBytes(window, path, window=RAW, size=member.size, crc=member.crc)
