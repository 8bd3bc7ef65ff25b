"""Sequences and private blocks: the walk passes what is sound, and agrees with pydicom on it."""

import struct
import time
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.files.interface import open_bytes
from beam_jobs.core.dicom import headers
from beam_jobs.core.dicom.alike import Recent
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.phantoms.series import SeriesSpec, write_series
from beam_jobs.phantoms.vendor_headers import VENDORS

UNDEFINED = 0xFFFFFFFF
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
LONG = ("OB", "OW", "SQ", "UN", "UT")


def element(tag, vr, value, *, implicit=False, length=None):
    length = len(value) if length is None else length
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return start + struct.pack("<L", length) + value
    if vr in LONG:
        return start + vr.encode() + struct.pack("<HL", 0, length) + value
    return start + vr.encode() + struct.pack("<H", length) + value


def item(content, *, defined=False):
    begin, end = (struct.pack("<HH", 0xFFFE, number) for number in (0xE000, 0xE00D))
    if defined:
        return begin + struct.pack("<L", len(content)) + content
    return begin + struct.pack("<L", UNDEFINED) + content + end + bytes(4)


SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def sequence(tag, *items, vr="SQ", implicit=False):
    return element(tag, vr, b"".join(items) + SEQUENCE_END, implicit=implicit, length=UNDEFINED)


def dicom(extra=(), *, implicit=False, syntax=""):
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


def nested(implicit):
    """Three levels, items of either length, empty ones, and wanted tags that are not at the top."""
    position = element(0x00200032, "DS", b"9\\9\\9 ", implicit=implicit)
    lut = element(0x00283002, "US", b"\0\1\0\0\x10\0", implicit=implicit)
    inner = sequence(0x00283000, item(lut, defined=True), item(b""), implicit=implicit)
    middle = sequence(
        0x00081140, item(inner + position), item(b"", defined=True), implicit=implicit
    )
    known = element(0x00082112, "SQ", item(position, defined=True), implicit=implicit)
    return sequence(0x2005140F, item(known + middle + position), item(position), implicit=implicit)


@pytest.mark.parametrize("implicit", [False, True])
def test_sequences_of_undefined_length_are_passed_at_any_depth(tmp_path, implicit):
    creator = element(0x20050014, "LO", b"Philips MR Imaging DD 005 ", implicit=implicit)
    extra = {
        0x00081140: sequence(0x00081140, item(b""), implicit=implicit),
        0x00400275: sequence(0x00400275, implicit=implicit),
        0x20050014: creator,
        0x2005140F: nested(implicit),
    }
    walked, parsed = both(tmp_path, dicom(extra, implicit=implicit))
    assert walked == parsed
    assert walked.position == (1.0, 2.0, 3.5)
    assert not walked.has_modality_lut


def test_unknown_of_undefined_length_holds_implicit_elements(tmp_path):
    inside = element(0x00200032, "", b"9\\9\\9 ", implicit=True)
    deeper = sequence(0x00081140, item(inside), implicit=True)
    extra = {
        0x00091010: sequence(0x00091010, item(inside + deeper), vr="UN"),
        # Some writers do so in SQ too.
        0x2005140F: sequence(0x2005140F, item(inside + deeper), item(b"")),
    }
    walked, parsed = both(tmp_path, dicom(extra))
    assert walked == parsed


@pytest.mark.parametrize("implicit", [False, True])
def test_a_modality_lut_at_the_top_is_noticed(tmp_path, implicit):
    lut = element(0x00283006, "OW", b"\0\1", implicit=implicit)
    extra = {0x00283000: sequence(0x00283000, item(lut), implicit=implicit)}
    walked, parsed = both(tmp_path, dicom(extra, implicit=implicit))
    assert walked is None
    assert parsed.has_modality_lut


@pytest.mark.parametrize("implicit", [False, True])
def test_an_icon_of_compressed_pixels_is_passed(tmp_path, implicit):
    rows = element(0x00280010, "US", b"\x40\0", implicit=implicit)
    fragments = item(b"", defined=True), item(b"\xff\xd8\xff\xd9", defined=True)
    pixels = sequence(0x7FE00010, *fragments, vr="OB", implicit=implicit)
    icon = sequence(0x00880200, item(rows + pixels), implicit=implicit)
    walked, parsed = both(tmp_path, dicom({0x00880200: icon}, implicit=implicit))
    assert walked == parsed
    assert walked.rows == 4


CHARACTER_SETS = {
    b"ISO_IR 100": "Sch\xe4del".encode("latin-1"),
    b"ISO_IR 192": "头部 T1 ".encode(),
    b"GB18030 ": "头部 T1".encode("gb18030"),
    b"\\ISO 2022 IR 87": b"T1 \x1b$B$3$s\x1b(B ",
    b"nonsense": b"Sch\xe4del",
    b"": b"Sch\xe4del",
}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("character_set", CHARACTER_SETS)
def test_text_is_of_its_files_character_set(tmp_path, character_set, implicit):
    text = CHARACTER_SETS[character_set]
    text += b" " * (len(text) % 2)
    extra = {
        0x00080005: element(0x00080005, "CS", character_set, implicit=implicit),
        0x0008103E: element(0x0008103E, "LO", text, implicit=implicit),
        0x00181030: element(0x00181030, "LO", b"\\".join([text, text]), implicit=implicit),
    }
    for present in (extra, {tag: extra[tag] for tag in (0x0008103E, 0x00181030)}):
        walked, parsed = both(tmp_path, dicom(present, implicit=implicit))
        assert walked == parsed
        assert walked.series_description


def test_codes_that_are_not_ascii_are_left_to_pydicom(tmp_path):
    walked, _ = both(tmp_path, dicom({0x00080060: element(0x00080060, "CS", b"M\xe4")}))
    assert walked is None


UNSOUND = {
    "delimiter with a length": sequence(0x00400275, item(b""))[:-4] + b"\2\0\0\0",
    "item's end with a length": element(
        0x00400275, "SQ", item(b"")[:-4] + b"\2\0\0\0" + SEQUENCE_END, length=UNDEFINED
    ),
    "no item": element(
        0x00400275, "SQ", element(0x00400007, "LO", b"ab") + SEQUENCE_END, length=UNDEFINED
    ),
    "item in an item": sequence(0x00400275, item(item(b""))),
    "sequence's end in an item": sequence(0x00400275, item(SEQUENCE_END)),
    "item's end in no item": sequence(0x00400275, struct.pack("<HHL", 0xFFFE, 0xE00D, 0)),
    "unknown representation": sequence(0x00400275, item(element(0x00400007, "ZZ", b"ab"))),
    "text of undefined length": sequence(
        0x00400275, item(element(0x00400007, "UT", b"", length=UNDEFINED))
    ),
    "no end": element(0x00400275, "SQ", item(b""), length=UNDEFINED),
    "bytes of undefined length": element(0x00400275, "OB", SEQUENCE_END, length=UNDEFINED),
    "deeper than any scanner": b"".join(
        element(0x00400275, "SQ", struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED), length=UNDEFINED)
        for _ in range(100)
    )
    + (item(b"")[-8:] + SEQUENCE_END) * 100,
}


@pytest.mark.parametrize("name", UNSOUND)
def test_what_is_odd_is_left_to_pydicom(tmp_path, name):
    path = tmp_path / "odd.dcm"
    path.write_bytes(dicom({0x00400275: UNSOUND[name]}))
    with open_bytes(str(path)) as source:
        assert not headers._read_plain(str(path), source)


@pytest.mark.parametrize("implicit", [False, True])
def test_many_items_and_deep_nesting_take_time_in_proportion(tmp_path, implicit):
    inside = element(0x00400007, "LO", b"ab", implicit=implicit)

    def seconds(count):
        many = sequence(0x00400275, *[item(inside)] * count, implicit=implicit)
        path = tmp_path / f"{count}.dcm"
        path.write_bytes(dicom({0x00400275: many}, implicit=implicit))
        start = time.process_time()
        found, rejected = index_files([path])
        assert found
        assert not rejected
        return time.process_time() - start

    few = min(seconds(2_000) for _ in range(3))
    assert seconds(20_000) < 30 * few + 0.05
    assert seconds(20_000) < 0.5


class CountingSource:
    """A file in memory, and how much of it was read."""

    def __init__(self, data):
        self.data, self.size, self.modified = data, len(data), 0
        self.reads: list[int] = []

    def read_at(self, offset, length):
        found = self.data[offset : offset + length]
        self.reads.append(len(found))
        return found


def test_long_values_are_jumped_over_and_long_headers_read_in_growing_pieces(monkeypatch):
    monkeypatch.setattr(headers, "_recent", Recent())
    inside = element(0x00400007, "LO", b"ab")
    long = {
        0x00291010: element(0x00291010, "OB", bytes(300_000)),
        0x00291020: element(0x00291020, "OB", bytes(300_000)),
        0x60003000: element(0x60003000, "OW", bytes(300_000)),
    }
    deep = {0x00400275: sequence(0x00400275, *[item(inside)] * 8_000)}
    for extra, most_bytes, most_reads in ((long, 40_000, 6), (deep, 300_000, 10)):
        source: Any = CountingSource(dicom(extra))
        assert headers._read_plain("x.dcm", source)
        assert sum(source.reads) <= most_bytes
        assert len(source.reads) <= most_reads


@pytest.mark.parametrize("implicit", [False, True])
def test_group_lengths_padding_and_what_follows_the_pixels_change_nothing(tmp_path, implicit):
    group_lengths = {
        tag: element(tag, "UL", struct.pack("<L", 1000), implicit=implicit)
        for tag in (0x00080000, 0x00180000, 0x00200000, 0x7FE00000)
    }
    padding = {0xFFFCFFFC: element(0xFFFCFFFC, "OB", bytes(64), implicit=implicit)}
    walked, parsed = both(tmp_path, dicom(group_lengths | padding, implicit=implicit))
    assert walked == parsed
    walked, parsed = both(tmp_path, dicom(group_lengths, implicit=implicit) + bytes(3))
    assert walked is None or walked == parsed


def private(group, block, creator, elements, *, implicit=False):
    """A private block: its creator and its elements as {number: (vr, value)}."""
    tag = group << 16 | block
    begin = {tag: element(tag, "LO", creator + b" " * (len(creator) % 2), implicit=implicit)}
    return begin | {
        (at := group << 16 | block << 8 | number): element(at, *value, implicit=implicit)
        for number, value in elements.items()
    }


def doubles(*numbers):
    return struct.pack(f"<{len(numbers)}d", *numbers)


def floats(*numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


DIFFUSION: dict[str, tuple[Any, dict[str, Any]]] = {
    "standard": (
        {0x00189087: ("FD", doubles(1000)), 0x00189089: ("FD", doubles(0, 0.6, 0.8))},
        {"b_value": 1000.0, "diffusion_direction": (0.0, 0.6, 0.8)},
    ),
    "Siemens": (
        (0x0019, b"SIEMENS MR HEADER", {0x0C: ("IS", b"1000"), 0x0E: ("FD", doubles(1, 0, 0))}),
        {"b_value": 1000.0, "diffusion_direction": (1.0, 0.0, 0.0)},
    ),
    "GE directions": (
        (
            0x0019,
            b"GEMS_ACQU_01",
            {0xBB: ("DS", b"0.5 "), 0xBC: ("DS", b"-0.5"), 0xBD: ("DS", b"0 ")},
        ),
        {"diffusion_direction": (0.5, -0.5, 0.0)},
    ),
    "GE b-value": (
        (0x0043, b"GEMS_PARM_01", {0x39: ("IS", b"1000000800\\8\\0\\0 ")}),
        {"b_value": 800.0},
    ),
    "Philips b-value": (
        (0x2001, b"Philips Imaging DD 001", {0x03: ("FL", floats(800))}),
        {"b_value": 800.0},
    ),
    "Philips directions": (
        (
            0x2005,
            b"Philips MR Imaging DD 001",
            {0xB0: ("FL", floats(0.5)), 0xB1: ("FL", floats(0)), 0xB2: ("FL", floats(-0.5))},
        ),
        {"diffusion_direction": (0.5, 0.0, -0.5)},
    ),
    "Philips number": (
        (0x2005, b"Philips MR Imaging DD 005", {0x13: ("IS", b"12")}),
        {"gradient_number": 12},
    ),
    "UIH": (
        (
            0x0065,
            b"Image Private Header",
            {0x09: ("FD", doubles(700)), 0x37: ("FD", doubles(0, 1, 0))},
        ),
        {"b_value": 700.0, "diffusion_direction": (0.0, 1.0, 0.0)},
    ),
    "malformed": (
        (0x0019, b"SIEMENS MR HEADER", {0x0C: ("IS", b"ab"), 0x0E: ("FD", b"1234")}),
        {"b_value": None, "diffusion_direction": ()},
    ),
    "another creator": (
        (0x0019, b"SOMEBODY ELSE", {0x0C: ("IS", b"1000"), 0x0E: ("FD", doubles(1, 0, 0))}),
        {"b_value": None, "diffusion_direction": ()},
    ),
    "another representation": (
        (0x0019, b"SIEMENS MR HEADER", {0x0C: ("US", b"\1\0"), 0x0E: ("LO", doubles(1, 0, 0))}),
        {"b_value": None, "diffusion_direction": ()},
    ),
}


@pytest.mark.parametrize("block", [0x10, 0x11, 0xE1])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        (name, form)
        for name in DIFFUSION
        for form in ("explicit", "implicit", "unknown")
        if (name, form) != ("another representation", "implicit")  # which has none
    ],
)
def test_diffusion_is_read_from_whichever_block_its_creator_has(tmp_path, name, form, block):
    elements, expected = DIFFUSION[name]
    implicit = form == "implicit"
    if isinstance(elements, tuple):
        group, creator, inside = elements
        if form == "unknown":
            inside = {number: ("UN", value) for number, (_, value) in inside.items()}
        if name == "another representation" and form == "unknown":
            inside = {number: ("US", value) for number, (_, value) in inside.items()}
        extra = private(group, block, creator, inside, implicit=implicit)
    else:
        extra = {tag: element(tag, *value, implicit=implicit) for tag, value in elements.items()}
    walked, parsed = both(tmp_path, dicom(extra, implicit=implicit))
    assert walked == parsed
    assert {field: getattr(walked, field) for field in expected} == expected


def test_standard_tags_go_before_private_ones_unless_empty(tmp_path):
    siemens = private(0x0019, 0x10, b"SIEMENS MR HEADER", {0x0C: ("IS", b"50")})
    for value, expected in ((doubles(1000), 1000.0), (b"", 50.0)):
        standard = {0x00189087: element(0x00189087, "FD", value)}
        walked, parsed = both(tmp_path, dicom(siemens | standard))
        assert walked == parsed
        assert walked.b_value == expected


@pytest.mark.parametrize("value", [b"123.5 ", b"", b"ab", b"nan ", b"1\\2 "])
def test_times_are_read_and_malformed_ones_refuse_no_file(tmp_path, value):
    extra = {
        0x00080032: element(0x00080032, "TM", b"101112.25 "),
        0x00181060: element(0x00181060, "DS", value),
    }
    walked, parsed = both(tmp_path, dicom(extra))
    assert walked == parsed
    assert walked.acquisition_time == "101112.25"
    assert walked.trigger_time == {b"123.5 ": 123.5, b"1\\2 ": 1.0}.get(value)


@pytest.mark.parametrize("transfer_syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("vendor", VENDORS)
def test_vendors_headers_are_walked_and_agree(tmp_path, vendor, transfer_syntax):
    spec = SeriesSpec(slices=3, vendor=vendor, transfer_syntax=transfer_syntax)
    for path in write_series(spec, tmp_path, lambda xyz: abs(xyz[..., 2])).paths:
        walked, parsed = both(tmp_path, path.read_bytes())
        assert walked == parsed
