"""Of the jobs begun on one output the last one alone writes, on disks and in stores."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.files import lock
from beam_jobs.common.owner import LostOutputError, Owner


@pytest.fixture
def output(disk_or_store: str) -> str:
    return files.join(disk_or_store, "d")


def owner(output: str) -> Owner:
    return Owner(path=files.join(output, ".state/owner.json"), output=output)


def test_the_last_to_take_an_output_writes_and_no_other(output: str) -> None:
    first, second = owner(output), owner(output)
    with pytest.raises(LostOutputError):
        first.require()  # nobody's yet
    first.take()
    first.require()
    second.take()
    second.require()
    with pytest.raises(
        LostOutputError,
        match=rf"^another job \(process {os.getpid()} on .* UTC\) began to write {output} after",
    ):
        first.require()
    first.leave()
    second.require()
    second.leave()
    assert files.tree(output) == []
    with pytest.raises(
        LostOutputError, match=r"^another job finished .* is not seen from here; nothing"
    ):
        second.require()


def test_a_claim_waits_for_who_is_writing(tmp_path: Path) -> None:
    first, second = owner(str(tmp_path)), owner(str(tmp_path))
    first.take()
    taking = threading.Thread(target=second.take)
    with first.writing(), first.writing():
        taking.start()
        taking.join(0.2)
        assert taking.is_alive()
    taking.join(10)
    second.require()


def test_who_writes_for_ever_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_CLAIM_S", 0.1)
    first, second = owner(str(tmp_path)), owner(str(tmp_path))
    first.take()
    with (
        first.writing(),
        pytest.raises(files.LockedError, match=r"owner\.json: .* an end: end it$"),
    ):
        second.take()
    with pytest.raises(LostOutputError):  # the first one goes all the same
        first.require()


def test_many_who_write_without_a_pause_do_not_keep_a_claim_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_CLAIM_S", 2.0)
    first, second = owner(str(tmp_path)), owner(str(tmp_path))
    first.take()

    def write() -> None:
        with contextlib.suppress(LostOutputError):
            while True:
                with first.writing():
                    time.sleep(0.03)

    writers = [threading.Thread(target=write, daemon=True) for _ in range(16)]
    for writer in writers:
        writer.start()
    time.sleep(0.05)
    second.take()
    for writer in writers:
        writer.join(1)
        assert not writer.is_alive()
    second.require()


def test_a_claim_is_written_into_nobody_elses_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".state").mkdir()
    one = owner(str(tmp_path))
    os.link(tmp_path / "victim", one.path)
    one.take()
    one.require()
    os.unlink(one.path)
    os.symlink(tmp_path / "victim", one.path)
    with pytest.raises(OSError, match="symbolic"):
        one.take()
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_disk_without_locks_is_told_by_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    one = owner(str(tmp_path))
    one.take()
    monkeypatch.setattr(fcntl, "flock", flock)
    for locks in (one.take, one.require, one.leave):
        with pytest.raises(OSError, match=rf"No locks available: '{one.path}'$"):
            locks()
    path = str(tmp_path / "lock")
    with pytest.raises(OSError, match=rf"No locks available: '{path}'$"), files.lock(path, ""):
        pass


@pytest.mark.parametrize("said", [b"", b"{}", b"\xff", b'{"token": 1}', b"x" * 5000])
def test_a_damaged_claim_is_nobodys(tmp_path: Path, said: bytes) -> None:
    one = owner(str(tmp_path))
    one.take()
    Path(one.path).write_bytes(said)
    with pytest.raises(LostOutputError):
        one.require()
    one.take()
    one.require()
