"""What a disk refuses: one error with the file's own name, the old one kept, no halves."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from beam_jobs.runners.watch import watch

WRITERS: dict[str, Callable[[Path], object]] = {
    "write": lambda path: files.write(path, bytes(3 << 20)),
    "open_write": lambda path: _stream(path),
    "copy": lambda path: files.copy(Path(__file__), path),
    "lock": lambda path: _locked(path),
}


def _stream(path: Path) -> None:
    with files.open_write(path) as stream:
        for _ in range(40):
            stream.write(bytes(100_000))


def _locked(path: Path) -> None:
    with files.lock(path, "another has it"):
        pass


def full(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Lets a disk refuse whatever is written, as `write(2)` tells it: by a number alone."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(number, os.strerror(number))

    def pwrite(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(io, "FileIO", Full)
    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_refused_is_told_of_the_file_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, number: int
) -> None:
    path = tmp_path / "output.csv"
    path.write_text("old")
    full(monkeypatch, number)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        WRITERS[writer](path)
    monkeypatch.undo()
    assert (raised.value.errno, raised.value.filename) == (number, str(path))
    assert files.names(tmp_path) == ["output.csv"]
    assert path.read_text() == ("old" if writer != "lock" else "")


def test_a_new_file_that_is_refused_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="No space left") as raised:
        files.write_new(tmp_path / "lock", b"mine")
    assert raised.value.filename == str(tmp_path / "lock")
    assert files.names(tmp_path) == []


@pytest.mark.parametrize("below", ["file/report.html", "file/deep/report.html"])
def test_a_file_where_a_directory_is_due_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(NotADirectoryError, match="Not a directory"):
        files.write(tmp_path / below, b"x")
    with pytest.raises(NotADirectoryError), files.lock(tmp_path / below, "another's"):
        pass
    assert (tmp_path / "file").read_text() == "somebody's"


def test_an_output_that_is_a_directory_is_named_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        files.write(tmp_path / "report.html", b"x")
    assert raised.value.filename == str(tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


class LibraryError(Exception):
    """As TensorFlow raises them: the disk's refusal in a text."""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("/d/variables.data; No space left on device [Op:SaveV2]", errno.ENOSPC),
        ("Unable to write (errno = 122, error message = 'Disk quota exceeded')", errno.EDQUOT),
        ("/d/x: Read-only file system", errno.EROFS),
        ("Too many open files", errno.EMFILE),
    ],
)
def test_what_a_library_tells_in_a_text_becomes_the_error_it_was(text: str, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as raised, files.refused("model"):
        raise LibraryError(text)
    assert (raised.value.errno, raised.value.filename) == (number, "model")
    with pytest.raises(LibraryError), files.refused("model"):
        raise LibraryError("the graph is wrong")


def test_a_job_tells_a_workers_refusal_with_its_file_first() -> None:
    for said, told in {
        "[Errno 28] No space left on device: '/d/a.tfrecord'": (
            "/d/a.tfrecord: No space left on device"
        ),
        "OSError: [Errno 28] No space left on device": "No space left on device",
    }.items():
        text = f"Traceback (most recent call last):\nOSError: {said.removeprefix('OSError: ')}"

        def run(text: str = text) -> object:
            raise RuntimeError(f"{text} [while running 'Shards/Write']")

        with pytest.raises(Exception, match="No space") as raised:
            watch(run, contextlib.nullcontext(lambda: None))
        assert str(raised.value) == told


def test_a_cohort_that_could_not_be_written_leaves_nothing_in_the_next_ones_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PhantomConfig(patients=2, test_patients=1, matrix=(16, 16), slices=(4, 4))
    written: list[Path] = []
    real = Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(self)
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left") as raised:
        write_cohort(config, tmp_path / "cohort")
    monkeypatch.undo()
    assert str(raised.value.filename).startswith(str(tmp_path / "cohort" / "train"))
    assert list((tmp_path / "cohort").iterdir()) == []
    write_cohort(config, tmp_path / "cohort")
