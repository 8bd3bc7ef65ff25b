"""Archives as directories: the files and bytes of the unpacked one, refusals and no crashes."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.files.archives import gzip_index
from tests.archives import SUFFIXES, contents, make, refusal, some, unpacked
from tests.stores import Emulator


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


def test_a_gzipped_dicom_file_is_what_it_inflates_to(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(300_000)
    path = tmp_path / "x.DCM.gz"
    path.write_bytes(gzip.compress(data[:100_000]) + gzip.compress(data[100_000:]))
    with files.open_bytes(path) as source:
        assert source.read_at(99_990, 20) == data[99_990:100_010]
        assert source.size == len(data)
    assert files.read(path) == path.read_bytes()
    shouted = path.rename(tmp_path / "X.DCM.GZ")
    with files.open_bytes(shouted) as source:
        assert source.size == len(data)
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
        rng.bytes(int(rng.integers(1, 3000))) + bytes(int(rng.integers(1, 9000))) for _ in range(30)
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
        store.front.requests.clear()
        entries = files.entries(remote)
        assert len(store.front.requests) <= 4
        store.front.requests.clear()
        read = []
        with files.fetched_ahead(entries, 64 << 10):
            for entry in entries:
                with files.open_bytes(entry.path) as source:
                    read.append(source.read_at(0, source.size))
        assert read == list(members.values())
        assert len(store.front.requests) <= 10
        assert sum(one.sent for one in store.front.requests) < 1.1 * sum(map(len, read))

    def test_heads_of_large_members_do_not_cost_the_members(
        self, store: Emulator, root: str, tmp_path: Path
    ) -> None:
        members = {f"{n}.dcm": random.Random(n).randbytes(1 << 20) for n in range(8)}
        remote = files.join(root, "a.zip")
        files.copy(make(tmp_path / "a.zip", members), remote)
        entries = files.entries(remote)
        store.front.requests.clear()
        with files.fetched_ahead(entries, 64 << 10):
            for entry in entries:
                with files.open_bytes(entry.path) as source:
                    assert source.read_at(0, 8192) == members[entry.path[-5:]][:8192]
        assert len(store.front.requests) == 8
        assert sum(one.sent for one in store.front.requests) < 8 * (66 << 10)

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

    @pytest.mark.slow
    def test_many_archives_are_opened_at_once(
        self, store: Emulator, root: str, tmp_path: Path
    ) -> None:
        for number in range(40):
            archive = make(tmp_path / f"{number:02}.zip", {"T1w/1.dcm": b"%d" % number})
            files.copy(archive, files.join(root, archive.name))
        store.front.delay = 0.2
        begun = time.monotonic()
        entries = files.entries(root)
        assert time.monotonic() - begun < 40 * 0.2
        assert [files.read(e.path) for e in entries[:3]] == [b"0", b"1", b"2"]
