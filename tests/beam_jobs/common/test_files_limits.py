"""What is read whole has a ceiling, and only files are read."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.csv_table import read_table
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json
from beam_jobs.common.named_file import read_named

SPECIAL = ("pipe", "socket", "device", "link")


@pytest.fixture
def special(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a pipe that nobody writes to, a socket and a device without an end."""
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    os.mkfifo("pipe")
    os.symlink("/dev/zero", "device")
    os.symlink("pipe", "link")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        yield tmp_path


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_file_is_refused_at_once(special: Path, name: str) -> None:
    path = special / name
    what = {"link": "named pipe"}.get(name, "named pipe" if name == "pipe" else name)
    for reading in (
        files.read,
        files.read_text,
        read_json,
        lambda path: files.open_read(path).close(),
        lambda path: files.read_range(path, 0, 1),
        lambda path: files.copy(path, special / "copy"),
        lambda path: files.fetched(path).__enter__(),
    ):
        with pytest.raises(files.SpecialFileError, match=f"is a {what}, not a file"):
            reading(path)
    with pytest.raises(UsageError, match=f"^--labels: {path} is a {what}, not a file$"):
        read_named(path, flag="--labels")
    assert sorted(os.listdir(special)) == sorted(SPECIAL)  # nothing was begun


def test_a_file_that_holds_too_much_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.touch()
    os.truncate(path, files.MOST_BYTES + 1)  # takes no room
    why = "holds more than 256 MB, which is the most that is read of such a file"
    with pytest.raises(files.TooLargeError, match=why):
        files.read(path)
    with pytest.raises(UsageError, match=f"--labels: {path} {why}"):
        read_named(path, flag="--labels")
    path.write_bytes(b"0123456789")
    assert files.read(path, limit=10) == b"0123456789"
    assert files.read_text(path, limit=10) == "0123456789"
    with pytest.raises(files.TooLargeError, match="more than 9 bytes"):
        files.read(path, limit=9)


def test_what_has_not_said_its_size_is_read_up_to_the_ceiling() -> None:
    assert files.read("/proc/self/stat").startswith(str(os.getpid()).encode())
    with pytest.raises(files.TooLargeError, match="more than 10 bytes"):
        files.read("/proc/self/stat", limit=10)


def test_a_member_of_an_archive_is_held_to_the_ceiling(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.csv", b"0" * 1000)
    path = f"{tmp_path}/a.zip!/labels.csv"
    assert len(files.read(path, limit=1000)) == 1000
    with pytest.raises(files.TooLargeError, match="more than 999 bytes"):
        files.read(path, limit=999)


def test_a_table_has_a_most_of_rows_and_columns() -> None:
    rows = "id,label\n" + "1,2\n" * 10
    assert len(read_table(rows, ("id",), most=10)[1]) == 10
    with pytest.raises(ValueError, match=r"^line 12: more than 10 rows$"):
        read_table(rows + "1,2\n", ("id",), most=10)
    with pytest.raises(ValueError, match=r"^line 1: more than 10000 fields$"):
        read_table("a," * 10_000 + "b\n", ())
