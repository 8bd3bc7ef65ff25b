"""A fast walk over a plain DICOM header: wanted values as bytes, and where the pixels lie.

pydicom needs about ten times as long, mostly to build objects that are not needed here. The walk
knows only the plain case (Part 10, little endian, known lengths, ASCII text); whatever else it
meets it hands over (`HandOver`) to pydicom, which is also what the tests hold it to.

Source: PS3.5 7.1 (data element structure), PS3.10 7.1 (file meta information).
"""

from __future__ import annotations

import struct
from collections.abc import Container
from typing import NamedTuple

from beam_jobs.common.files.interface import ByteSource

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
PIXEL_DATA = 0x7FE00010
_CHUNK = 8192
_UNDEFINED = 0xFFFFFFFF
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LONG_LENGTH = struct.Struct("<L")
_LONG_VRS = frozenset(
    (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV")
)
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())


class HandOver(Exception):  # noqa: N818 - not an error: the slower reader takes over
    """The file is not plain; pydicom has to read it."""


class Walk(NamedTuple):
    """What a walk found.

    Attributes:
      transfer_syntax: UID from the file meta information.
      values: wanted tag to its raw value bytes.
      pixel_offset: byte offset of the pixel data's value.
      pixel_length: its bytes, None when encapsulated (undefined length).
    """

    transfer_syntax: str
    values: dict[int, bytes]
    pixel_offset: int
    pixel_length: int | None


def walk(source: ByteSource, wanted: Container[int], encapsulated: Container[str]) -> Walk:
    """Walks the header of an open file.

    Args:
      source: the file.
      wanted: tags (group << 16 | element) whose values are returned.
      encapsulated: compressed transfer syntaxes whose headers may be walked too.

    Raises:
      HandOver: anything but the plain case, including a file without pixel data.
    """
    buffer = source.read_at(0, _CHUNK)
    transfer_syntax, position = _file_meta(buffer)
    implicit = transfer_syntax == IMPLICIT_LITTLE
    if not implicit and transfer_syntax != EXPLICIT_LITTLE and transfer_syntax not in encapsulated:
        raise HandOver("transfer syntax is not plain")
    base = 0
    previous = 0
    values: dict[int, bytes] = {}
    while True:
        start = position - base
        if start + 12 > len(buffer):
            buffer, base, start = source.read_at(position, _CHUNK), position, 0
            if len(buffer) < 12:
                raise HandOver("no pixel data")
        if implicit:
            group, element, length = _IMPLICIT.unpack_from(buffer, start)
            start += 8
        else:
            group, element, vr, length = _EXPLICIT.unpack_from(buffer, start)
            if vr in _SHORT_VRS:
                start += 8
            elif vr in _LONG_VRS:
                (length,) = _LONG_LENGTH.unpack_from(buffer, start + 8)
                start += 12
            else:
                raise HandOver("unknown value representation")
        tag = group << 16 | element
        if tag <= previous:
            raise HandOver("tags out of order")
        previous = tag
        position = base + start
        if tag == PIXEL_DATA:
            break
        if length == _UNDEFINED:
            raise HandOver("undefined length")
        if tag in wanted:
            if length > _CHUNK:
                raise HandOver("long value")
            if start + length > len(buffer):
                buffer, base, start = source.read_at(position, _CHUNK), position, 0
                if length > len(buffer):
                    raise HandOver("value past the end")
            values[tag] = buffer[start : start + length]
        position += length
    if length == _UNDEFINED:
        if transfer_syntax not in encapsulated:
            raise HandOver("undefined length of native pixels")
        return Walk(transfer_syntax, values, position, None)
    if transfer_syntax in encapsulated:
        raise HandOver("encapsulated pixels of known length")
    end = position + length
    if end < source.size:
        # What follows may be padding, never an element that should have come before.
        following = source.read_at(end, 4)
        if len(following) == 4 and _tag_of(following) <= PIXEL_DATA:
            raise HandOver("tags out of order")
    return Walk(transfer_syntax, values, position, length)


def _tag_of(data: bytes) -> int:
    return int.from_bytes(data[:2], "little") << 16 | int.from_bytes(data[2:4], "little")


def _file_meta(buffer: bytes) -> tuple[str, int]:
    """(transfer syntax, offset of the data set), from the file meta information (PS3.10 7.1)."""
    if len(buffer) < 144 or buffer[128:132] != b"DICM":
        raise HandOver("no Part 10 preamble")
    if buffer[132:140] != b"\x02\0\0\0UL\x04\0":
        raise HandOver("no file meta group length")
    end = 144 + _LONG_LENGTH.unpack_from(buffer, 140)[0]
    if end + 12 > len(buffer):
        raise HandOver("file meta information is long")
    position = 144
    transfer_syntax = ""
    while position + 12 <= end + 4:
        group, element, vr, length = _EXPLICIT.unpack_from(buffer, position)
        position += 8
        if group != 2:
            raise HandOver("file meta group length is wrong")
        if vr in _LONG_VRS:
            (length,) = _LONG_LENGTH.unpack_from(buffer, position)
            position += 4
        elif vr not in _SHORT_VRS:
            raise HandOver("unknown value representation")
        if element == 0x0010:
            value = buffer[position : position + length]
            transfer_syntax = value.rstrip(b"\0 ").decode("ascii", "replace")
        position += length
    # The next element must not be of group 2, or the group length lied.
    if position != end or buffer[end : end + 2] == b"\x02\0" or not transfer_syntax:
        raise HandOver("file meta information is not plain")
    return transfer_syntax, end
