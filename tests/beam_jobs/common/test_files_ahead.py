"""Begins fetched ahead, forked and interrupted processes, and web servers."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.ahead import _WINDOW
from tests.stores import BUCKET, Emulator

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]
ROOT = Path(__file__).resolve().parents[3]


def test_begins_are_fetched_ahead_many_at_once_and_no_more_of_them(
    store: Emulator, root: str
) -> None:
    count = 2 * _WINDOW + 10
    for number in range(count):
        store.put(f"{root.removeprefix(store.path(''))}/{number:03}", bytes(200_000))
    entries = files.entries(root)
    store.front.delay = 0.2
    store.front.requests.clear()
    begun = time.monotonic()
    with files.fetched_ahead(entries, 1000):
        for place, entry in enumerate(entries):
            with files.open_bytes(entry.path) as source:
                assert (source.size, source.modified) == (200_000, entry.stamp)
                assert source.read_at(0, 500) == bytes(500)
            assert len(store.front.requests) <= place + 1 + _WINDOW
    assert time.monotonic() - begun < count * 0.2 / 4
    assert len(store.front.requests) == count
    assert sum(one.sent for one in store.front.requests) == count * 1000


def test_what_was_passed_over_or_is_not_among_them_is_fetched_when_it_is_opened(
    store: Emulator, root: str
) -> None:
    for name in ("a", "b", "c", "d"):
        files.write(files.join(root, name), name.encode())
    entries = files.entries(root)
    with files.fetched_ahead(entries[:3], 10):
        for entry in (entries[2], entries[0], entries[3], entries[2]):
            with files.open_bytes(entry.path) as source:
                assert source.read_at(0, 10).decode() == entry.path[-1]


def test_a_failure_ahead_is_raised_where_the_file_is_read(store: Emulator, root: str) -> None:
    for name in ("a", "b"):
        files.write(files.join(root, name), b"1")
    entries = files.entries(root)
    store.front.fault = lambda method, path: 403 if path.endswith("/b") else None
    with files.fetched_ahead(entries, 10):
        with files.open_bytes(entries[0].path) as source:
            assert source.read_at(0, 1) == b"1"
        with files.open_bytes(entries[1].path) as source, pytest.raises(files.StoreError):
            source.read_at(0, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_refuses_instead_of_hanging(store: Emulator, root: str) -> None:
    """In a process of its own: a fork of a test's process with its threads proves nothing."""
    code = (
        "import os, sys, warnings; warnings.simplefilter('ignore')\n"
        "from beam_jobs.common.files import interface as files\n"
        "path = sys.argv[1]; files.write(path, b'1')\n"
        "read, write = os.pipe(); child = os.fork()\n"
        "if not child:\n"
        "    try: files.read(path)\n"
        "    except files.StoreError as error: os.write(write, str(error).encode())\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0); print(os.read(read, 1000).decode()); print(files.read(path))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, files.join(root, "a")],
        cwd=ROOT, env=os.environ | store.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    refused, read = done.stdout.splitlines()
    assert "forked off one that already spoke to a store" in refused
    assert read == "b'1'"


def test_an_interrupt_is_heard_while_a_request_runs(store: Emulator, root: str) -> None:
    code = (
        "import os, signal, sys, threading, time\n"
        "from beam_jobs.common.files import interface as files\n"
        "from beam_jobs.common import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "def main(argv):\n"
        "    with files.lock(argv[0] + '/lock', 'held'):\n"
        "        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "        files.read(argv[0] + '/slow')\n"
        "begun = time.monotonic()\n"
        "cli.run(main, 'prog')"
    )

    def slow(method: str, path: str) -> None:
        time.sleep(8.0 * path.endswith("/slow"))

    store.front.fault = slow
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, root],
        cwd=ROOT, env=os.environ | store.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "prog: error: interrupted\n")
    assert time.monotonic() - begun < 6
    assert not files.exists(files.join(root, "lock"))


def test_a_web_servers_files_are_read_and_not_listed(
    store: Emulator, root: str, tmp_path: Path
) -> None:
    if store.scheme != "gs":
        pytest.skip("only that emulator's front signs what a plain client sends")
    files.write(files.join(root, "d e.txt"), b"0123456789")
    name = root.removeprefix(store.path(""))
    web = f"{store.front.url}/{BUCKET}/{name}/d%20e.txt"
    assert (files.read(web), files.read_range(web, 4, 3), files.size(web)) == (
        b"0123456789",
        b"456",
        10,
    )
    with pytest.raises(FileNotFoundError):
        files.read(f"{store.front.url}/{BUCKET}/{name}/none")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1/x.dcm", b"x")
    files.copy(tmp_path / "a.zip", files.join(root, "a.zip"))
    (entry,) = files.entries(f"{store.front.url}/{BUCKET}/{name}/a.zip")
    assert (entry.path[-14:], files.read(entry.path)) == ("a.zip!/1/x.dcm", b"x")
    with pytest.raises(UsageError, match="gives single files and archives, no directory"):
        files.entries(f"{store.front.url}/{BUCKET}/{name}")
    with pytest.raises(UsageError, match="a web address with a query"):
        files.read(f"{web}?x=1")


def test_a_plain_web_server_gives_files_whole_and_says_that_it_gives_no_parts(
    tmp_path: Path,
) -> None:
    (tmp_path / "labels.csv").write_text("id,label")
    (tmp_path / "large.bin").write_bytes(bytes(9 << 20))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        web = f"http://127.0.0.1:{server.server_address[1]}"
        assert files.read_text(f"{web}/labels.csv") == "id,label"
        with files.open_read(f"{web}/labels.csv") as stream:
            assert stream.readlines() == [b"id,label"]
        with pytest.raises(files.StoreError, match="Range request not supported") as found:
            files.read(f"{web}/large.bin")
        assert "\n" not in str(found.value)
        server.shutdown()
