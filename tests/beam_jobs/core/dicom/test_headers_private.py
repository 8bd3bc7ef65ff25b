"""What vendors say of diffusion in private blocks: the walk and pydicom's path read the same."""

import struct
from typing import Any

import pytest

from tests.dicom_bytes import both, dicom, element


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
        (
            0x0043,
            b"GEMS_PARM_01",
            {0x30: ("SS", b"\x0f\0"), 0x39: ("IS", b"1000000800\\8\\0\\0 ")},
        ),
        {"b_value": 800.0, "gradient_number": 15},
    ),
    "Philips b-value that is none": (
        (0x2001, b"Philips Imaging DD 001", {0x03: ("FL", floats(-1))}),
        {"b_value": -1.0},
    ),
    "Siemens b-value that is none": (
        (0x0019, b"SIEMENS MR HEADER", {0x0C: ("IS", b"-1")}),
        {"b_value": -1.0},
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
