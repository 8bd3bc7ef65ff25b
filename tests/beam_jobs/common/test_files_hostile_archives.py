"""Damaged, encrypted and hostile archives: each fault is refused where its file is opened."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.files.archives import inflate, members
from beam_jobs.common.files.archives.members import usable_name
from tests.archives import SUFFIXES, contents, make, refusal, some


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:/x", "a\x01b"])
def test_a_name_that_leaves_the_archive_is_a_refused_file(
    tmp_path: Path, suffix: str, name: str
) -> None:
    archive = make(tmp_path / f"export{suffix}", {name: b"1", "good": b"2"})
    bad, good = sorted(files.entries(archive), key=lambda entry: "good" in entry.path)
    assert (files.read(good.path), files.logical(good.path)) == (b"2", f"{tmp_path}/export/good")
    assert bad.path == f"{archive}!/unusable-name-0"
    message = refusal(bad.path)
    assert "the member's name" in message
    assert name not in message  # it may be a person's, and the message stands in tables


def test_needless_parts_of_names_and_wrong_slashes_are_understood(tmp_path: Path) -> None:
    archive = make(tmp_path / "export.tar", {"./train//1.dcm": b"1"})
    assert [e.path for e in files.entries(archive)] == [f"{archive}!/train/1.dcm"]
    archive = make(tmp_path / "export.zip", {"train\\1.dcm": b"1"})
    assert [e.path for e in files.entries(archive)] == [f"{archive}!/train/1.dcm"]
    assert usable_name("a/\0/b")[1]
    assert usable_name("./")[1]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_an_archive_in_an_archive_is_refused_as_what_it_is(tmp_path: Path, suffix: str) -> None:
    archive = make(tmp_path / f"a{suffix}", {"00001.zip": b"PK", "x.dcm": b"1"})
    assert refusal(f"{archive}!/00001.zip") == "an archive in an archive is not read"
    assert files.read(f"{archive}!/x.dcm") == b"1"


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    modes: dict[str, Literal["w", "w:gz"]] = {".tar": "w", ".tar.gz": "w:gz"}
    for suffix, mode in modes.items():
        path = tmp_path / f"a{suffix}"
        with tarfile.open(path, mode) as archive:
            for data in (b"first", b"second"):
                info = tarfile.TarInfo("x")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        assert contents(path) == {f"{tmp_path}/a/x": b"second"}


def test_links_and_devices_in_a_tar_are_refused_and_hard_links_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("real")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"real"))
        for name, kind, target in (
            ("hard", tarfile.LNKTYPE, "real"),
            ("soft", tarfile.SYMTYPE, "/etc/passwd"),
            ("dangling", tarfile.LNKTYPE, "none"),
            ("pipe", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    assert files.read(f"{path}!/hard") == b"real"
    assert refusal(f"{path}!/soft") == refusal(f"{path}!/dangling") == "the member is a link"
    assert refusal(f"{path}!/pipe") == "the member is not a regular file"


def encrypted(data: bytes) -> bytes:
    """A zip archive whose members say that they are encrypted."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = changed.find(signature)
        while place >= 0:
            changed[place + offset] |= 1
            place = changed.find(signature, place + 1)
    return bytes(changed)


def test_an_encrypted_member_and_a_strange_compression_are_refused(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", {"x": b"1" * 100})
    archive.write_bytes(encrypted(archive.read_bytes()))
    assert refusal(f"{archive}!/x") == "the member is encrypted"
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as strange:
        strange.writestr("x", b"1" * 100)
    assert "compressed by method 14" in refusal(f"{tmp_path}/b.zip!/x")


def test_a_damaged_member_is_refused_and_its_neighbours_are_read(tmp_path: Path) -> None:
    archive = make(tmp_path / "a.zip", {"x": b"abc" * 1000, "y": b"def" * 1000})
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo("x")
    data = bytearray(archive.read_bytes())
    data[info.header_offset + 31 + 5] ^= 0xFF
    archive.write_bytes(data)
    assert "damaged compressed data" in refusal(f"{archive}!/x")
    assert files.read(f"{archive}!/y") == b"def" * 1000
    data[info.header_offset] = 0
    archive.write_bytes(data)
    assert "no member where one is listed" in refusal(f"{archive}!/x")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_broken_archive_is_one_refused_file_or_one_line_as_a_root(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / "d" / f"broken{suffix}"
    for data in (b"", b"no archive at all", random.Random(1).randbytes(5000)):
        files.write(path, data)
        files.write(tmp_path / "d" / "x.dcm", b"x")
        refused, good = files.entries(tmp_path / "d")
        assert (refused.path, good.path) == (f"{path}!/", f"{tmp_path}/d/x.dcm")
        assert refusal(refused.path).startswith("not a readable ")
        with pytest.raises(OSError, match="not a readable ") as found:
            files.entries(path)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_of_a_cut_tar_what_is_there_is_read_and_the_cut_is_reported(
    tmp_path: Path, suffix: str
) -> None:
    members = {f"{n:02}": random.Random(n).randbytes(20_000) for n in range(20)}
    archive = make(tmp_path / f"a{suffix}", members)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    entries = files.entries(archive)
    whole_ones = list(members)[:9]
    assert [files.read(entry.path) for entry in entries[1:10]] == [members[n] for n in whole_ones]
    assert "damaged tar archive: " in refusal(entries[0].path)
    assert refusal(entries[-1].path)


def test_a_bomb_is_refused_before_it_takes_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflate, "INFLATED_BYTES", 1 << 20)
    monkeypatch.setattr("beam_jobs.common.files.archives.zip_archive.INFLATED_BYTES", 1 << 20)
    archive = make(tmp_path / "a.zip", {"bomb": bytes(8 << 20)})
    assert "would unpack to 8388608 bytes" in refusal(f"{archive}!/bomb")
    liar = bytearray(archive.read_bytes())  # says that it is small
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = liar.find(signature)
        liar[place + offset : place + offset + 4] = (1000).to_bytes(4, "little")
    archive.write_bytes(liar)
    assert "it unpacks to more than 1000 bytes" in refusal(f"{archive}!/bomb")
    (tmp_path / "x.dcm.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    assert "unpacks to more than 1 MB" in refusal(f"{tmp_path}/x.dcm.gz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_more_members_than_its_bytes_can_be_images_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(members, "_ALWAYS_MEMBERS", 20)
    many, large = {f"{n:03}": b"" for n in range(40)}, random.Random(1).randbytes(8000)
    monkeypatch.setattr(members, "_MEMBER_BYTES", 10_000)
    path = make(tmp_path / f"a{suffix}", many)
    assert "it lists more than 20 members" in refusal(f"{path}!/")
    monkeypatch.setattr(members, "_MEMBER_BYTES", 200)
    assert len(contents(make(tmp_path / f"b{suffix}", {**many, "x": large}))) == 41


def test_a_tar_header_that_claims_gigabytes_is_damage(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)))
    assert refusal(f"{path}!/").startswith(("damaged tar archive", "not a readable tar"))


@pytest.mark.parametrize("suffix", [".zip", ".stored.zip", ".tar", ".tar.gz"])
def test_whatever_bytes_are_changed_only_an_os_error_is_raised(tmp_path: Path, suffix: str) -> None:
    whole = make(tmp_path / f"a{suffix}", some(count=4)).read_bytes()
    rng = random.Random(7)
    for attempt in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 30))):
            # Often where headers are.
            places = (rng.randrange(len(data)), rng.randrange(512), -rng.randrange(1, 400))
            place = rng.choice(places)
            data[place] = rng.randrange(256)
        path = tmp_path / f"{attempt}{suffix}"
        path.write_bytes(data)
        try:
            entries = files.entries(path)
        except OSError:
            continue
        for entry in entries:
            try:
                with files.open_bytes(entry.path) as source:
                    source.read_at(0, source.size)
            except OSError as error:
                assert "\n" not in str(error)  # noqa: PT017
        path.unlink()
