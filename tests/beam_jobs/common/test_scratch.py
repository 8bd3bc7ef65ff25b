"""Temporary directories: what a killed run leaves goes with the next, another's never."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.common.files import local
from beam_jobs.common.files import scratch as module

# Makes a directory with a file in it, says where, and holds it until its input ends.
HOLD = (
    "import sys; from beam_jobs.common.files import interface as files\n"
    "with files.scratch('test', beside=sys.argv[1] if sys.argv[1:] else None) as place:\n"
    "    (place / 'file').touch(); print(place, flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield directory
    assert list(directory.glob("voxelbeam-*")) == []


def hold(*arguments: str) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_directory_is_ones_own_and_goes_with_all_in_it(temporary: Path) -> None:
    with files.scratch("test") as place:
        assert place.parent == temporary
        assert place.name.startswith("voxelbeam-test-")
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "deep").mkdir()
        (place / "deep" / "file").touch()
    assert not place.exists()


@pytest.mark.parametrize("beside", [False, True])
def test_what_a_killed_run_left_goes_with_the_next_and_a_living_ones_stays(
    tmp_path: Path, beside: bool
) -> None:
    arguments = [str(tmp_path / "out" / "model")] if beside else []
    killed, left = hold(*arguments)
    killed.kill()
    killed.communicate()
    assert (left / "file").exists()
    living, held = hold(*arguments)
    assert not left.exists()
    with files.scratch("other", beside=arguments[0] if beside else None) as place:
        assert (held / "file").exists()
        with files.scratch("third", beside=arguments[0] if beside else None):
            assert place.exists()  # one's own too
    living.communicate()
    assert not held.exists()


def test_nothing_else_is_removed(tmp_path: Path, temporary: Path) -> None:
    others = ["voxelbeam-notes", "voxelbeam-run-12345678x", "xvoxelbeam-run-12345678"]
    for name in others:
        (temporary / name).mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").touch()
    (temporary / "voxelbeam-link-12345678").symlink_to(target)
    beside = [".model.abcd1234", ".models.voxelbeam-12345678", ".model.voxelbeam-backup"]
    for name in beside:
        (tmp_path / name).mkdir()
    with files.scratch("test"), files.scratch("export", beside=tmp_path / "model"):
        pass
    assert all((temporary / name).is_dir() for name in others)
    assert all((tmp_path / name).is_dir() for name in beside)
    assert (target / "file").exists()
    (temporary / "voxelbeam-link-12345678").unlink()
    (temporary / "voxelbeam-notes").rmdir()
    (temporary / "voxelbeam-run-12345678x").rmdir()


def test_another_users_is_not_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = temporary / "voxelbeam-test-12345678"
    left.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: left.stat().st_uid + 1)
    with files.scratch("test"):
        assert left.exists()
    left.rmdir()


def test_whoever_loses_a_directory_before_its_lock_makes_another(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sibling may take a directory without a lock yet for a killed run's."""
    lock = fcntl.flock
    removed: list[str] = []

    def stolen(descriptor: int, how: int) -> None:
        if not removed:
            (path,) = temporary.iterdir()
            path.rmdir()
            removed.append(path.name)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", stolen)
    with files.scratch("test") as place:
        assert place.is_dir()
        assert place.name not in removed


def test_all_go_at_once_when_a_process_ends(temporary: Path) -> None:
    contexts = [files.scratch("one"), files.scratch("two")]
    places = [context.__enter__() for context in contexts]
    module.remove_all()
    assert not any(place.exists() for place in places)
    for context in contexts:
        context.__exit__(None, None, None)


# Begins to write a file, says so, and waits for the end of its input.
WRITE = (
    "import sys; from beam_jobs.common.files import interface as files\n"
    "stream = files.open_write(sys.argv[1]); print('begun', flush=True); sys.stdin.read()"
)


def test_halves_of_files_that_killed_processes_left_go_when_the_file_is_written(
    tmp_path: Path,
) -> None:
    def begin() -> tuple[subprocess.Popen[str], set[Path]]:
        before = set(tmp_path.glob("*.part"))
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path / "page.html")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        return process, set(tmp_path.glob("*.part")) - before

    others = [tmp_path / "page.html.part", tmp_path / "pages.html.0123456789ab.part"]
    for other in others:
        other.touch()
    killed, left = begin()
    killed.kill()
    killed.communicate()
    assert all(path.exists() for path in left)
    living, held = begin()
    assert not any(path.exists() for path in left)
    local._halves.clear()
    files.write(tmp_path / "page.html", b"whole")
    assert (tmp_path / "page.html").read_bytes() == b"whole"
    assert all(path.exists() for path in (*held, *others))
    living.communicate()


# Shares a directory, says what it did and found, and holds it until its input ends.
SHARE = (
    "import sys, time; from pathlib import Path\n"
    "from beam_jobs.common.files import scratch\n"
    "def fill(place):\n"
    "    print('fills', end=' '); time.sleep(0.2); (place / 'file').write_text('whole')\n"
    "place = scratch.shared('test', 'a key', fill)\n"
    "print((place / 'file').read_text(), place.parent, flush=True); sys.stdin.read()"
)


def test_processes_share_a_directory_that_one_fills_and_that_goes_with_the_last(
    temporary: Path,
) -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.stdout.readline().split() for process in started if process.stdout]
    assert sorted(len(words) for words in said) == [2, 2, 3]  # one says that it fills
    (place,) = {Path(words[-1]) for words in said}
    assert all(words[-2] == "whole" for words in said)
    for process in started[:2]:
        process.communicate()
    started[2].kill()
    started[2].communicate()
    assert (place / "whole").is_dir()  # of a killed process, which left nobody to remove it
    with files.scratch("test"):
        assert not place.exists()


def test_what_could_not_be_filled_is_filled_by_the_next(temporary: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        module.shared("test", "k", fail)
    assert list(temporary.iterdir()) == []
    place = module.shared("test", "k", lambda directory: (directory / "file").touch())
    assert module.shared("test", "k", fail) == place
    assert [path.name for path in place.iterdir()] == ["file"]
    module.remove_all()
