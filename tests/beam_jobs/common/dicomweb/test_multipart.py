"""Bodies of multipart/related as services send them, in blocks of any length."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.common.files.dicomweb.multipart import (
    NotMultipartError,
    Parts,
    WrongLengthError,
    boundary_of,
)
from beam_jobs.common.files.dicomweb.session import CutError

MARK = b"--b/ound"


def body(*parts: bytes, length: bool = True, end: bytes = b"\r\n", preamble: bytes = b"") -> bytes:
    made = preamble
    for part in parts:
        header = b"Content-Type: application/dicom" + end
        if length:
            header += b"Content-Length: %d" % len(part) + end
        made += MARK + end + header + end + part + end
    return made + MARK + b"--"


def in_blocks(data: bytes, size: int) -> Callable[[int], bytes]:
    stream = io.BytesIO(data)
    return lambda length: stream.read(min(length, size))


def read(data: bytes, size: int = 7, *, by_length: bool = True) -> list[bytes]:
    parts = Parts(in_blocks(data, size), MARK[2:], by_length=by_length)
    found = [b"".join(part) for part in parts]
    assert parts.is_complete
    return found


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.lists(
            st.sampled_from([b"", b"\r", b"\n", b"-", b"--", MARK, b"\r\n" + MARK[:-1], b"x" * 90])
        ).map(b"".join),
        min_size=1,
        max_size=4,
    ),
    size=st.integers(1, 40),
    length=st.booleans(),
)
def test_parts_come_as_they_were_sent_however_the_blocks_fall(
    parts: list[bytes], size: int, length: bool
) -> None:
    if not length and any(
        b"\r\n" + MARK + end in part + b"\r\n" for part in parts for end in (b"--", b"\r\n")
    ):
        return  # no sender that gives no length may take such a boundary
    assert read(body(*parts, length=length), size) == parts


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_boundary_within_pixels_ends_no_part(size: int) -> None:
    inside = b"pixels\r\n" + MARK + b"--\r\nmore pixels"
    assert read(body(inside, b"next"), size) == [inside, b"next"]
    looks_like = b"pixels\r\n" + MARK + b"er than that"
    assert read(body(looks_like, b"next", length=False), size) == [looks_like, b"next"]


@pytest.mark.parametrize("preamble", [b"", b"\r\n", b"\n", b"hello --b/ound\n"])
def test_what_comes_before_the_first_delimiter_is_no_part(preamble: bytes) -> None:
    assert read(body(b"one", b"two", preamble=preamble)) == [b"one", b"two"]


def test_lines_may_end_without_a_carriage_return_where_lengths_are_known() -> None:
    assert read(body(b"one", b"two", end=b"\n")) == [b"one", b"two"]


@pytest.mark.parametrize("length", [True, False])
def test_every_cut_is_seen_wherever_it_falls(length: bool) -> None:
    whole = body(b"first" * 9, b"second", length=length)
    for end in range(len(whole)):
        with pytest.raises(CutError):
            read(whole[:end], 16)
    assert len(read(whole, 16)) == 2


def test_a_wrong_length_is_an_error_and_the_part_can_be_read_without_it() -> None:
    wrong = body(b"12345678", b"next").replace(b"Length: 8", b"Length: 5")
    with pytest.raises(WrongLengthError):
        read(wrong)
    assert read(wrong, by_length=False) == [b"12345678", b"next"]


def test_a_long_part_is_never_held_whole() -> None:
    data = body(b"x" * 5_000_000, length=False)
    longest = [max(map(len, part)) for part in Parts(in_blocks(data, 1000), MARK[2:])]
    assert longest[0] < 2000


@pytest.mark.parametrize("data", [b"<html>" * 30_000, MARK + b"\r\n" + b"a: b\r\n" * 20_000])
def test_what_is_no_multipart_body_is_not_read_to_its_end(data: bytes) -> None:
    with pytest.raises(CutError, match="no multipart body"):
        read(data, 4096)


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        ("multipart/related; boundary=abc", b"abc"),
        ('multipart/related; type="application/dicom"; boundary="a b"; x=y', b"a b"),
        ('Multipart/Related;BOUNDARY="a\\"b"', b'a"b'),
        ("multipart/related;type=application/dicom;boundary=abc;start=1", b"abc"),
    ],
)
def test_the_boundary_of_a_content_type(kind: str, boundary: bytes) -> None:
    assert boundary_of(kind) == boundary


@pytest.mark.parametrize(
    "kind", ["", "application/dicom", "multipart/related", 'multipart/related; boundary=""']
)
def test_a_content_type_without_a_boundary(kind: str) -> None:
    with pytest.raises(NotMultipartError):
        boundary_of(kind)
