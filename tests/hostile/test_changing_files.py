"""Inputs that change between listing and reading: refused, never mixed, never a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.headers import read_headers
from beam_jobs.core.dicom.pixels import stored_slices
from beam_jobs.core.reasons import Reason, RejectedError
from tests.archives import make
from tests.dicom_files import image_dataset, recipe_image, save

READERS = {
    "plain": uid.ExplicitVRLittleEndian,
    "compressed": uid.RLELossless,
    "parsed": uid.ExplicitVRBigEndian,
}


def image(path: Path, syntax: str, turn: int = 0) -> Path:
    pixels = recipe_image(12, turn=turn).astype(np.uint16)
    rows, columns = pixels.shape
    return save(image_dataset(rows=rows, columns=columns), path, syntax, [pixels])


def refusal(path: Path) -> RejectedError:
    headers = read_headers(path)
    with pytest.raises(RejectedError) as raised:
        list(stored_slices(headers))
    return raised.value


def replace(path: Path, syntax: str) -> None:
    other = image(path.with_suffix(".new"), syntax, turn=9)
    os.utime(other, ns=(0, path.stat().st_mtime_ns - 3_600_000_000_000))  # an older file
    other.replace(path)


@pytest.mark.parametrize("syntax", READERS.values(), ids=READERS)
def test_pixels_of_a_file_that_took_the_place_of_a_headers_are_refused(
    tmp_path: Path, syntax: str
) -> None:
    path = image(tmp_path / "a.dcm", syntax)
    headers = read_headers(path)
    replace(path, syntax)
    with pytest.raises(RejectedError, match="changed since its header was read") as raised:
        list(stored_slices(headers))
    assert raised.value.reason == Reason.UNREADABLE_FILE
    assert raised.value.path == str(path)


def changed_in_the_middle(
    monkeypatch: pytest.MonkeyPatch, path: Path, change: Callable[[Path], object]
) -> None:
    """Lets a file change behind the first read of its pixels."""
    for name in ("read_at", "read_into"):
        real = getattr(files.LocalBytes, name)

        def read(self: Any, *args: Any, real: Any = real) -> Any:
            found = real(self, *args)
            monkeypatch.undo()
            change(path)
            return found

        monkeypatch.setattr(files.LocalBytes, name, read)


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 200)


@pytest.mark.parametrize("change", [grow, shrink])
@pytest.mark.parametrize("syntax", READERS.values(), ids=READERS)
def test_a_file_that_is_written_to_while_its_pixels_are_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str, change: Callable[[Path], object]
) -> None:
    path = image(tmp_path / "a.dcm", syntax)
    headers = read_headers(path)
    changed_in_the_middle(monkeypatch, path, change)
    with pytest.raises(RejectedError, match="changed since its header was read"):
        list(stored_slices(headers))


def test_a_file_that_vanished_is_refused_with_its_name(tmp_path: Path) -> None:
    path = image(tmp_path / "a.dcm", READERS["plain"])
    headers = read_headers(path)
    path.unlink()
    with pytest.raises(RejectedError, match="No such file") as raised:
        list(stored_slices(headers))
    assert (raised.value.reason, raised.value.path) == (Reason.UNREADABLE_FILE, str(path))


def test_a_file_that_shrinks_while_its_header_is_parsed_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: a mapped file would end it by SIGBUS."""
    path = image(tmp_path / "a.dcm", READERS["parsed"])
    grow(path)  # beyond a page, which a mapping would still show
    path.write_bytes(path.read_bytes() + bytes(1 << 16))
    child = os.fork()
    if child == 0:
        parse = pydicom.dcmread

        def shrunk(stream: Any, **options: Any) -> Any:
            os.truncate(path, 0)
            return parse(stream, **options)

        monkeypatch.setattr(pydicom, "dcmread", shrunk)
        code = 1
        try:
            read_headers(path)
            code = 0  # of what had been read before; its pixels will be refused
        except RejectedError as error:
            code = 0 if error.reason in (Reason.CORRUPT_HEADER, Reason.NO_PIXELS) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_written_anew_has_other_stamps_though_sizes_and_times_are_the_same(
    tmp_path: Path, name: str
) -> None:
    path = make(tmp_path / name, {"1.dcm": b"one", "2.dcm": b"two"})
    before = {entry.path: entry for entry in files.entries(path)}
    again = make(tmp_path / f"new-{name}", {"1.dcm": b"eno", "2.dcm": b"owt"})
    again.replace(path)
    after = {entry.path: entry for entry in files.entries(path)}
    assert before.keys() == after.keys()
    for member, entry in after.items():
        assert entry.size == before[member].size
        assert entry.stamp != before[member].stamp


def test_a_member_of_an_archive_that_was_replaced_is_never_half_of_each(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"1.dcm": bytes(1 << 20), "2.dcm": bytes(1 << 20)})
    (first, _) = files.entries(path)
    with files.open_bytes(first.path) as source:
        begin = source.read_at(0, 10)
        make(tmp_path / "b.tar", {"1.dcm": b"\1" * (1 << 20)}).replace(path)
        assert begin + source.read_at(10, source.size) == bytes(1 << 20)
    with files.open_bytes(first.path) as source:
        assert source.read_at(0, source.size) == b"\1" * (1 << 20)
