"""Files in stores, against emulators over sockets: s3:// and gs://."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.files import clients
from beam_jobs.common.files import interface as files
from tests.stores import _SIGNED, BUCKET, Emulator

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]
ROOT = Path(__file__).resolve().parents[3]


def requests(store: Emulator, method: str = "") -> list[Any]:
    return [one for one in store.front.requests if one.method.startswith(method)]


def test_a_written_object_reads_back_and_costs_one_request_each(store: Emulator, root: str) -> None:
    path = files.join(root, "d", "ü b#%'.dcm")
    files.write(path, b"0123456789")
    assert files.read(path) == b"0123456789"
    assert [one.method for one in store.front.requests] == ["PUT", "GET"]
    assert files.read_range(path, 8, 100) == b"89"
    assert files.read_range(path, 10, 1) == b""
    files.write(path, b"")
    assert (files.read(path), files.size(path)) == (b"", 0)


def test_a_large_object_goes_and_comes_in_parts(store: Emulator, root: str) -> None:
    path, data = files.join(root, "large"), os.urandom(20 << 20)
    with files.open_write(path) as stream:
        for start in range(0, len(data), 300_000):
            stream.write(data[start : start + 300_000])
    assert files.read(path) == data
    with files.open_read(path) as stream:
        copy = io.BytesIO()
        while part := stream.read(1_000_000):
            copy.write(part)
    assert copy.getvalue() == data
    files.copy(path, files.join(root, "copy"))
    assert files.read(files.join(root, "copy")) == data


def test_a_sequential_reader_fetches_ever_larger_blocks(store: Emulator, root: str) -> None:
    data = os.urandom(6 << 20)
    files.write(files.join(root, "a"), data)
    store.front.requests.clear()
    with files.open_read(files.join(root, "a")) as stream:
        assert b"".join(iter(lambda: stream.read(50_000), b"")) == data
    assert len(requests(store)) <= 5
    assert sum(one.sent for one in requests(store)) == len(data)


def test_an_object_appears_whole_when_its_writer_is_closed_and_not_after_an_error(
    store: Emulator, root: str
) -> None:
    path = files.join(root, "a")
    files.write(path, b"old")
    with contextlib.suppress(KeyError), files.open_write(path) as stream:
        stream.write(bytes(20 << 20))
        assert files.read(path) == b"old"
        raise KeyError
    forgotten = files.open_write(path)
    forgotten.write(b"lost")
    del forgotten
    assert files.read(path) == b"old"
    if store.moto:  # Azure's parts end by themselves
        request = urllib.request.Request(
            f"{store.backend}/{BUCKET}?uploads", headers={"Authorization": _SIGNED}
        )
        assert b"<UploadId>" not in urllib.request.urlopen(request).read()


def test_a_failed_upload_leaves_the_old_object(store: Emulator, root: str) -> None:
    path = files.join(root, "a")
    files.write(path, b"old")
    part = ("partNumber=2", "comp=block&")
    store.front.fault = lambda method, path: 403 if any(p in path for p in part) else None
    with pytest.raises(files.StoreError, match=r"/a: access denied \(403\)$"):
        files.write(path, bytes(20 << 20))
    store.front.fault = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(files.StoreError, match=r"/a: access denied \(403\)$"):
        files.write(path, b"new")
    with pytest.raises(files.StoreError, match=r"access denied"), files.open_write(path) as stream:
        stream.write(b"new")
    assert files.read(path) == b"old"


def test_listing_is_that_of_a_disk_and_says_what_changed(
    store: Emulator, root: str, tmp_path: Path
) -> None:
    names = ("b/2.dcm", "b/1.dcm", "a.dcm", "DICOMDIR", ".git/x", "b/.hidden", "empty", "b0/x")
    for name in names:
        for place in (root, str(tmp_path)):
            files.write(files.join(place, name), name.encode() if name != "empty" else b"")
    prefix = root.removeprefix(store.path(""))
    store.put(f"{prefix}/", b"")  # as consoles make folders
    store.put(f"{prefix}/b/", b"")
    store.put(f"{prefix}/folder/", b"")
    found = files.entries(root)
    there = [entry.path.removeprefix(root) for entry in found]
    assert there == [e.path.removeprefix(str(tmp_path)) for e in files.entries(tmp_path)]
    assert files.listing(root).left_out == files.listing(tmp_path).left_out
    assert files.names(root) == files.names(tmp_path)
    assert files.names(files.join(root, "b")) == [".hidden", "1.dcm", "2.dcm"]
    assert files.names(files.join(root, "nothing")) == []
    files.write(files.join(root, "a.dcm"), b"A.DCM")
    changed = [a.path for a, b in zip(found, files.entries(root), strict=True) if a != b]
    assert changed == [files.join(root, "a.dcm")]


def test_what_is_said_of_objects_and_prefixes(store: Emulator, root: str) -> None:
    path = files.join(root, "d", "a")
    files.write(path, b"123")
    assert files.size(path) == 3
    assert (files.exists(root), files.is_dir(root), files.stat(root)) == (True, True, None)
    assert (files.exists(path), files.is_dir(path)) == (True, False)
    assert not files.exists(files.join(root, "x"))
    assert files.holds_files(root)
    assert not files.holds_files(files.join(root, "x"))
    files.replace(path, files.join(root, "b"))
    assert files.read_text(files.join(root, "b")) == "123"
    files.delete([files.join(root, "b"), files.join(root, "gone")])
    assert not files.exists(root)


def test_files_move_between_disks_and_stores(store: Emulator, root: str, tmp_path: Path) -> None:
    files.write(tmp_path / "a", b"123")
    files.replace(tmp_path / "a", files.join(root, "a"))
    assert not (tmp_path / "a").exists()
    files.copy(files.join(root, "a"), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"123"


def test_a_missing_object_is_no_failure_of_the_store(store: Emulator, root: str) -> None:
    for missing in (files.join(root, "x"), f"{store.scheme}://no-such-bucket/x"):
        for use in (files.read, files.size, lambda path: files.open_read(path).read()):
            with pytest.raises(FileNotFoundError, match=r"x|no such") as found:
                use(missing)
            assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "use",
    [
        files.entries,
        files.names,
        files.is_dir,
        lambda path: files.write(path, b"1"),
        lambda path: files.write_new(path, b"1"),
        lambda path: files.write(path, bytes(9 << 20)),
    ],
)
def test_a_missing_bucket_is_named(store: Emulator, use: Any) -> None:
    with pytest.raises(files.StoreError) as found:
        use(f"{store.scheme}://no-such-bucket/x")
    assert str(found.value) == f"bucket {store.scheme}://no-such-bucket does not exist"


@pytest.mark.parametrize("status", [401, 403])
def test_no_permission_is_one_line_at_once(store: Emulator, root: str, status: int) -> None:
    store.front.fault = lambda method, path: status
    path = files.join(root, "a")
    for use in (files.read, files.size, files.entries, files.names, files.exists):
        store.front.requests.clear()
        with pytest.raises(files.StoreError) as found:
            use(path)
        assert str(found.value) == f"{path}: access denied ({status})"
        name = root.removeprefix(store.path(""))
        assert len([one for one in requests(store) if name in one.path]) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_store_that_stumbles_is_tried_again_and_one_that_stays_down_is_one_line(
    store: Emulator, root: str, status: int
) -> None:
    path = files.join(root, "a")
    tries: Counter[str] = Counter()

    def stumble(method: str, path: str) -> int | None:
        tries[method] += 1
        return status if tries[method] == 1 else None

    store.front.fault = stumble
    files.write(path, b"1")
    assert files.read(path) == b"1"
    assert tries == {"PUT": 2, "GET": 2}
    store.front.fault = lambda method, path: status
    with pytest.raises(files.StoreError) as found:
        files.read(path)
    assert str(found.value).startswith(f"{path}: the store answered {status} (")
    assert isinstance(found.value, CommandError)
    assert "\n" not in str(found.value)


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "RETRIES", 0)
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(files.StoreError, match=r"^s3://b/x: .*error sending request$"):
        files.read("s3://b/x")


@pytest.mark.parametrize("name", ["a//b", "a/../b", "a\nb", "a/./b"])
def test_names_that_no_client_can_request_are_refused(
    store: Emulator, root: str, name: str
) -> None:
    path = f"{root}/{name}"
    for use in (files.read, lambda path: files.write(path, b"")):
        with pytest.raises(OSError, match="not a usable name in a store"):
            use(path)
    assert requests(store) == []


def test_a_listing_with_a_name_that_cannot_be_requested_is_refused_by_that_name(
    store: Emulator, root: str
) -> None:
    store.put(f"{root.removeprefix(store.path(''))}/x//y", b"1")
    with pytest.raises(files.StoreError, match=r"has to be renamed first: .*x//y") as found:
        files.entries(root)
    assert "\n" not in str(found.value)


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(store: Emulator, root: str) -> None:
    path = files.join(root, "a")
    files.write(path, bytes(1 << 20))
    with files.open_bytes(path) as source:
        assert source.read_at(0, 10) == bytes(10)
        files.write(path, b"1" * (1 << 20))
        with pytest.raises(files.StoreError, match="was replaced while it was read"):
            source.read_at(500_000, 10)


def test_of_many_takers_of_a_new_object_one_gets_it(store: Emulator, root: str) -> None:
    path = files.join(root, "race")
    start = threading.Barrier(6)
    got = []

    def take(name: str) -> None:
        start.wait()
        if files.write_new(path, name.encode()):
            got.append(name)

    threads = [threading.Thread(target=take, args=(f"taker {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [files.read_text(path)]
    assert not files.write_new(path, b"late")


def test_a_conditional_write_whose_answer_was_lost_counts_as_ones_own(
    store: Emulator, root: str
) -> None:
    """The store writes it, fails to say so, and the retry finds the object."""
    path = files.join(root, "own")
    tries: list[str] = []

    def lose(method: str, name: str) -> int | None:
        if method == "PUT" and not tries:
            tries.append(name)
            store.put(name.removeprefix(f"/{BUCKET}/"), b"mine")
            return 503
        return None

    store.front.fault = lose
    assert files.write_new(path, b"mine")
    assert tries


def test_google_without_credentials_reads_and_says_that_it_does_not_write(
    store: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    with pytest.raises(files.StoreError, match="GOOGLE_SKIP_SIGNATURE"):
        files.write("gs://bucket/x", b"1")
    with pytest.raises(UsageError, match="gs:// names no bucket"):
        files.write("gs://", b"1")
