"""One lock: never two holders, on disks and in stores, whatever becomes of the first."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files import objects, store_lock
from tests.stores import Emulator

# Holds a lock until its input ends.
HOLD = (
    "import sys; from beam_jobs.common.files import interface as files\n"
    "with files.lock(sys.argv[1], 'held'):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


def hold(path: Path | str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_held_lock_refuses_and_says_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    with files.lock(path, "another job is writing data"):
        with (
            pytest.raises(
                files.LockedError, match=rf"^another job is writing data \(process {os.getpid()} on"
            ) as found,
            files.lock(path, "another job is writing data", hint="; unused on a disk"),
        ):
            pass
        assert isinstance(found.value, CommandError)
    with files.lock(path, "again"):
        pass


def test_the_lock_of_a_killed_process_ends_with_it(tmp_path: Path) -> None:
    process = hold(tmp_path / "lock")
    with pytest.raises(files.LockedError, match=f"process {process.pid}"):
        files.lock(tmp_path / "lock", "held").__enter__()
    process.kill()
    process.communicate()
    with files.lock(tmp_path / "lock", "held"):
        pass


def test_a_released_lock_leaves_its_file_so_that_two_cannot_hold_it(tmp_path: Path) -> None:
    """Were it unlinked, one who opened it before and one who made it anew would both hold one."""
    path = tmp_path / "lock"
    with files.lock(path, "held"):
        before = path.stat().st_ino
    assert path.stat().st_ino == before
    waiting = open(path)  # noqa: SIM115 - as a job that is about to take it
    with files.lock(path, "held"):
        assert os.path.samestat(os.fstat(waiting.fileno()), path.stat())
    waiting.close()


def test_a_lock_whose_file_was_removed_is_not_taken_for_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the file goes: the lock has to be that of the path."""
    import fcntl

    path = tmp_path / "lock"
    flock = fcntl.flock
    removed: list[Path] = []

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(path)
            path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with files.lock(path, "held"):
        monkeypatch.undo()
        with pytest.raises(files.LockedError):
            files.lock(path, "held").__enter__()


@pytest.mark.emulator
@pytest.mark.filterwarnings("ignore")
class TestInAStore:
    def test_a_held_lock_refuses_and_a_released_one_is_gone(
        self, store: Emulator, root: str
    ) -> None:
        path = files.join(root, "lock")
        with files.lock(path, "held"):
            with (
                pytest.raises(files.LockedError, match=r"^held \(process .*\); --break_lock$"),
                files.lock(path, "held", hint="; --break_lock"),
            ):
                pass
            assert files.exists(path)
        assert not files.exists(path)

    def test_a_killed_jobs_lock_is_broken_on_demand(self, store: Emulator, root: str) -> None:
        path = files.join(root, "lock")
        files.write(path, b"process 1 on elsewhere")
        with pytest.raises(files.LockedError, match=r"held \(process 1 on elsewhere\)"):
            files.lock(path, "held").__enter__()
        with files.lock(path, "held", break_lock=True):
            assert "elsewhere" not in files.read_text(path)
        assert not files.exists(path)
        with files.lock(path, "held", break_lock=True):
            pass

    def test_an_object_that_is_no_lock_is_broken_too(self, store: Emulator, root: str) -> None:
        """One of more than 4096 bytes was tried again for ever."""
        path = files.join(root, "lock")
        for content in (b"", b"x" * 5000):
            files.write(path, content)
            with files.lock(path, "held", break_lock=True):
                assert f"process {os.getpid()} on" in files.read_text(path)
            assert not files.exists(path)

    def test_whose_lock_was_broken_does_not_release_the_others(
        self, store: Emulator, root: str
    ) -> None:
        path = files.join(root, "lock")
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(contextlib.ExitStack())
            first.enter_context(files.lock(path, "held"))
            stack.enter_context(files.lock(path, "held", break_lock=True))
            first.close()
            assert files.exists(path)
        assert not files.exists(path)

    def test_of_two_who_break_a_lock_one_gets_it(
        self, store: Emulator, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = files.join(root, "lock")
        files.write(path, b"dead")
        name = path.removeprefix(store.path(""))
        between: list[str] = []
        by_the_front = dataclasses.replace(store, backend=store.front.url)  # which counts versions

        def other_comes_between(method: str, requested: str) -> int | None:
            if method == "PUT" and "looked" in between:
                between.append("written")
                store.front.fault = lambda method, path: None
                by_the_front.put(name, b"the other's")
            if method == "GET":
                between.append("looked")
            return None

        store.front.fault = other_comes_between
        with pytest.raises(files.LockedError, match="the other's"):
            files.lock(path, "held", break_lock=True).__enter__()
        assert between[-1] == "written"

    def test_a_lock_that_cannot_be_released_does_not_hide_what_the_job_gave(
        self, store: Emulator, root: str
    ) -> None:
        with files.lock(files.join(root, "lock"), "held"):
            store.front.fault = lambda method, path: 403

    def test_a_killed_jobs_lock_is_taken_over_on_its_own_machine(
        self, store: Emulator, root: str
    ) -> None:
        path = files.join(root, "lock")
        process = hold(path)
        with pytest.raises(files.LockedError, match=f"process {process.pid} on"):
            files.lock(path, "held").__enter__()
        process.kill()
        process.communicate()
        with files.lock(path, "held"):
            assert f"process {os.getpid()} on" in files.read_text(path)
        assert not files.exists(path)

    @pytest.mark.slow
    def test_a_silent_holder_elsewhere_is_given_up_and_one_with_a_heartbeat_is_not(
        self, store: Emulator, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_lock, "HEARTBEAT_S", 0.05)
        monkeypatch.setattr(store_lock, "_POLL_S", 0.1)
        monkeypatch.setattr(store_lock, "LEASE_S", 2.0)
        path = files.join(root, "lock")
        files.write(path, b"process 1 on elsewhere since yesterday\nother machine\n7\n")
        with pytest.raises(files.LockedError, match="on elsewhere"):
            files.lock(path, "held").__enter__()
        with (
            files.lock(path, "held", wait=True),
            pytest.raises(files.LockedError, match=f"process {os.getpid()} on"),
        ):
            files.lock(path, "held", wait=True).__enter__()

    def test_who_lost_a_lock_is_stopped_before_the_next_write(
        self, store: Emulator, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_lock, "HEARTBEAT_S", 0.05)
        path = files.join(root, "lock")
        with files.lock(path, "held") as first:
            first.require()
            with files.lock(path, "held", break_lock=True) as second:
                second.require()
                deadline = time.monotonic() + 30
                while not first._lost and time.monotonic() < deadline:  # type: ignore[attr-defined]
                    time.sleep(0.05)  # its next heartbeat sees it
                with pytest.raises(files.LockedError, match="held"):
                    first.require()
                second.require()

    @pytest.mark.slow
    def test_a_heartbeat_never_takes_a_lock_back(
        self, store: Emulator, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_lock, "HEARTBEAT_S", 0.01)
        for place in range(3):  # a heartbeat that read its own content writes over nobody else's
            path = files.join(root, f"lock-{place}")
            with (
                files.lock(path, "held"),
                files.lock(path, "held", break_lock=True) as second,
            ):
                time.sleep(0.1)
                second.require()
                assert files.read(path).startswith(second._token.encode())  # type: ignore[attr-defined]

    def test_an_object_is_put_over_what_was_read_alone(self, store: Emulator, root: str) -> None:
        path = files.join(root, "object")
        files.write(path, b"another's")
        assert not objects.put_over(path, b"mine", over=b"read before")
        assert objects.put_over(path, b"mine", over=b"another's")
        assert files.read(path) == b"mine"
