"""Malformed values: those that a series can do without are absent, the others refuse the file."""

import pytest

from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.reasons import Reason
from tests.dicom_bytes import both, dicom, element

LOOSE = {
    "slice_thickness": (0x00180050, "DS"),
    "repetition_time": (0x00180080, "DS"),
    "inversion_time": (0x00180082, "DS"),
    "echo_number": (0x00180086, "IS"),
    "field_strength": (0x00180087, "DS"),
    "spacing_between_slices": (0x00180088, "DS"),
    "flip_angle": (0x00181314, "DS"),
    "series_number": (0x00200011, "IS"),
    "acquisition_number": (0x00200012, "IS"),
    "instance_number": (0x00200013, "IS"),
    "temporal_position": (0x00200100, "IS"),
}
# What stands there, and what it is read as in DS and in IS.
VALUES = {
    b"7 ": (7, 7), b"7.0 ": (7, 7), b"1e1 ": (10, 10), b"2.5 ": (2.5, None), b"4\\9 ": (4, 4),
    b"2,5 ": (None, None), b"ab": (None, None), b"nan ": (None, None), b"inf ": (None, None),
    b"\xff\xfe": (None, None), b"7\\x ": (None, None), b"1.2.3 ": (None, None), b"": (None, None),
    b"9" * 400: (None, None),
}  # fmt: skip


@pytest.mark.parametrize("form", ["explicit", "implicit", "unknown"])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(value[:8]))
def test_what_a_series_can_do_without_refuses_no_file_when_malformed(tmp_path, value, form):
    implicit = form == "implicit"
    extra = {
        tag: element(tag, "UN" if form == "unknown" else vr, value, implicit=implicit)
        for tag, vr in LOOSE.values()
    }
    walked, parsed = both(tmp_path, dicom(extra, implicit=implicit))
    assert walked == parsed
    for name, (_, vr) in LOOSE.items():
        assert getattr(parsed, name) == VALUES[value][vr == "IS"], name


@pytest.mark.parametrize("tag", [0x00180081, 0x00200032, 0x00280030, 0x00281052, 0x00281053])
def test_what_a_volume_hangs_on_refuses_the_file_when_malformed(tmp_path, tag):
    path = tmp_path / "comma.dcm"
    path.write_bytes(dicom({tag: element(tag, "DS", b"2,5 ")}))
    _, (refused,) = index_files([str(path)])
    assert refused.reason is Reason.CORRUPT_HEADER
