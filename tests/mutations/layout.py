"""A file taken apart far enough to change one of its elements."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset(b"OB OW OF OD OL OV SQ UN UT UC UR SV UV".split())
PIXEL_DATA = 0x7FE00010


@dataclasses.dataclass(frozen=True)
class Element:
    """Where one element of a data set lies: bytes start..end, its value from `value`."""

    tag: int
    vr: bytes
    start: int
    value: int
    end: int
    length_at: int
    length_size: int


@dataclasses.dataclass
class Layout:
    """A file taken apart far enough to change an element: meta information, then the data set."""

    head: bytes
    body: bytearray
    implicit: bool
    order: str
    deflated: bool

    @classmethod
    def of(cls, data: bytes) -> Layout:
        """Takes a sound Part 10 file apart (PS3.10 7.1)."""
        end = 144 + struct.unpack_from("<L", data, 140)[0]
        at = data.index(b"\x02\0\x10\0UI", 132) + 8
        (length,) = struct.unpack_from("<H", data, at - 2)
        syntax = data[at : at + length].rstrip(b"\0").decode()
        deflated = syntax == DeflatedExplicitVRLittleEndian
        body = zlib.decompress(data[end:], -zlib.MAX_WBITS) if deflated else data[end:]
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        return cls(data[:end], bytearray(body), syntax == ImplicitVRLittleEndian, order, deflated)

    def join(self) -> bytes:
        """The file again."""
        if not self.deflated:
            return self.head + bytes(self.body)
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return self.head + packer.compress(bytes(self.body)) + packer.flush()

    def elements(self) -> list[Element]:
        """Elements in order, those inside sequences of undefined length too."""
        return list(self._walk())

    def _walk(self) -> Iterator[Element]:
        body, at = self.body, 0
        while at + 8 <= len(body):
            group, element = struct.unpack_from(self.order + "HH", body, at)
            tag, vr = group << 16 | element, bytes(body[at + 4 : at + 6])
            if group == 0xFFFE:  # items and delimiters: go on with what is inside
                at += 8
                continue
            if self.implicit:
                vr, length_at, size = b"", at + 4, 4
            elif vr in LONG_VRS:
                length_at, size = at + 8, 4
            else:
                length_at, size = at + 6, 2
            if length_at + size > len(body):
                return
            code = self.order + ("H" if size == 2 else "L")
            (length,) = struct.unpack_from(code, body, length_at)
            value = length_at + size
            if length == UNDEFINED and tag != PIXEL_DATA:
                yield Element(tag, vr, at, value, value, length_at, size)
                at = value
                continue
            end = len(body) if length == UNDEFINED else min(value + length, len(body))
            yield Element(tag, vr, at, value, end, length_at, size)
            at = end

    def encode(self, tag: int, vr: bytes, value: bytes) -> bytes:
        """One element in this file's encoding."""
        head = struct.pack(self.order + "HH", tag >> 16, tag & 0xFFFF)
        if self.implicit:
            return head + struct.pack("<L", len(value)) + value
        if vr in LONG_VRS:
            return head + vr + b"\0\0" + struct.pack(self.order + "L", len(value)) + value
        return head + vr + struct.pack(self.order + "H", len(value) & 0xFFFF) + value
