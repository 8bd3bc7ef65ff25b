"""Files of one series are nearly alike: what was walked in one is only compared in the next.

Of 300 elements of a header some 20 differ from slice to slice. A `Likeness` is a walked header cut
into runs of bytes that stay and values that change between them. Where a run stands in another file
byte for byte, from the end of one element to the end of another, a walk would find there what it
found before; between runs, an element of the same tag and representation ends where its length
says. So a file that fits gives what the walk gives, at a tenth of the cost; any other is walked.
"""

from __future__ import annotations

import functools
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any

from beam_jobs.common.files.interface import ByteSource
from beam_jobs.core.dicom import header_walk
from beam_jobs.core.dicom.fields import (
    CHARACTER_SET,
    CREATORS,
    PARSE,
    PRIVATE_NAMES,
    PrivateField,
    fill,
    private_values,
)
from beam_jobs.core.dicom.header_walk import HandOver, Walk
from beam_jobs.core.dicom.slice_header import SliceHeader

_BEGIN = b"DICM\x02\0\0\0UL\x04\0"
_SLOTS = {name: slot for slot, name in enumerate(SliceHeader._fields)}
_FIELDS = len(_SLOTS)
_PATH, _SIZE, _MODIFIED = _SLOTS["path"], _SLOTS["file_size"], _SLOTS["modified"]
_OFFSET, _LENGTH = _SLOTS["pixel_offset"], _SLOTS["pixel_length"]
# How others are read: private creators, the transfer syntax, the character set.
_DECIDING = CREATORS | {0x00020010, CHARACTER_SET}
_ITEM = 0xFFFEE000
_UNDEFINED = 0xFFFFFFFF
_MOST_READ_AT_ONCE = 1 << 15
_LONGEST_KEPT = 1 << 18  # bytes of a header, many times what scanners write
_KEPT = 64  # series
_KINDS = 4  # of files in one

# (bytes that must stand here, their number with that of the length field behind them, bytes of the
# length field, slot of the value, its parser). Where the length field has none, the file meta
# information ends; where there is no parser, the value is jumped over.
_Parse = Callable[[bytes], Any]
_Step = tuple[bytes, int, int, int, _Parse | None]


class _Walked:
    """A file that was walked.

    Attributes:
      header: what it says.
      walk: how it was found.
      image: its begin to the end of the header, zeros where it was not read.
      unread: which elements lie in these parts.
    """

    def __init__(self, header: SliceHeader, walk: Walk) -> None:
        self.header = header
        self.walk = walk

    @functools.cached_property
    def image(self) -> bytes:
        image = bytearray()
        for base, part in self.walk.parts:
            image += bytes(max(0, base - len(image)))
            image[base : base + len(part)] = part
        return bytes(image)

    @functools.cached_property
    def unread(self) -> frozenset[int]:
        starts = [start for start, *_ in self.walk.elements]
        found: set[int] = set()
        reached = 0
        for base, part in self.walk.parts:
            if base > reached:
                found.update(range(bisect_right(starts, reached) - 1, bisect_left(starts, base)))
            reached = max(reached, base + len(part))
        return frozenset(found)

    def differing(self, other: _Walked) -> frozenset[int] | None:
        """Which elements have other bytes in `other`; None where it has other elements.

        Those not read and the pixel data, the last, always count.
        """
        elements, others = self.walk.elements, other.walk.elements
        if len(elements) != len(others):
            return None
        image, other_image = self.image, other.image
        always = self.unread | other.unread | {len(elements) - 1}
        found = []
        # From the left: where all before is alike, equal bytes hold equal elements.
        stack = [(0, len(elements))]
        while stack:
            low, high = stack.pop()
            ours = image[elements[low][0] : elements[high - 1][2]]
            if ours == other_image[others[low][0] : others[high - 1][2]]:
                continue
            if high - low > 1:
                middle = (low + high) // 2
                stack += [(middle, high), (low, middle)]
            elif self._head(low) == other._head(low) and elements[low][3]:
                found.append(low)
            else:
                return None
        if any(self._head(each) != other._head(each) for each in always):
            return None
        return always.union(found)

    def _head(self, index: int) -> bytes:
        """Tag and representation of an element."""
        start, value, _, length_bytes, _ = self.walk.elements[index]
        return self.image[start : value - length_bytes]

    def tag(self, index: int) -> int:
        """The tag of an element, 0 within a sequence."""
        return 0 if self.walk.elements[index][4] else header_walk.tag_of(self._head(index))

    def decides(self, index: int) -> bool:
        """Whether the bytes of an element tell how to read others."""
        if self.tag(index) in _DECIDING:
            return True
        # Within an explicit data set, the first length of an item may show that it is implicit.
        head = self._head(index)
        implicit = len(head) == 4 and header_walk.tag_of(head) != _ITEM
        return implicit and self.walk.transfer_syntax != header_walk.IMPLICIT_LITTLE


class Likeness:
    """What the headers of a series have in common.

    Attributes:
      walked: the file that was learnt from last.
      varying: which of its elements differ from file to file, or are not known.
      reach: bytes that are best read at once.
    """

    def __init__(self, walked: _Walked, varying: frozenset[int]) -> None:
        self.walked = walked
        self.varying = varying
        walk = walked.walk
        near = walk.pixel_offset < _MOST_READ_AT_ONCE
        self.reach = max(walk.pixel_offset + 256 if near else 0, header_walk.CHUNK)
        self._encapsulated = walk.pixel_length is None
        self._values: list[Any] = list(walked.header)
        self._private: list[tuple[int, PrivateField]] = []
        slots = self._private_slots()
        self._steps: list[_Step] = []
        at = walk.elements[0][0]
        for index in sorted(varying):
            start, value, end, length_bytes, _ = walk.elements[index]
            if at <= walk.meta_end <= start:
                run = walked.image[at : walk.meta_end]
                self._steps.append((run, len(run), 0, 0, None))
                at = walk.meta_end
            run = walked.image[at : value - length_bytes]
            slot, parse = slots.get(walked.tag(index), (0, None))
            self._steps.append((run, len(run) + length_bytes, length_bytes, slot, parse))
            at = end

    def _private_slots(self) -> dict[int, tuple[int, _Parse]]:
        """Slot and parser of every wanted tag.

        Where private elements vary, or what they stand in for, their bytes have slots of their own.
        """
        slots: dict[int, tuple[int, _Parse]] = {
            tag: (_SLOTS[name], parse) for tag, (name, parse) in PARSE.items()
        }
        varying = {self.walked.tag(index) for index in self.varying}
        values, private = self.walked.walk.values, self.walked.walk.private
        present = [tag for tag in values if tag in private]
        standard = [tag for tag, (name, _) in PARSE.items() if name in PRIVATE_NAMES]
        if not present or varying.isdisjoint([*present, *standard]):
            return slots
        for name in PRIVATE_NAMES:
            self._values[_SLOTS[name]] = SliceHeader._field_defaults[name]
        for tag in standard:
            if tag in values:
                slot, parse = slots[tag]
                self._values[slot] = parse(values[tag])
        for tag in present:
            slots[tag] = (len(self._values), bytes)
            self._private.append((len(self._values), private[tag]))
            self._values.append(values[tag])
        return slots

    def read(self, path: str, source: ByteSource, buffer: bytes) -> SliceHeader | None:
        """The header of a file that is like this one; None where it is not.

        Args:
          path: of the file.
          source: the open file.
          buffer: its begin.

        Raises:
          ValueError: a value is malformed.
          HandOver: as the walk raises it.
        """
        # In a file that is shorter, an undefined length leads past the end.
        if source.size >= _UNDEFINED or not buffer.startswith(_BEGIN, 128):
            return None
        values = self._values.copy()
        base, at, end = 0, 144, len(buffer)
        meta_end = at + int.from_bytes(buffer[140:144], "little")
        length = 0
        for run, size, length_bytes, slot, parse in self._steps:
            at += length
            if at + size > end:
                base += at
                buffer = source.read_at(base, max(size, header_walk.CHUNK))
                at, end = 0, len(buffer)
                if size > end:
                    return None
            if not buffer.startswith(run, at):
                return None
            at += size
            if length_bytes == 2:
                length = buffer[at - 2] | buffer[at - 1] << 8
            elif length_bytes:
                length = int.from_bytes(buffer[at - 4 : at], "little")
            else:
                length = 0
                if base + at != meta_end:
                    return None
            if parse is not None:
                if length > header_walk.LONGEST:
                    return None
                if at + length > end:
                    base += at
                    buffer = source.read_at(base, header_walk.CHUNK)
                    at, end = 0, len(buffer)
                    if length > end:
                        return None
                values[slot] = parse(buffer[at : at + length])
        offset = base + at
        values[_PATH], values[_SIZE], values[_MODIFIED] = path, source.size, source.modified
        values[_OFFSET] = offset
        values[_LENGTH] = header_walk.pixels_end(source, self._encapsulated, offset, length)
        if self._private:
            standard = {name: values[_SLOTS[name]] for name in PRIVATE_NAMES}
            fill(standard, private_values((field, values[slot]) for slot, field in self._private))
            for name, value in standard.items():
                values[_SLOTS[name]] = value
            del values[_FIELDS:]
        return SliceHeader._make(values)


class _Series:
    """What is known of one series: few series have files of more than one kind.

    Attributes:
      likenesses: the latest first.
      walked: files of kinds that were met once, the latest first.
    """

    def __init__(self) -> None:
        self.likenesses: list[Likeness] = []
        self.walked: list[_Walked] = []

    def learn(self, walked: _Walked) -> Likeness | None:
        """What a file has in common with those before it, None where it is the first."""
        for likeness in self.likenesses:
            differing = walked.differing(likeness.walked)
            if differing is not None:
                self.likenesses.remove(likeness)
                return self._add(walked, differing | likeness.varying)
        for before in self.walked:
            differing = walked.differing(before)
            if differing is not None:
                self.walked.remove(before)
                return self._add(walked, differing)
        self.walked = [walked, *self.walked[: _KINDS - 1]]
        return None

    def _add(self, walked: _Walked, varying: frozenset[int]) -> Likeness | None:
        if any(map(walked.decides, varying)):
            return None
        likeness = Likeness(walked, varying)
        self.likenesses = [likeness, *self.likenesses[: _KINDS - 1]]
        return likeness


class Recent(threading.local):
    """What is known of the series that were read lately, in this thread."""

    def __init__(self) -> None:
        self._latest: Likeness | None = None
        self._series: dict[bytes, _Series] = {}

    @property
    def reach(self) -> int:
        """Bytes of the next file that are best read at once."""
        return self._latest.reach if self._latest else header_walk.CHUNK

    def read(self, path: str, source: ByteSource, buffer: bytes) -> SliceHeader | None:
        """The header of a file that is like one read lately; None where it has to be walked.

        Args:
          path: of the file.
          source: the open file.
          buffer: its begin.
        """
        latest = self._latest
        try:
            if latest and (header := latest.read(path, source, buffer)):
                return header
            series = self._series.get(_series_in(buffer))
            for likeness in series.likenesses if series else ():
                if likeness is not latest and (header := likeness.read(path, source, buffer)):
                    self._latest = likeness
                    return header
        except (HandOver, ValueError):
            pass
        return None

    def learn(self, header: SliceHeader, walk: Walk) -> None:
        """Takes note of a file that had to be walked.

        From the second file of a series on, it is known what differs within it.
        """
        if (
            len(walk.elements) > header_walk.MOST_ELEMENTS
            or len(walk.parts) >= header_walk.MOST_PARTS
            or walk.pixel_offset > _LONGEST_KEPT
        ):
            return  # what is known of it may not be all
        key = _series_in(walk.parts[0][1])
        series = self._series.pop(key, None) or _Series()
        self._series[key] = series
        if len(self._series) > _KEPT:
            del self._series[next(iter(self._series))]
        self._latest = series.learn(_Walked(header, walk)) or self._latest


def _series_in(buffer: bytes) -> bytes:
    """What is likely the Series Instance UID, to find what is known of its series by.

    Not the walk's: a sequence before it may hold another. Then less is found, never a wrong value.
    """
    at = buffer.find(b"\x20\0\x0e\0", 132, header_walk.CHUNK)
    begin = at + 8
    length = int.from_bytes(buffer[begin - 4 : begin], "little") if at >= 0 else 0
    if buffer[at + 4 : at + 6] == b"UI":
        length >>= 16
    return buffer[begin : begin + min(length, 64)]
