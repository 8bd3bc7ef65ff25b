"""Ways to spoil a file: bytes in, bytes out, all from one seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from tests.mutations.layout import UNDEFINED, Element, Layout
from tests.mutations.sequences import ON_SEQUENCES, opened

_ALL_VRS = (
    b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US "
    b"OB OW OF OD OL OV SQ UN UT UC UR SV UV ZZ \0\0 \xff\xff"
).split(b" ")
_TEXTS = (
    b"",
    b"\0\0",
    b"abc ",
    b"\xff\xfe",
    b"\\",
    b"A" * 9000,
    b"\xc3\xa9",
    b"1\\2\\3\\4\\5\\6\\7",
)
_NUMBERS = (
    b"0", b"-0", b"1", b"-1", b"2", b"3.7", b"1e308", b"-1e308", b"1e400", b"inf", b"-inf", b"nan",
    b"1e-308", b"1e-30", b"1e30", b"1e10", b"1e6", b"4000", b"100", b"0.001", b"65535",
    b"2147483648", b"4294967296", b"9" * 40, b"9" * 400, b"", b" ", b"abc", b"1,5", b"0x10", b"1_0",
    b"--1", b"1 2", b"\xb2", b"1\\", b"\\1",
)  # fmt: skip
_SHORTS = (0, 1, 2, 3, 7, 8, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 31, 32, 64, 128, 255, 256,
           4095, 32767, 32768, 65534, 65535)  # fmt: skip
_DOUBLES = (0.0, -1.0, 1000.0, 1e308, 5e-324, float("inf"), float("nan"))
_PHOTOMETRIC = (b"MONOCHROME1 ", b"RGB ", b"PALETTE COLOR ", b"YBR_FULL", b"monochrome2 ", b"")
_SYNTAXES = tuple(
    uid.encode()
    for uid in (
        "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81",
        "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201",
        "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1", "1.2.3", "", "abc",
    )
)  # fmt: skip
# Tags that decide place or values: (VR, how many numbers).
_DECIDING = {
    0x00080008: (b"CS", 0), 0x0020000E: (b"UI", 0), 0x0020000D: (b"UI", 0), 0x00180081: (b"DS", 1),
    0x00180086: (b"IS", 1), 0x00180050: (b"DS", 1), 0x00180088: (b"DS", 1), 0x00200013: (b"IS", 1),
    0x00089208: (b"CS", 0), 0x00189087: (b"FD", 1),
    0x00200032: (b"DS", 3), 0x00200037: (b"DS", 6), 0x00200100: (b"IS", 1), 0x00280002: (b"US", 1),
    0x00280004: (b"CS", 0), 0x00280008: (b"IS", 1), 0x00280010: (b"US", 1), 0x00280011: (b"US", 1),
    0x00280030: (b"DS", 2), 0x00280100: (b"US", 1), 0x00280101: (b"US", 1), 0x00280102: (b"US", 1),
    0x00280103: (b"US", 1), 0x00280301: (b"CS", 0), 0x00281052: (b"DS", 1), 0x00281053: (b"DS", 1),
}  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> tuple[bytes, list[str]]:
    """Spoils a sound file once or, one time in six, twice.

    Returns:
      The file, and the names of what was done to it.
    """
    names = []
    layout = Layout.of(data)
    for _ in range(2 if rng.random() < 1 / 6 else 1):
        if rng.random() < _OF_SEQUENCES and opened(layout):
            name = rng.choice(list(ON_SEQUENCES))
            ON_SEQUENCES[name](layout, rng)
        else:
            name = rng.choices(list(_ON_ELEMENTS), [w for w, _ in _ON_ELEMENTS.values()])[0]
            _ON_ELEMENTS[name][1](layout, rng)
        names.append(name)
        if name == "none":
            break
    data = layout.join()
    if names[-1] == "none" or rng.random() < 1 / 20:
        name = rng.choice(list(_ON_BYTES))
        data = _ON_BYTES[name](data, rng)
        names.append(name)
    return data, [name for name in names if name != "none"]


def _pick(layout: Layout, rng: random.Random) -> Element:
    """An element: three times in four one of those that decide."""
    elements = layout.elements()
    deciding = [e for e in elements if e.tag in _DECIDING or e.tag >= 0x52000000]
    return rng.choice(deciding if deciding and rng.random() < 0.75 else elements)


def _length(layout: Layout, rng: random.Random) -> None:
    element = _pick(layout, rng)
    code = layout.order + ("H" if element.length_size == 2 else "L")
    top = (1 << 8 * element.length_size) - 1
    true = element.end - element.value
    wrong = rng.choice(
        (0, 1, 2, true - 1, true + 1, true + 2, true - 2, true * 2, top, top - 1, top // 2,
         top // 2 + 1, len(layout.body), rng.randrange(top))
    )  # fmt: skip
    struct.pack_into(code, layout.body, element.length_at, wrong & top)


def _remove(layout: Layout, rng: random.Random) -> None:
    element = _pick(layout, rng)
    del layout.body[element.start : element.end]


def _swap(layout: Layout, rng: random.Random) -> None:
    one, other = sorted((_pick(layout, rng), _pick(layout, rng)), key=lambda e: e.start)
    body = layout.body
    if one.end <= other.start:
        layout.body = (
            body[: one.start] + body[other.start : other.end] + body[one.end : other.start]
            + body[one.start : one.end] + body[other.end :]
        )  # fmt: skip


def _swap_values(layout: Layout, rng: random.Random) -> None:
    """Two elements keep their tags and take each other's values."""
    one, other = sorted((_pick(layout, rng), _pick(layout, rng)), key=lambda e: e.start)
    body = layout.body
    if one.end <= other.start:
        first, second = bytes(body[one.value : one.end]), bytes(body[other.value : other.end])
        if max(len(first), len(second)) < 60_000:
            body[other.start : other.end] = layout.encode(other.tag, other.vr, first)
            body[one.start : one.end] = layout.encode(one.tag, one.vr, second)


def _duplicate(layout: Layout, rng: random.Random) -> None:
    element = _pick(layout, rng)
    at = rng.choice([element.end, rng.choice(layout.elements()).start])
    layout.body[at:at] = layout.body[element.start : element.end]


def _representation(layout: Layout, rng: random.Random) -> None:
    element = _pick(layout, rng)
    layout.body[element.start + 4 : element.start + 6] = rng.choice(_ALL_VRS).ljust(2, b"\0")[:2]


def _value(layout: Layout, rng: random.Random) -> None:
    present = [e for e in layout.elements() if e.tag in _DECIDING]
    if rng.random() < 0.85 and present:
        element = rng.choice(present)
        tag, start, end = element.tag, element.start, element.end
    else:  # a tag that is not there, at its place
        tag = rng.choice(list(_DECIDING))
        later = [e.start for e in layout.elements() if e.tag > tag]
        start = end = later[0] if later else 0
    vr, count = _DECIDING[tag]
    if rng.random() < 0.08:
        value = rng.choice(_TEXTS)
    elif vr == b"US":
        value = struct.pack(layout.order + "H", rng.choice(_SHORTS)) * rng.choice((1, 1, 1, 1, 2))
    elif vr == b"FD":
        value = struct.pack(layout.order + "d", rng.choice(_DOUBLES))
    elif tag == 0x00280004:
        value = rng.choice(_PHOTOMETRIC)
    elif count:
        many = count if rng.random() < 0.9 else rng.choice((0, 1, 2, 3, 4, 6, 300))
        one = rng.choice(_NUMBERS)
        mix = rng.random() < 0.5
        value = b"\\".join(rng.choice(_NUMBERS) if mix else one for _ in range(many))
    else:
        value = rng.choice(
            (b"LOCALIZER ", b"DERIVED\\SECONDARY\\MIP ", b"A\\B\\P", b"YES ", b"1.2")
        )
    layout.body[start:end] = layout.encode(tag, vr, value + b" " * (len(value) % 2))


def _nest(layout: Layout, rng: random.Random) -> None:
    """Sequences in sequences, of undefined or true length, before the pixel data."""
    depth = rng.choice((3, 50, 200, 400, 2000))
    tag = struct.pack(layout.order + "HH", 0x0040, 0x0275)
    vr = b"" if layout.implicit else b"SQ\0\0"
    item = struct.pack(layout.order + "HH", 0xFFFE, 0xE000)
    long = layout.order + "L"
    if rng.random() < 0.5:
        undefined = struct.pack(long, UNDEFINED)
        nested = (tag + vr + undefined + item + undefined) * depth
        ends = [struct.pack(layout.order + "HHL", 0xFFFE, end, 0) for end in (0xE00D, 0xE0DD)]
        nested += b"".join(ends) * rng.choice((depth, depth, 0))
    else:
        nested = b""
        for _ in range(depth):
            nested = item + struct.pack(long, len(nested)) + nested
            nested = tag + vr + struct.pack(long, len(nested)) + nested
    later = [e.start for e in layout.elements() if e.tag > 0x00400275]
    at = later[0] if later else len(layout.body)
    layout.body[at:at] = nested


def _flip_header(layout: Layout, rng: random.Random) -> None:
    pixels = [e.start for e in layout.elements() if e.tag == 0x7FE00010]
    _flip(layout.body, rng, (pixels[0] if pixels else len(layout.body)) or 1)


def _flip_element(layout: Layout, rng: random.Random) -> None:
    """One bit of one element's tag, representation, length or value."""
    element = _pick(layout, rng)
    at = rng.randrange(element.start, min(element.end, element.value + 16))
    layout.body[at] ^= 1 << rng.randrange(8)


def _flip(body: bytearray, rng: random.Random, limit: int) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if limit:
            body[rng.randrange(limit)] ^= 1 << rng.randrange(8)


def _none(layout: Layout, rng: random.Random) -> None:
    """Leaves the elements alone: the file's bytes are spoilt instead."""


def _truncate(data: bytes, rng: random.Random) -> bytes:
    near_end = len(data) - rng.choice((1, 2, 7, 100))
    return data[: max(0, rng.choice((rng.randrange(len(data) + 1), rng.randrange(2000), near_end)))]


def _flip_anywhere(data: bytes, rng: random.Random) -> bytes:
    body = bytearray(data)
    _flip(body, rng, len(body))
    return bytes(body)


def _garbage(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 3, 8, 50, 1000))) + data[at:]


def _preamble(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (
            data[132:], data[128:], data[1:], b"\0" + data, rng.randbytes(128) + data[128:],
            data[:128] + b"DICN" + data[132:], data[:132], b"", data[: data.find(b"\x08\0")],
            data[:132] + data[144 + int.from_bytes(data[140:144], "little") :],
            data[144 + int.from_bytes(data[140:144], "little") :],
        )
    )  # fmt: skip


def _syntax(data: bytes, rng: random.Random) -> bytes:
    """Another transfer syntax in the meta information, group length kept true."""
    at = data.find(b"\x02\0\x10\0UI", 132)
    if at < 0 or at + 8 > len(data):
        return data
    (length,) = struct.unpack_from("<H", data, at + 6)
    value = rng.choice(_SYNTAXES)
    value += b"\0" * (len(value) % 2)
    (group,) = struct.unpack_from("<L", data, 140)
    return (
        data[:140] + struct.pack("<L", (group + len(value) - length) & UNDEFINED) + data[144:at]
        + b"\x02\0\x10\0UI" + struct.pack("<H", len(value)) + value + data[at + 8 + length :]
    )  # fmt: skip


def _flip_meta(data: bytes, rng: random.Random) -> bytes:
    body = bytearray(data)
    at = rng.randrange(128, min(len(body), 400)) if len(body) > 128 else 0
    if body:
        body[at] ^= 1 << rng.randrange(8)
    return bytes(body)


_ON_ELEMENTS: dict[str, tuple[float, Callable[[Layout, random.Random], None]]] = {
    "none": (4, _none),
    "length": (3, _length),
    "remove": (2, _remove),
    "swap": (1, _swap),
    "swap values": (1, _swap_values),
    "duplicate": (1, _duplicate),
    "representation": (1, _representation),
    "value": (6, _value),
    "nest": (0.5, _nest),
    "flip header": (1, _flip_header),
    "flip element": (2, _flip_element),
}
# Half of what is done to a file that has sequences of undefined length is done to these.
_OF_SEQUENCES = 0.5
_ON_BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncate": _truncate,
    "flip anywhere": _flip_anywhere,
    "garbage": _garbage,
    "preamble": _preamble,
    "syntax": _syntax,
    "flip meta": _flip_meta,
}
