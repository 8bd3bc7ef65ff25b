"""A fast walk over a plain DICOM header: wanted values as bytes, and where the pixels lie.

pydicom needs five to ten times as long, mostly to build objects that are not needed here. The walk
knows Part 10 files in little endian, with sequences nested as they may be; whatever else it
meets it hands over (`HandOver`) to pydicom, which is also what the tests hold it to.

Source: PS3.5 7.1 (data element structure), 7.5 (nesting), PS3.10 7.1 (file meta information).
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping
from typing import NamedTuple

from beam_jobs.common.files.interface import ByteSource
from beam_jobs.core.dicom.fields import CREATORS, PrivateField, private_block, private_is_readable

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
PIXEL_DATA = 0x7FE00010
CHUNK = 8192  # bytes read at once: first, and after a jump
_LARGEST_CHUNK = 1 << 16
LONGEST = 4096  # bytes of a wanted value, as pydicom is told
_DEEPEST = 64  # sequences within sequences: pydicom's recursion is bounded too
# Of a header longer than any scanner's no more is kept than the walk needs.
MOST_ELEMENTS = 4096
MOST_PARTS = 16
_UNDEFINED = 0xFFFFFFFF
_EXPLICIT = struct.Struct("<HH2sH")
_IMPLICIT = struct.Struct("<HHL")
_LONG_LENGTH = struct.Struct("<L")
_LONG_VRS = frozenset(
    (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UT", b"UC", b"UR", b"SV", b"UV")
)
_PIXEL_VRS = frozenset((b"OB", b"OW"))
_SEQUENCE_VRS = frozenset((b"SQ", b"UN"))
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())


class HandOver(Exception):  # noqa: N818 - not an error: the slower reader takes over
    """The file is not plain; pydicom has to read it."""


# Where one element lies in the file: (its tag, its value, its end, bytes of its length field, which
# ends where the value begins, whether it is within a sequence). What only opens or closes a
# sequence or an item of undefined length has no value, and 0 bytes of length. Each begins where the
# one before ends. A bare tuple, for there are hundreds a file.
Element = tuple[int, int, int, int, bool]


class Walk(NamedTuple):
    """What a walk found.

    Attributes:
      transfer_syntax: UID from the file meta information.
      values: wanted tag to its raw value bytes.
      private: wanted private tags and what they hold.
      pixel_offset: byte offset of the pixel data's value.
      pixel_length: its bytes, None when encapsulated (undefined length).
      elements: all between the file meta information's group length and the end of the pixel
        data, in order; where they are more than `MOST_ELEMENTS`, some are left out.
      meta_end: where the file meta information ends.
      parts: what was read of the file, as (offset, bytes) in order; the first `MOST_PARTS`.
    """

    transfer_syntax: str
    values: dict[int, bytes]
    private: dict[int, PrivateField]
    pixel_offset: int
    pixel_length: int | None
    elements: list[Element]
    meta_end: int
    parts: list[tuple[int, bytes]]


def walk(
    source: ByteSource,
    wanted: Mapping[int, bytes],
    unusual: Container[int],
    encapsulated: Container[str],
    begin: bytes,
) -> Walk:
    """Walks the header of an open file.

    Args:
      source: the file.
      wanted: tags (group << 16 | element) whose values are returned, and the representation that
        the standard gives them; of another one, a value's bytes mean something else.
      unusual: tags that need more than this walk.
      encapsulated: compressed transfer syntaxes whose headers may be walked too.
      begin: what was read of the file already.

    Raises:
      HandOver: anything but the plain case, including a file without pixel data.
    """
    window = _Window(source, begin)
    elements: list[Element] = []
    transfer_syntax, meta_end = file_meta(begin, elements)
    position = meta_end
    implicit = transfer_syntax == IMPLICIT_LITTLE
    vr = b""
    if not implicit and transfer_syntax != EXPLICIT_LITTLE and transfer_syntax not in encapsulated:
        raise HandOver("transfer syntax is not plain")
    buffer, base = window.buffer, 0
    last = len(buffer) - 12
    previous = 0
    values: dict[int, bytes] = {}
    private: dict[int, PrivateField] = {}
    while True:
        start = position - base
        if start > last:
            buffer, base, start = window.at(position, 12), position, 0
            last = len(buffer) - 12
        if implicit:
            group, number, length = _IMPLICIT.unpack_from(buffer, start)
            start += 8
            length_bytes = 4
        else:
            group, number, vr, length = _EXPLICIT.unpack_from(buffer, start)
            if vr in _SHORT_VRS:
                start += 8
                length_bytes = 2
            elif vr in _LONG_VRS:
                (length,) = _LONG_LENGTH.unpack_from(buffer, start + 8)
                start += 12
                length_bytes = 4
            else:
                raise HandOver("unknown value representation")
        tag = group << 16 | number
        if tag <= previous:
            raise HandOver("tags out of order")
        previous = tag
        opened, position = position, base + start
        if tag >= PIXEL_DATA:
            break
        if tag in unusual:
            raise HandOver("a tag that needs more than a walk")
        if length == _UNDEFINED:
            if tag in wanted or (not implicit and vr not in _SEQUENCE_VRS):
                raise HandOver("undefined length")
            elements.append((opened, position, position, 0, False))
            position = _past_sequence(window, position, implicit, elements)
            buffer, base = window.buffer, window.base
            last = len(buffer) - 12
            continue
        if tag in private and not implicit and not private_is_readable(private[tag], vr.decode()):
            del private[tag]
        if tag in wanted or tag in private:
            if length > LONGEST:
                raise HandOver("long value")
            if not implicit and vr != wanted.get(tag, vr) and vr != b"UN":
                raise HandOver("another value representation than the standard's")
            if start + length > len(buffer):
                buffer, base, start = window.at(position, length), position, 0
                last = len(buffer) - 12
            if tag in CREATORS:
                private |= private_block(tag, buffer[start : start + length])
            else:
                values[tag] = buffer[start : start + length]
        elements.append((opened, position, position + length, length_bytes, False))
        position += length
    if tag != PIXEL_DATA:
        raise HandOver("no pixel data")
    pixel_length = pixels_end(source, transfer_syntax in encapsulated, position, length)
    elements.append((opened, position, position + length, length_bytes, False))
    return Walk(
        transfer_syntax, values, private, position, pixel_length, elements, meta_end, window.parts
    )


def pixels_end(source: ByteSource, encapsulated: bool, offset: int, length: int) -> int | None:
    """The length of the pixel data, None where it is encapsulated.

    Args:
      source: the file.
      encapsulated: whether the transfer syntax says so.
      offset: of the pixel data's value.
      length: as its element has it.

    Raises:
      HandOver: the length and the transfer syntax contradict each other, or something follows that
        should have come before.
    """
    if encapsulated != (length == _UNDEFINED):
        raise HandOver("the length of the pixel data is not that of its transfer syntax")
    if encapsulated:
        return None
    end = offset + length
    if end < source.size:
        # What follows may be padding, never an element that should have come before.
        following = source.read_at(end, 4)
        if len(following) == 4 and tag_of(following) <= PIXEL_DATA:
            raise HandOver("tags out of order")
    return length


class _Window:
    """The part of a file that is in memory; grows while it is read on, stays small after a jump."""

    __slots__ = ("_chunk", "_source", "base", "buffer", "parts")

    def __init__(self, source: ByteSource, begin: bytes) -> None:
        self._source = source
        self._chunk = CHUNK
        self.base, self.buffer = 0, begin
        self.parts = [(0, begin)]

    def at(self, position: int, need: int) -> bytes:
        """Makes the window begin at `position` and hold at least `need` bytes, or hands over."""
        near = position < self.base + len(self.buffer) + CHUNK
        self._chunk = min(2 * self._chunk, _LARGEST_CHUNK) if near else CHUNK
        self.base, self.buffer = position, self._source.read_at(position, max(self._chunk, need))
        if len(self.buffer) < need:
            raise HandOver("the file ends in its header")
        if len(self.parts) < MOST_PARTS:
            self.parts.append((position, self.buffer))
        return self.buffer


def _past_sequence(window: _Window, position: int, implicit: bool, elements: list[Element]) -> int:
    """Skips a sequence of undefined length, whatever is nested in it.

    Items and elements of known length are jumped over. An item of undefined length may be in
    implicit VR within an explicit data set (UN, PS3.5 6.2.2 note; some writers do so in SQ): its
    first element tells, as it tells pydicom.

    Args:
      window: on the file.
      position: of the sequence's value.
      implicit: whether the data set around it has implicit VR.
      elements: is added to, to little more than `MOST_ELEMENTS`.

    Returns:
      The position behind the sequence's delimiter.
    """
    buffer, base = window.buffer, window.base
    last = len(buffer) - 14
    # Of every item that is open: whether the data set around its sequence has implicit VR.
    around = [implicit]
    record = elements.append
    in_item = False
    while True:
        start = position - base
        if start > last:
            buffer, base, start = window.at(position, 12), position, 0
            last = max(len(buffer) - 14, 0)
        group, number, length = _IMPLICIT.unpack_from(buffer, start)
        if group == 0xFFFE:
            opened, position = position, position + 8
            if number == 0xE000 and not in_item:
                if len(elements) > MOST_ELEMENTS:
                    record = _forget
                if length != _UNDEFINED:
                    record((opened, position, position + length, 4, True))
                    position += length
                    continue
                in_item = True
                # The representation of the item's first element, behind the item and a tag.
                implicit = around[-1] or not buffer[start + 12 : start + 14].isalpha()
            elif length:
                raise HandOver("a delimiter with a length")
            elif number == 0xE00D and in_item:
                in_item = False
            elif number == 0xE0DD and not in_item:
                implicit = around.pop()
                if not around:
                    record((opened, position, position, 0, True))
                    return position
                in_item = True
            else:
                raise HandOver("an item or a delimiter out of place")
            record((opened, position, position, 0, True))
            continue
        if not in_item:
            raise HandOver("no item in a sequence")
        length_bytes = 4
        opened = position
        if implicit:
            position += 8
            sequence = True
        else:
            vr = buffer[start + 4 : start + 6]
            # An icon's pixels may be compressed; fragments are items of known length.
            sequence = vr in _SEQUENCE_VRS or (group == 0x7FE0 and vr in _PIXEL_VRS)
            if vr in _LONG_VRS:
                (length,) = _LONG_LENGTH.unpack_from(buffer, start + 8)
                position += 12
            elif vr in _SHORT_VRS:
                length >>= 16
                position += 8
                length_bytes = 2
            else:
                raise HandOver("unknown value representation")
        if length != _UNDEFINED:
            record((opened, position, position + length, length_bytes, True))
            position += length
        elif sequence and len(around) < _DEEPEST:
            record((opened, position, position, 0, True))
            around.append(implicit)
            in_item = False
        else:
            raise HandOver("undefined length")


def _forget(element: Element) -> None:
    """Records no element."""


def tag_of(data: bytes) -> int:
    return int.from_bytes(data[:2], "little") << 16 | int.from_bytes(data[2:4], "little")


def file_meta(buffer: bytes, elements: list[Element]) -> tuple[str, int]:
    """(transfer syntax, offset of the data set), from the file meta information (PS3.10 7.1).

    Args:
      buffer: the begin of the file.
      elements: is added to, the group length left out.

    Raises:
      HandOver: it is not as the standard has it, or longer than `buffer`.
    """
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
        opened, length_bytes = position, 2
        group, element, vr, length = _EXPLICIT.unpack_from(buffer, position)
        position += 8
        if group != 2:
            raise HandOver("file meta group length is wrong")
        if vr in _LONG_VRS:
            (length,) = _LONG_LENGTH.unpack_from(buffer, position)
            position += 4
            length_bytes = 4
        elif vr not in _SHORT_VRS:
            raise HandOver("unknown value representation")
        if element == 0x0010:
            value = buffer[position : position + length]
            transfer_syntax = value.rstrip(b"\0 ").decode("ascii", "replace")
        elements.append((opened, position, position + length, length_bytes, False))
        position += length
    # The next element must not be of group 2, or the group length lied.
    if position != end or buffer[end : end + 2] == b"\x02\0" or not transfer_syntax:
        raise HandOver("file meta information is not plain")
    return transfer_syntax, end
