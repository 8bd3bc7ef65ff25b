"""Archives as directories: the files and bytes of the unpacked one, refusals and no crashes."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.files.archives import gzip_index, inflate
from beam_jobs.common.files.archives.members import usable_name
from tests.stores import Emulator

SUFFIXES = (".zip", ".stored.zip", ".tar", ".tar.gz", ".tgz")


def make(path: Path, members: dict[str, bytes]) -> Path:
    """An archive of what its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        method = zipfile.ZIP_STORED if ".stored" in path.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name), data, method)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def some(seed: int = 0, count: int = 30) -> dict[str, bytes]:
    """Files as exams have them, some of them no input."""
    rng = random.Random(seed)
    found = {
        f"train/{n % 3:05}/{'T1w' if n % 2 else 'FLAIR'}/{n:03}.dcm": rng.randbytes(
            rng.randrange(50, 3000)
        )
        + bytes(rng.randrange(100_000))
        for n in range(count)
    }
    return found | {"train/empty": b"", "train/ü .dcm": b"u", "DICOMDIR": b"x", ".git/a": b"x"}


def unpacked(root: Path, members: dict[str, bytes]) -> Path:
    for name, data in members.items():
        files.write(root / name, data)
    return root


def contents(root: str | Path) -> dict[str, bytes]:
    """What a reader of the root finds, by the paths of its unpacked directory."""
    found = {}
    for entry in files.entries(root):
        with files.open_bytes(entry.path) as source:
            data = source.read_at(0, source.size)
            assert entry.size in (None, len(data))
            if "!/" in entry.path:
                assert source.modified == entry.stamp
            middle = len(data) // 2
            assert source.read_at(middle, 10) == data[middle : middle + 10]
            assert source.read_at(len(data), 10) == b""
        found[files.logical(entry.path)] = data
    return found


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_is_its_unpacked_directory(tmp_path: Path, suffix: str) -> None:
    members = some()
    archive = make(tmp_path / f"export{suffix}", members)
    directory = unpacked(Path(files.logical(archive)), members)
    entries = files.entries(archive)
    assert [files.logical(entry.path) for entry in entries] == [
        entry.path for entry in files.entries(directory)
    ]
    assert contents(archive) == contents(directory)
    assert files.is_dir(archive)
    assert files.is_dir(f"{archive}!/")
    assert files.is_dir(f"{archive}!/train/00001")
    assert not files.is_dir(f"{archive}!/train/0000")
    assert files.exists(f"{archive}!/train/empty")
    assert not files.exists(f"{archive}!/train/none")
    assert files.names(f"{archive}!/train") == files.names(directory / "train")
    below = [entry.path for entry in files.entries(f"{archive}!/train/00001")]
    assert below == [e.path for e in entries if e.path.startswith(f"{archive}!/train/00001/")]
    assert files.read(f"{archive}!/train/ü .dcm") == b"u"
    with files.open_read(f"{archive}!/train/00001/T1w/001.dcm") as stream:
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == members["train/00001/T1w/001.dcm"][-5:]
    with pytest.raises(FileNotFoundError, match="no such member"):
        files.read(f"{archive}!/train/none")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archives_in_a_directory_stand_for_directories(tmp_path: Path, suffix: str) -> None:
    for place in ("packed", "plain"):
        unpacked(tmp_path / place, {"00003/T1w/1.dcm": b"3", "00001-b.dcm": b"b"})
    for patient in ("00001", "00002"):
        members = {f"T1w/{n}.dcm": f"{patient} {n}".encode() for n in range(3)}
        make(tmp_path / "packed" / f"{patient}{suffix}", members)
        name = files.name_of(files.logical(f"{patient}{suffix}"))
        unpacked(tmp_path / "plain" / name, members)
    packed, plain = (
        [
            (files.logical(e.path).removeprefix(f"{tmp_path}/{place}/"), files.read(e.path))
            for e in files.entries(tmp_path / place)
        ]
        for place in ("packed", "plain")
    )
    assert packed == plain


def test_another_process_opens_a_member_by_its_path_alone(tmp_path: Path) -> None:
    archive = make(tmp_path / "export.tar.gz", some())
    code = (
        "import sys, zlib; from beam_jobs.common.files import interface as files\n"
        "print(zlib.crc32(files.read(sys.argv[1])))"
    )
    path = f"{archive}!/train/00002/T1w/005.dcm"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    import zlib

    assert done.stdout.strip() == str(zlib.crc32(files.read(path))), done.stderr


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    archive = make(tmp_path / "export.zip", {"a": b"old", "b": b"2"})
    assert files.read(f"{archive}!/a") == b"old"
    make(archive, {"b": b"2", "a": b"other"})
    assert files.read(f"{archive}!/a") == b"other"


def test_a_members_stamp_changes_with_its_content(tmp_path: Path) -> None:
    stamps = set()
    for data in (b"1234", b"1235"):
        (entry,) = files.entries(make(tmp_path / str(data[-1]) / "a.zip", {"x": data}))
        stamps.add(entry.stamp)
    (again,) = files.entries(make(tmp_path / "again" / "a.zip", {"x": b"1234"}))
    assert len(stamps) == 2
    assert again.stamp in stamps


# What is wrong, and where it is refused.


def refusal(path: str) -> str:
    with pytest.raises(OSError) as found, files.open_bytes(path) as source:
        source.read_at(0, source.size)
    assert "\n" not in str(found.value)
    return found.value.strerror or ""


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:/x", "a\x01b"])
def test_a_name_that_leaves_the_archive_is_a_refused_file(
    tmp_path: Path, suffix: str, name: str
) -> None:
    archive = make(tmp_path / f"export{suffix}", {name: b"1", "good": b"2"})
    bad, good = sorted(files.entries(archive), key=lambda entry: "good" in entry.path)
    assert (files.read(good.path), files.logical(good.path)) == (b"2", f"{tmp_path}/export/good")
    assert bad.path == f"{archive}!/unusable-name-0"
    assert "the member's name" in refusal(bad.path)


def test_needless_parts_of_names_and_wrong_slashes_are_understood(tmp_path: Path) -> None:
    archive = make(tmp_path / "export.tar", {"./train//1.dcm": b"1"})
    assert [e.path for e in files.entries(archive)] == [f"{archive}!/train/1.dcm"]
    archive = make(tmp_path / "export.zip", {"train\\1.dcm": b"1"})
    assert [e.path for e in files.entries(archive)] == [f"{archive}!/train/1.dcm"]
    assert usable_name("a/\0/b")[1]
    assert usable_name("./")[1]


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
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
    assert "it unpacks to more than 1048576 bytes" in refusal(f"{tmp_path}/x.dcm.gz")


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


def test_a_gzipped_dicom_file_is_what_it_inflates_to(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(300_000)
    path = tmp_path / "x.DCM.gz"
    path.write_bytes(gzip.compress(data[:100_000]) + gzip.compress(data[100_000:]))
    with files.open_bytes(path) as source:
        assert source.read_at(99_990, 20) == data[99_990:100_010]
        assert source.size == len(data)
    assert files.read(path) == path.read_bytes()
    archive = make(tmp_path / "a.zip", {"x.dcm.gz": gzip.compress(data)})
    with files.open_bytes(f"{archive}!/x.dcm.gz") as source:
        assert source.read_at(0, source.size) == data
    path.write_bytes(gzip.compress(data)[:-100_000])
    assert refusal(str(path)) == "damaged compressed data: it ends too early"
    path.write_bytes(b"no gzip")
    assert refusal(str(path)).startswith("damaged compressed data")


def test_a_compressed_file_is_read_at_any_place_however_many_points_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzip_index, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(gzip_index, "_POINTS", 8)
    rng = np.random.default_rng(0)
    # Runs make single packed bytes give much, noise makes them give nothing.
    data = b"".join(
        rng.bytes(rng.integers(1, 3000)) + bytes(int(rng.integers(1, 9000))) for _ in range(30)
    )
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(data[:70_000]) + gzip.compress(data[70_000:]))
    for size_first in (False, True):
        source = gzip_index.GzipIndex(_opened(path), lambda: _opened(path), "a.gz")
        if size_first:
            assert source.size == len(data)
            source.end_of_first_pass()
        for _ in range(200):
            begin = int(rng.integers(0, len(data) + 100))
            length = int(rng.integers(0, 5000))
            assert source.read_at(begin, length) == data[begin : begin + length]
        assert source.size == len(data)
        assert len(source._points) <= 9


def _opened(path: Path) -> files.ByteSource:
    from beam_jobs.common.files.local import LocalBytes

    return LocalBytes(str(path))


def test_pydicom_and_numpy_read_members(tmp_path: Path) -> None:
    dataset = pydicom.Dataset()
    dataset.PatientID = "1"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image, array = io.BytesIO(), io.BytesIO()
    pydicom.dcmwrite(image, dataset, enforce_file_format=False)
    np.savez(array, np.arange(5))
    archive = make(tmp_path / "a.zip", {"x.dcm": image.getvalue(), "x.npz": array.getvalue()})
    with files.open_read(f"{archive}!/x.dcm") as stream:
        assert pydicom.dcmread(stream, force=True).PatientID == "1"
    with files.open_read(f"{archive}!/x.npz") as stream, np.load(stream) as found:
        assert found["arr_0"].tolist() == list(range(5))


# In stores.


@pytest.mark.emulator
@pytest.mark.filterwarnings("ignore")
class TestInAStore:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_an_archive_in_a_store_is_its_unpacked_directory(
        self, store: Emulator, root: str, tmp_path: Path, suffix: str
    ) -> None:
        members = some()
        local = make(tmp_path / f"export{suffix}", members)
        remote = files.join(root, "export" + suffix)
        files.copy(local, remote)
        expected = {p.removeprefix(str(tmp_path)): d for p, d in contents(local).items()}
        assert {p.removeprefix(root): d for p, d in contents(remote).items()} == expected
        files.write(files.join(root, "other.dcm"), b"1")
        whole = [files.logical(entry.path) for entry in files.entries(root)]
        assert whole == sorted([*contents(remote), files.join(root, "other.dcm")])

    @pytest.mark.parametrize("suffix", [".zip", ".stored.zip", ".tar"])
    def test_members_cost_far_fewer_requests_than_files(
        self, store: Emulator, root: str, tmp_path: Path, suffix: str
    ) -> None:
        rng = random.Random(1)
        members = {f"1/T1w/{n:03}.dcm": rng.randbytes(30_000) for n in range(200)}
        remote = files.join(root, "export" + suffix)
        files.copy(make(tmp_path / f"export{suffix}", members), remote)
        store.front.asked.clear()
        entries = files.entries(remote)
        assert len(store.front.asked) <= 4
        store.front.asked.clear()
        read = []
        with files.fetched_ahead(entries, 64 << 10):
            for entry in entries:
                with files.open_bytes(entry.path) as source:
                    read.append(source.read_at(0, source.size))
        assert read == list(members.values())
        assert len(store.front.asked) <= 10
        assert sum(one.sent for one in store.front.asked) < 1.1 * sum(map(len, read))

    def test_heads_of_large_members_do_not_cost_the_members(
        self, store: Emulator, root: str, tmp_path: Path
    ) -> None:
        members = {f"{n}.dcm": random.Random(n).randbytes(1 << 20) for n in range(8)}
        remote = files.join(root, "a.zip")
        files.copy(make(tmp_path / "a.zip", members), remote)
        entries = files.entries(remote)
        store.front.asked.clear()
        with files.fetched_ahead(entries, 64 << 10):
            for entry in entries:
                with files.open_bytes(entry.path) as source:
                    assert source.read_at(0, 8192) == members[entry.path[-5:]][:8192]
        assert len(store.front.asked) == 8
        assert sum(one.sent for one in store.front.asked) < 8 * (66 << 10)

    def test_a_replaced_archive_is_noticed(
        self, store: Emulator, root: str, tmp_path: Path
    ) -> None:
        path = files.join(root, "a.zip")
        files.copy(make(tmp_path / "a.zip", {"x": b"1"}), path)
        assert files.read(f"{path}!/x") == b"1"
        files.copy(make(tmp_path / "a.zip", {"y": b"2", "x": b"1"}), path)
        with pytest.raises(files.StoreError, match="was replaced while it was read"):
            files.read(f"{path}!/x")

    def test_a_missing_or_denied_archive_is_what_a_file_would_be(
        self, store: Emulator, root: str, tmp_path: Path
    ) -> None:
        with pytest.raises(FileNotFoundError):
            files.entries(files.join(root, "none.zip"))
        path = files.join(root, "a.tar")
        files.copy(make(tmp_path / "a.tar", {"x": b"1"}), path)
        store.front.fault = lambda method, path: 403
        with pytest.raises(files.StoreError, match=r"a.tar: access denied \(403\)"):
            files.entries(path)

    def test_many_archives_are_opened_at_once(
        self, store: Emulator, root: str, tmp_path: Path
    ) -> None:
        for number in range(40):
            archive = make(tmp_path / f"{number:02}.zip", {"T1w/1.dcm": b"%d" % number})
            files.copy(archive, files.join(root, archive.name))
        store.front.delay = 0.05
        begun = time.monotonic()
        entries = files.entries(root)
        assert time.monotonic() - begun < 40 * 0.05
        assert [files.read(e.path) for e in entries[:3]] == [b"0", b"1", b"2"]
