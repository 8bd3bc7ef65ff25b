"""Sequences: the walk passes what is sound, whatever is nested in it, and agrees with pydicom."""

import struct
import time
from typing import Any

import pytest

from beam_jobs.common.files.interface import open_bytes
from beam_jobs.core.dicom import headers
from beam_jobs.core.dicom.alike import Recent
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.phantoms.series import SeriesSpec, write_series
from beam_jobs.phantoms.vendor_headers import VENDORS
from tests.dicom_bytes import SEQUENCE_END, UNDEFINED, both, dicom, element, item, sequence


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


OTHER_REPRESENTATIONS = {
    "rows": (0x00280010, "IS", b"8 ", 8),
    "pixel_representation": (0x00280103, "CS", b"0 ", 0),
    "b_value": (0x00189087, "DS", b"1000.000", 1000.0),
    "instance_number": (0x00200013, "US", b"11", 0x3131),
    "trigger_time": (0x00181060, "FD", struct.pack("<d", 5.0), 5.0),
}


@pytest.mark.parametrize("name", OTHER_REPRESENTATIONS)
def test_values_of_another_representation_than_the_standards_are_left_to_pydicom(tmp_path, name):
    tag, vr, value, meaning = OTHER_REPRESENTATIONS[name]
    walked, parsed = both(tmp_path, dicom({tag: element(tag, vr, value)}))
    assert walked is None
    assert getattr(parsed, name) == meaning


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


@pytest.mark.parametrize("transfer_syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("vendor", VENDORS)
def test_vendors_headers_are_walked_and_agree(tmp_path, vendor, transfer_syntax):
    spec = SeriesSpec(slices=3, vendor=vendor, transfer_syntax=transfer_syntax)
    for path in write_series(spec, tmp_path, lambda xyz: abs(xyz[..., 2])).paths:
        walked, parsed = both(tmp_path, path.read_bytes())
        assert walked == parsed
