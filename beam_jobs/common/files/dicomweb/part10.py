"""The SOP Instance UID of a DICOM file, from its first bytes (PS3.10 7.1)."""

from __future__ import annotations

import io
import struct
import warnings

_PREAMBLE = 128
_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"OD", b"OL", b"UC", b"UR", b"OV", b"SV", b"UV")
_UID = (0x0002, 0x0003)
_UID_ELEMENT = b"\2\0\3\0UI"
_USUAL_BYTES = 256
_SHORT_HEADER, _LONG_HEADER = struct.Struct("<HH2sH"), struct.Struct("<HH2s2xI")


def uid_of(head: bytes | memoryview) -> str:
    """Media Storage SOP Instance UID of the file meta group, "" where it is not found.

    Args:
      head: the first kilobytes.
    """
    at = _PREAMBLE + 4
    if head[_PREAMBLE:at] != b"DICM":
        return ""
    # As good as always: elements before it are too short to hold what looks like it.
    start = bytes(head[at : at + _USUAL_BYTES])
    if (found := start.find(_UID_ELEMENT)) >= 0:
        begin = found + len(_UID_ELEMENT) + 2
        length = int.from_bytes(start[begin - 2 : begin], "little")
        return _text(start[begin : begin + length])
    while at + _LONG_HEADER.size <= len(head):
        group, element, kind, length = _SHORT_HEADER.unpack_from(head, at)
        if group != 2:
            return ""
        size = _SHORT_HEADER.size
        if kind in _LONG:
            length, size = _LONG_HEADER.unpack_from(head, at)[3], _LONG_HEADER.size
        if (group, element) == _UID:
            return _text(head[at + size : at + size + length])
        at += size + length
    return ""


def uid_within(head: bytes | memoryview) -> str:
    """SOP Instance UID of the data set itself, which files without a meta group have too.

    Args:
      head: the first kilobytes; the UID is one of the first elements.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pydicom.dcmread(
                io.BytesIO(head),
                force=True,
                stop_before_pixels=True,
                specific_tags=["SOPInstanceUID"],
            )
            return str(found.get("SOPInstanceUID", "") or "").strip()
        except Exception:  # pydicom raises whatever hostile bytes lead it to
            return ""


def _text(value: bytes | memoryview) -> str:
    return bytes(value).rstrip(b"\0 ").decode("ascii", "replace").strip()
