"""A file read by its likeness to others says what a walk of it says, whatever is done to it."""

import random
import tracemalloc

import pydicom
import pytest
from pydicom.uid import generate_uid

from beam_jobs.common.files.interface import open_bytes
from beam_jobs.core.dicom import alike, header_walk, headers
from beam_jobs.phantoms.series import SeriesSpec, write_series
from beam_jobs.phantoms.vendor_headers import VENDORS
from tests.mutations.kinds import mutate

MUTATIONS = 60


@pytest.fixture(autouse=True)
def recent(monkeypatch):
    """Each test begins knowing nothing; what is put in the place of this forgets again."""
    monkeypatch.setattr(headers, "_recent", alike.Recent())


@pytest.fixture
def walks(monkeypatch):
    """Counts the files that are walked."""
    counted = []
    walk = header_walk.walk

    def counting(*arguments):
        counted.append(1)
        return walk(*arguments)

    monkeypatch.setattr(header_walk, "walk", counting)
    return counted


def read(path):
    with open_bytes(str(path)) as source:
        return headers._read_plain(str(path), source)


def read_anew(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(headers, "_recent", alike.Recent())
        return read(path)


def series(folder, **changes):
    return write_series(SeriesSpec(**changes), folder, lambda xyz: abs(xyz[..., 2])).paths


@pytest.mark.parametrize("transfer_syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("vendor", VENDORS)
def test_few_files_of_a_series_are_walked(tmp_path, walks, monkeypatch, vendor, transfer_syntax):
    paths = series(tmp_path, slices=40, vendor=vendor, transfer_syntax=transfer_syntax)
    found = [read(path) for path in paths]
    assert len(walks) <= 8
    assert found == [read_anew(path, monkeypatch) for path in paths]


def test_series_that_come_in_turn_are_known_apart(tmp_path, walks, monkeypatch):
    folders = [series(tmp_path / vendor, slices=20, vendor=vendor) for vendor in VENDORS]
    paths = [path for slices in zip(*folders, strict=True) for path in slices]
    found = [read(path) for path in paths]
    assert len(walks) <= 8 * len(VENDORS)
    assert found == [read_anew(path, monkeypatch) for path in paths]


@pytest.mark.parametrize("transfer_syntax", ["explicit", "implicit"])
@pytest.mark.parametrize("vendor", ["", *VENDORS])
def test_spoilt_files_are_read_as_a_walk_reads_them(tmp_path, monkeypatch, vendor, transfer_syntax):
    paths = series(tmp_path, slices=6, vendor=vendor, transfer_syntax=transfer_syntax)
    spoilt = tmp_path / "spoilt.dcm"
    data = paths[-1].read_bytes()
    unlike = 0
    for seed in range(MUTATIONS):
        for path in paths[:-1]:
            read(path)
        spoilt.write_bytes(mutate(data, random.Random(seed))[0])
        found, expected = read(spoilt), read_anew(spoilt, monkeypatch)
        assert repr(found) == repr(expected), seed  # as text, for nan is not equal to itself
        unlike += not found
    assert 0 < unlike < MUTATIONS


@pytest.mark.parametrize(
    "spoil", ["meta length", "past the end", "no number", "long value", "trailing"]
)
def test_what_fits_but_for_its_end_is_left_to_the_walk(tmp_path, monkeypatch, spoil):
    *others, path = series(tmp_path, slices=5)
    for other in others:
        read(other)
    data = path.read_bytes()
    position = data.index(b"\x20\0\x32\0DS")
    data = {
        "meta length": data[:140] + bytes([data[140] + 2]) + data[141:],
        "past the end": data[: position + 12],
        "no number": data[: position + 8] + b"x" + data[position + 9 :],
        "long value": data[: position + 6] + b"\xff\xff" + data[position + 8 :],
        "trailing": data + data[position : position + 100],
    }[spoil]
    path.write_bytes(data)
    assert not read(path)
    assert not read_anew(path, monkeypatch)


def test_private_values_that_vary_are_resolved_in_every_file(tmp_path, walks, monkeypatch):
    paths = series(tmp_path, slices=12)
    uid = generate_uid()
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = uid
        siemens = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        siemens.add_new(0x0C, "IS", number * 100)
        siemens.add_new(0x0E, "FD", [1.0, 0.0, number])
        if number % 3 == 0:
            dataset.add_new(0x00189087, "FD", 7.0 if number % 2 else [])
        dataset.save_as(path)
    found = [read(path)[0] for path in paths]
    expected = [7.0 if number in (3, 9) else number * 100.0 for number in range(12)]
    assert [header.b_value for header in found] == expected
    assert [header.diffusion_direction for header in found] == [(1, 0, n) for n in range(12)]
    assert len(walks) < 10
    assert [[header] for header in found] == [read_anew(path, monkeypatch) for path in paths]


def test_a_creator_that_changes_is_never_assumed(tmp_path, monkeypatch):
    paths = series(tmp_path, slices=8)
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        creator = "SIEMENS MR HEADER" if number % 2 else "SOMEBODY ELSE"
        dataset.private_block(0x0019, creator, create=True).add_new(0x0C, "IS", 1000)
        dataset.save_as(path)
    found = [read(path)[0].b_value for path in paths]
    assert found == [1000.0 if number % 2 else None for number in range(8)]


def test_the_same_bytes_in_another_character_set_are_another_text(tmp_path, walks, monkeypatch):
    paths = series(tmp_path, slices=12)
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet = "ISO_IR 100" if number < 8 else "ISO_IR 101"
        dataset.save_as(path)
        data = path.read_bytes()
        path.write_bytes(data.replace(b"T1", b"\xa3\xa3"))
    found = [read(path) for path in paths]
    assert found == [read_anew(path, monkeypatch) for path in paths]
    assert len({header.series_description for (header,) in found}) == 2
    assert len(walks) < 8 + len(paths)  # the first 8 are alike


def test_a_header_longer_than_any_scanner_writes_is_not_kept(tmp_path, walks):
    paths = series(tmp_path, slices=4)
    for path in paths:
        dataset = pydicom.dcmread(path)
        block = dataset.private_block(0x0029, "SOMEBODY", create=True)
        block.add_new(0x10, "OB", bytes(8 << 20))
        dataset.save_as(path)
    tracemalloc.start()
    try:
        assert all(map(read, paths))
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(walks) == len(paths)
    assert kept < 2 << 20
