"""DICOM files put together byte by byte, and read by the walk and by pydicom."""

import struct
from collections.abc import Iterable, Mapping

import numpy as np

from beam_jobs.common.files.interface import open_bytes
from beam_jobs.core.dicom import headers

UNDEFINED = 0xFFFFFFFF
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
LONG = ("OB", "OW", "SQ", "UN", "UT")


def element(
    tag: int, vr: str, value: bytes, *, implicit: bool = False, length: int | None = None
) -> bytes:
    length = len(value) if length is None else length
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return start + struct.pack("<L", length) + value
    if vr in LONG:
        return start + vr.encode() + struct.pack("<HL", 0, length) + value
    return start + vr.encode() + struct.pack("<H", length) + value


def item(content: bytes, *, defined: bool = False) -> bytes:
    begin, end = (struct.pack("<HH", 0xFFFE, number) for number in (0xE000, 0xE00D))
    if defined:
        return begin + struct.pack("<L", len(content)) + content
    return begin + struct.pack("<L", UNDEFINED) + content + end + bytes(4)


SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def sequence(tag: int, *items: bytes, vr: str = "SQ", implicit: bool = False) -> bytes:
    return element(tag, vr, b"".join(items) + SEQUENCE_END, implicit=implicit, length=UNDEFINED)


def dicom(
    extra: Mapping[int, bytes] | Iterable[tuple[int, bytes]] = (),
    *,
    implicit: bool = False,
    syntax: str = "",
) -> bytes:
    """A whole file of 4 x 4 pixels; `extra` maps tags to their elements' bytes."""
    plain = {
        0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.4\0"),
        0x00080018: ("UI", b"1.2.3.4\0"),
        0x0020000E: ("UI", b"1.2.3\0"),
        0x00200013: ("IS", b"7 "),
        0x00200032: ("DS", b"1\\2\\3.5 "),
        0x00200037: ("DS", b"1\\0\\0\\0\\1\\0 "),
        0x00280002: ("US", b"\1\0"),
        0x00280004: ("CS", b"MONOCHROME2 "),
        0x00280010: ("US", b"\4\0"),
        0x00280011: ("US", b"\4\0"),
        0x00280030: ("DS", b"0.5\\0.5 "),
        0x00280100: ("US", b"\x10\0"),
        0x00280101: ("US", b"\x10\0"),
        0x00280102: ("US", b"\x0f\0"),
        0x00280103: ("US", b"\0\0"),
        0x7FE00010: ("OW", np.arange(16, dtype="<u2").tobytes()),
    }
    body = {tag: element(tag, *value, implicit=implicit) for tag, value in plain.items()}
    body |= dict(extra)
    uid = (syntax or (IMPLICIT if implicit else EXPLICIT)).encode()
    meta = element(0x00020010, "UI", uid + b"\0" * (len(uid) % 2))
    group = element(0x00020000, "UL", struct.pack("<L", len(meta)))
    return bytes(128) + b"DICM" + group + meta + b"".join(body[tag] for tag in sorted(body))


def both(tmp_path, data):
    """(what the walk says, what pydicom says) of a file; None where the walk hands it over."""
    path = str(tmp_path / "image.dcm")
    (tmp_path / "image.dcm").write_bytes(data)
    with open_bytes(path) as source:
        walked = headers._read_plain(path, source)
        parsed = headers._read_with_pydicom(path, source)
    return (walked[0]._replace(modified=0) if walked else None), parsed[0]
