"""Files of one series are nearly alike: what was walked in one is only compared in the next.

Of 300 elements of a header some 20 differ from slice to slice. A `Likeness` is a walked header cut
into runs of bytes that stay and values that change between them. Where a run stands in another file
byte for byte, from the end of one element to the end of another, a walk would find there what it
found before; between runs, an element of the same tag and representation ends where its length
says. So a file that fits gives what the walk gives, at a tenth of the cost; any other is walked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

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
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# Longer values that nobody wants are jumped over, not compared.
_LONG_RUN = 512
_MOST_ELEMENTS = 4096
_MOST_READ_AT_ONCE = 1 << 15
_KEPT = 16

# (bytes that must stand here, their number with that of the length field behind them, bytes of the
# length field, slot of the value, its parser). Where the length field has none, the file meta
# information ends; where there is no parser, the value is jumped over.
_Parse = Callable[[bytes], Any]
_Step = tuple[bytes, int, int, int, _Parse | None]


class _Anatomy(NamedTuple):
    """The elements of a walked file, the pixel data's the last.

    Attributes:
      tags: of each element, 0 of those within sequences.
      heads: tag and representation; all of what only opens or closes.
      contents: all bytes of an element; None where they are not in memory, or long and not wanted.
    """

    tags: list[int]
    heads: list[bytes]
    contents: list[bytes | None]


def _anatomy(walk: Walk) -> _Anatomy | None:
    """None where elements of implicit VR stand within explicit VR, where lengths decide which."""
    explicit = walk.transfer_syntax != header_walk.IMPLICIT_LITTLE
    tags: list[int] = []
    heads: list[bytes] = []
    contents: list[bytes | None] = []
    parts = iter(walk.parts)
    base, part = next(parts)
    following = next(parts, None)
    depth = 0
    for start, value, end, length_bytes in walk.elements:
        while following and following[0] <= start:
            (base, part), following = following, next(parts, None)
        head = part[start - base : value - length_bytes - base]
        tag = header_walk.tag_of(head)
        if explicit and len(head) == 4 and tag != _ITEM:
            return None
        tags.append(0 if depth else tag)
        heads.append(head)
        wanted = not depth and (tag in walk.values or tag in CREATORS)
        known = end - base <= len(part) and (wanted or end - start <= _LONG_RUN)
        contents.append(part[start - base : end - base] if known else None)
        if not length_bytes:
            depth += -1 if tag in (_ITEM_END, _SEQUENCE_END) else 1
    return _Anatomy(tags, heads, contents)


class Likeness:
    """What the headers of a series have in common.

    Attributes:
      header, walk: of the file that was learnt from last.
      anatomy: its elements.
      varying: which of its elements differ from file to file, or are not known.
      reach: bytes that are best read at once.
    """

    def __init__(
        self, header: SliceHeader, walk: Walk, anatomy: _Anatomy, varying: frozenset[int]
    ) -> None:
        self.header, self.walk = header, walk
        self.anatomy = anatomy
        self.varying = varying
        near = walk.pixel_offset < _MOST_READ_AT_ONCE
        self.reach = max(walk.pixel_offset + 256 if near else 0, header_walk.CHUNK)
        self._values: list[Any] = list(header)
        self._private: list[tuple[int, PrivateField]] = []
        self._encapsulated = walk.pixel_length is None
        slots = self._private_slots(walk)
        self._steps: list[_Step] = []
        run = bytearray()
        for index, (tag, content) in enumerate(zip(anatomy.tags, anatomy.contents, strict=True)):
            start, _, _, length_bytes = walk.elements[index]
            if start == walk.meta_end:
                self._steps.append((bytes(run), len(run), 0, 0, None))
                run.clear()
            if content is not None and index not in varying:
                run += content
                continue
            run += anatomy.heads[index]
            slot, parse = slots.get(tag, (0, None))
            self._steps.append((bytes(run), len(run) + length_bytes, length_bytes, slot, parse))
            run.clear()

    def _private_slots(self, walk: Walk) -> dict[int, tuple[int, _Parse]]:
        """Slot and parser of every wanted tag.

        Where private elements vary, or what they stand in for, their bytes have slots of their own.
        """
        slots: dict[int, tuple[int, _Parse]] = {
            tag: (_SLOTS[name], parse) for tag, (name, parse) in PARSE.items()
        }
        varying = {self.anatomy.tags[index] for index in self.varying}
        present = [tag for tag in walk.values if tag in walk.private]
        standard = [tag for tag, (name, _) in PARSE.items() if name in PRIVATE_NAMES]
        if not present or varying.isdisjoint([*present, *standard]):
            return slots
        for name in PRIVATE_NAMES:
            self._values[_SLOTS[name]] = SliceHeader._field_defaults[name]
        for tag in standard:
            if tag in walk.values:
                slot, parse = slots[tag]
                self._values[slot] = parse(walk.values[tag])
        for tag in present:
            slots[tag] = (len(self._values), bytes)
            self._private.append((len(self._values), walk.private[tag]))
            self._values.append(walk.values[tag])
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


class Recent(threading.local):
    """The likenesses of the series read last, in this thread."""

    def __init__(self) -> None:
        self._likenesses: list[Likeness] = []
        self._walked: list[tuple[SliceHeader, Walk]] = []

    @property
    def reach(self) -> int:
        """Bytes of the next file that are best read at once."""
        return self._likenesses[0].reach if self._likenesses else header_walk.CHUNK

    def read(self, path: str, source: ByteSource, buffer: bytes) -> SliceHeader | None:
        """The header of a file that is like one read lately; None where it has to be walked.

        Args:
          path: of the file.
          source: the open file.
          buffer: its begin.
        """
        for place, likeness in enumerate(self._likenesses):
            try:
                header = likeness.read(path, source, buffer)
            except (HandOver, ValueError):
                return None
            if header is not None:
                if place:
                    self._likenesses.insert(0, self._likenesses.pop(place))
                return header
        return None

    def learn(self, header: SliceHeader, walk: Walk) -> None:
        """Takes note of a file that had to be walked.

        From the second file of a series on, it is known what differs within it.
        """
        if len(walk.elements) > _MOST_ELEMENTS:
            return
        before = self._walked
        self._walked = [(header, walk), *before[: _KEPT - 1]]
        for likeness in self._likenesses:
            if _may_be_alike(likeness.header, likeness.walk, header, walk):
                anatomy = _anatomy(walk)
                if anatomy and anatomy.heads == likeness.anatomy.heads:
                    self._likenesses.remove(likeness)
                    self._add(header, walk, anatomy, likeness.anatomy, likeness.varying)
                    return
        # One comparison is enough: what has other elements in every file is not worth it.
        for other_header, other_walk in before:
            if _may_be_alike(other_header, other_walk, header, walk):
                anatomy, other = _anatomy(walk), _anatomy(other_walk)
                if anatomy and other and anatomy.heads == other.heads:
                    self._add(header, walk, anatomy, other, frozenset())
                return

    def _add(
        self,
        header: SliceHeader,
        walk: Walk,
        anatomy: _Anatomy,
        other: _Anatomy,
        known: frozenset[int],
    ) -> None:
        pairs = zip(anatomy.contents, other.contents, strict=True)
        differing = {index for index, (one, two) in enumerate(pairs) if one is None or one != two}
        # What decides how others are read has to stay.
        if any(anatomy.tags[index] in _DECIDING for index in differing):
            return
        likeness = Likeness(header, walk, anatomy, known | differing)
        self._likenesses = [likeness, *self._likenesses[: _KEPT - 1]]


def _may_be_alike(header: SliceHeader, walk: Walk, other: SliceHeader, other_walk: Walk) -> bool:
    same_series = header.series_uid == other.series_uid
    return same_series and len(walk.elements) == len(other_walk.elements)
