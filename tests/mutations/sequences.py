"""Ways to spoil sequences of undefined length, their items and delimiters, and private blocks.

Some of them leave a file sound: a sequence given its true length, a UN sequence re-encoded, an icon
with pixels of its own. It must then be read as before.

Source: PS3.5 7.5 (sequences), 7.8 (private elements), 6.2.2 (UN).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.mutations.layout import LONG_VRS, PIXEL_DATA, UNDEFINED, Layout

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_CREATORS = (
    b"GEMS_ACQU_01", b"GEMS_PARM_01", b"Philips MR Imaging DD 001", b"Philips MR Imaging DD 005",
    b"Philips Imaging DD 001", b"SIEMENS MR HEADER", b"SIEMENS CSA HEADER", b"Image Private Header",
    b"", b"\0\0", b"\xff\xfe\xfd", b"A" * 200,
)  # fmt: skip
# Nested, these must say nothing of the image; at the top they decide.
_TRAPS = (
    (0x00080008, b"CS", b"DERIVED\\SECONDARY "), (0x00080018, b"UI", b"1.2.3\0"),
    (0x0020000E, b"UI", b"1.2.3.9\0"), (0x00200032, b"DS", b"9\\9\\9 "), (0x00200013, b"IS", b"7 "),
    (0x00280010, b"US", b"\7\0"), (0x00280030, b"DS", b"9\\9 "), (0x00281053, b"DS", b"9 "),
    (0x52009230, b"SQ", b""), (PIXEL_DATA, b"OW", b"\1\0\2\0"),
)  # fmt: skip


class Open(NamedTuple):
    """A sequence or item of undefined length: its head, its content, and its delimiter."""

    is_item: bool
    start: int
    length_at: int
    content: int
    content_end: int
    end: int


def opened(layout: Layout) -> list[Open]:
    """Sequences and items of undefined length, the inner ones first."""
    return list(_opened(layout))


def _opened(layout: Layout) -> Iterator[Open]:
    body, at = layout.body, 0
    stack: list[tuple[bool, int, int, int]] = []
    heads = {element.start: element for element in layout.elements()}
    while at + 8 <= len(body):
        group, number, length = struct.unpack_from(layout.order + "HHL", body, at)
        tag = group << 16 | number
        if tag == ITEM:
            if length == UNDEFINED:
                stack.append((True, at, at + 4, at + 8))
            at += 8
        elif tag in (ITEM_END, SEQUENCE_END):
            if stack:
                yield Open(*stack.pop(), at, at + 8)
            at += 8
        elif at not in heads:
            return
        else:
            element = heads[at]
            if element.end == element.value and element.tag != PIXEL_DATA:
                code = layout.order + ("H" if element.length_size == 2 else "L")
                if struct.unpack_from(code, body, element.length_at)[0] == UNDEFINED:
                    stack.append((False, at, element.length_at, element.value))
            at = element.end


def _any(layout: Layout, rng: random.Random) -> Open | None:
    found = opened(layout)
    return rng.choice(found) if found else None


def _long(layout: Layout, number: int) -> bytes:
    return struct.pack(layout.order + "L", number & UNDEFINED)


def _tag(layout: Layout, tag: int) -> bytes:
    return struct.pack(layout.order + "HH", tag >> 16, tag & 0xFFFF)


def _delimiter(layout: Layout, rng: random.Random) -> None:
    """A delimiter removed, doubled, of another kind, with a length, or put where none belongs."""
    part = _any(layout, rng)
    if part is None:
        return
    body, at = layout.body, part.content_end
    what = rng.choice(("remove", "double", "kind", "length", "bit", "stray"))
    if what == "remove":
        del body[at : part.end]
    elif what == "double":
        body[at:at] = body[at : part.end]
    elif what == "kind":
        body[at : at + 4] = _tag(layout, rng.choice((ITEM, ITEM_END, SEQUENCE_END, 0xFFFEE0DE)))
    elif what == "length":
        body[at + 4 : at + 8] = _long(layout, rng.choice((1, 2, 8, 1000, UNDEFINED, 1 << 31)))
    elif what == "bit":
        body[at + rng.randrange(8)] ^= 1 << rng.randrange(8)
    else:
        place = rng.choice([element.start for element in layout.elements()])
        body[place:place] = _tag(layout, rng.choice((ITEM_END, SEQUENCE_END))) + bytes(4)


def _unclosed(layout: Layout, rng: random.Random) -> None:
    """All delimiters of one kind gone, from some place on."""
    kind = rng.choice((True, False))
    parts = sorted((p for p in opened(layout) if p.is_item is kind), key=lambda p: -p.content_end)
    for part in parts[: rng.choice((1, 2, len(parts)))]:
        del layout.body[part.content_end : part.end]


def _wrong_length(layout: Layout, rng: random.Random) -> None:
    """A sequence or item that says a length which is not its own; the delimiter stays."""
    part = _any(layout, rng)
    if part is None:
        return
    true = part.content_end - part.content
    wrong = rng.choice(
        (0, 1, true - 1, true + 1, true + 2, true + 8, true * 2, len(layout.body) - part.content,
         len(layout.body), UNDEFINED - 1, 1 << 31, rng.randrange(UNDEFINED))
    )  # fmt: skip
    layout.body[part.length_at : part.length_at + 4] = _long(layout, wrong)


def _close(layout: Layout, rng: random.Random) -> None:
    """Sequences and items, some or all, get their true length and lose their delimiter: sound."""
    keep = rng.choice((0.0, 0.0, 0.5, 0.9))
    done = 0
    for _ in range(len(opened(layout))):
        parts = opened(layout)  # inner ones first: an outer one's length then counts theirs
        if done >= len(parts):
            break
        part = parts[done]
        if rng.random() < keep or any(part.start < p.start < part.end for p in parts[:done]):
            done += 1
            continue
        body = layout.body
        del body[part.content_end : part.end]
        body[part.length_at : part.length_at + 4] = _long(layout, part.content_end - part.content)


def _unknown(layout: Layout, rng: random.Random) -> None:
    """A sequence as UN of undefined length: its content is then implicit (PS3.5 6.2.2)."""
    parts = [part for part in opened(layout) if not part.is_item]
    if layout.implicit or not parts:
        return
    part = rng.choice(parts)
    if rng.random() < 0.8:  # else the content stays explicit, which it must not be
        content = _as_implicit(layout, part.content, part.content_end)
        layout.body[part.content : part.content_end] = content
    layout.body[part.start + 4 : part.start + 6] = b"UN"


def _as_implicit(layout: Layout, start: int, end: int) -> bytes:
    """Elements, items and delimiters of a range in implicit VR; lengths there are undefined."""
    body, at, parts = layout.body, start, []
    while at + 8 <= end:
        if body[at : at + 2] == _tag(layout, ITEM)[:2]:
            parts.append(bytes(body[at : at + 8]))
            at += 8
            continue
        vr = bytes(body[at + 4 : at + 6])
        code, offset = ("L", 8) if vr in LONG_VRS else ("H", 6)
        (length,) = struct.unpack_from(layout.order + code, body, at + offset)
        value = at + offset + struct.calcsize(code if code == "H" else "<L")
        known = 0 if length == UNDEFINED else length
        parts += [
            bytes(body[at : at + 4]),
            _long(layout, length),
            bytes(body[value : value + known]),
        ]
        at = value + known
    return b"".join(parts)


def _trap(layout: Layout, rng: random.Random) -> None:
    """An element that decides at the top, put into an item; or moved there from the top."""
    items = [part for part in opened(layout) if part.is_item]
    if not items:
        return
    part = rng.choice(items)
    tag, vr, value = rng.choice(_TRAPS)
    nested = layout.encode(tag, vr, value)
    top = [element for element in layout.elements() if element.tag == tag]
    if top and rng.random() < 0.2:
        element = top[-1]
        if element.start > part.end:
            nested = bytes(layout.body[element.start : element.end])
            del layout.body[element.start : element.end]
    layout.body[part.content_end : part.content_end] = nested


def _icon(layout: Layout, rng: random.Random) -> None:
    """An IconImageSequence, an image with pixels of its own within the image: sound."""
    short = struct.Struct(layout.order + "H")
    inner = b"".join(
        layout.encode(tag, vr, value)
        for tag, vr, value in (
            (0x00280002, b"US", short.pack(1)), (0x00280004, b"CS", b"MONOCHROME2 "),
            (0x00280010, b"US", short.pack(4)), (0x00280011, b"US", short.pack(4)),
            (0x00280100, b"US", short.pack(8)), (0x00280101, b"US", short.pack(8)),
            (0x00280102, b"US", short.pack(7)), (0x00280103, b"US", short.pack(0)),
            (PIXEL_DATA, b"OW", bytes(16)),
        )
    )  # fmt: skip
    if rng.random() < 0.3:  # icons of encapsulated files are encapsulated too
        empty = _tag(layout, ITEM) + _long(layout, 0) + _tag(layout, SEQUENCE_END) + bytes(4)
        head = layout.encode(PIXEL_DATA, b"OB", b"")[:-4] + _long(layout, UNDEFINED)
        inner += head + empty
    head = layout.encode(0x00880200, b"SQ", b"")[:-4] + _long(layout, UNDEFINED)
    item = _tag(layout, ITEM) + _long(layout, UNDEFINED) + inner
    ends = _tag(layout, ITEM_END) + bytes(4) + _tag(layout, SEQUENCE_END) + bytes(4)
    later = [e.start for e in layout.elements() if e.tag > 0x00880200]
    at = later[-1] if later else len(layout.body)
    layout.body[at:at] = head + item + ends


def _creator(layout: Layout, rng: random.Random) -> None:
    """A private creator removed, changed for another's, doubled, or of another block."""
    creators = [e for e in layout.elements() if e.tag >> 16 & 1 and 0x10 <= e.tag & 0xFFFF <= 0xFF]
    if not creators:
        return
    element = rng.choice(creators)
    body = layout.body
    what = rng.choice(("remove", "other", "double", "block"))
    if what == "remove":
        del body[element.start : element.end]
    elif what == "double":
        body[element.end : element.end] = body[element.start : element.end]
    else:
        value, tag = bytes(body[element.value : element.end]), element.tag
        if what == "other":
            value = rng.choice(_CREATORS)
            value += b" " * (len(value) % 2)
        else:
            tag = tag & ~0xFF | rng.randrange(0x10, 0x100)
        body[element.start : element.end] = layout.encode(tag, b"LO", value)


def _cut(layout: Layout, rng: random.Random) -> None:
    """The file ends within a sequence, or a piece is missing from within it to somewhere later."""
    part = _any(layout, rng)
    if part is None:
        return
    at = rng.randrange(part.start, part.end)
    until = len(layout.body)
    if rng.random() < 0.5:
        until = rng.choice([e.start for e in layout.elements() if e.start >= at] or [until])
    del layout.body[at:until]


ON_SEQUENCES: dict[str, Callable[[Layout, random.Random], None]] = {
    "delimiter": _delimiter,
    "unclosed": _unclosed,
    "wrong length": _wrong_length,
    "close": _close,
    "unknown": _unknown,
    "trap": _trap,
    "icon": _icon,
    "creator": _creator,
    "cut": _cut,
}
