"""Paths and local files: names, writing whole or not at all, refusals."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files import names


@pytest.mark.parametrize(
    ("directory", "joined"),
    [
        ("data", "data/a/b"),
        ("data/", "data/a/b"),
        ("/", "/a/b"),
        (Path("data"), "data/a/b"),
        ("s3://bucket", "s3://bucket/a/b"),
        ("gs://bucket/data//", "gs://bucket/data/a/b"),
        ("az://box/export.zip!/", "az://box/export.zip!/a/b"),
    ],
)
def test_names_are_joined_with_one_slash(directory: names.StrPath, joined: str) -> None:
    assert files.join(directory, "a", "b") == joined


@pytest.mark.parametrize("path", ["s3://", "gs:///", "https://"])
def test_a_store_without_a_bucket_is_not_trimmed_to_a_local_directory(path: str) -> None:
    with pytest.raises(UsageError, match=f"{path} names no"):
        files.trimmed(path)


def test_a_path_object_of_a_store_is_not_taken_for_a_local_directory() -> None:
    assert files.text(Path("gs://bucket/run")) == "gs://bucket/run"
    assert files.is_remote(Path("s3://bucket/run"))
    with pytest.raises(UsageError, match=r"gs:/bucket/run: a slash is missing .*gs://bucket/run"):
        files.write("gs:/bucket/run", b"")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://host/x", r"ftp://host/x: cannot use ftp://; known: local paths, gs://, s3://, az:"),
        ("hdfs://host/x", "cannot use hdfs://"),
        ("https://host/x", "https:// can be read, not written to"),
        ("export.zip!/x", "an archive can be read, not written to"),
        ("s3://", "names no bucket"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused_in_one_line(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as found:
        files.write(path, b"")
    assert "\n" not in str(found.value)
    with pytest.raises(UsageError, match=message):
        files.open_write(path)


def test_an_archives_name_is_no_outputs_but_a_file_may_have_it(tmp_path: Path) -> None:
    for path in ("export.zip", "s3://bucket/EXPORT.tar.gz/"):
        with pytest.raises(UsageError, match="an archive can be read, not written to"):
            files.require_writable(path)
    files.write(tmp_path / "export.zip", b"PK")
    assert files.read(tmp_path / "export.zip") == b"PK"


def test_a_member_of_an_archive_has_the_path_of_its_unpacked_directory() -> None:
    assert names.split_member("s3://b/e.zip!/1/x.dcm") == ("s3://b/e.zip", "1/x.dcm")
    assert names.split_member("wow!/x.dcm") is None
    assert files.logical("s3://b/E.TAR.GZ!/1/x.dcm") == "s3://b/E/1/x.dcm"
    assert files.logical("d/00001.tgz!/x.dcm") == files.logical("d/00001/x.dcm")


def test_a_written_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    files.write_text(path, "old")
    stream = files.open_write(path)
    stream.write(b"half")
    stream.flush()
    assert path.read_text() == "old"
    (half,) = [name for name in files.names(path.parent) if name != "file.txt"]
    assert files.temporary_of(half) == "file.txt"
    stream.close()
    assert path.read_text() == "half"
    with contextlib.suppress(KeyError), files.open_write(path) as stream:
        stream.write(b"lost")
        raise KeyError
    del stream
    forgotten = files.open_write(path)
    forgotten.write(b"lost")
    del forgotten
    assert path.read_text() == "half"
    assert files.names(path.parent) == ["file.txt"]


def test_a_full_disk_leaves_the_old_file_and_no_half(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from beam_jobs.common.files import interface as files\n"
        "try: files.write(sys.argv[1], bytes(2000))\n"
        "except OSError as error: print(error.strerror)"
    )
    command = [sys.executable, "-B", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "File too large"), done.stderr
    assert path.read_bytes() == b"old"
    assert files.names(tmp_path) == ["file"]


def test_of_two_who_write_a_new_file_the_first_one_does(tmp_path: Path) -> None:
    assert files.write_new(tmp_path / "a", b"1")
    assert not files.write_new(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert files.names(tmp_path) == ["a"]


def test_listing_leaves_out_what_no_image_hides_in(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "b/1.dcm", "a.dcm", "DICOMDIR", ".git/x", "b/.hidden", "b/Thumbs.db"):
        files.write(tmp_path / name, b"x")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = [entry.path for entry in files.entries(tmp_path)]
    assert found == [f"{tmp_path}/a.dcm", f"{tmp_path}/b/1.dcm", f"{tmp_path}/b/2.dcm"]
    assert files.holds_files(tmp_path)
    with pytest.raises(NotADirectoryError):
        files.entries(tmp_path / "a.dcm")


def test_reading_at_any_place_takes_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with files.open_bytes(tmp_path / "a") as source:
        buffer = bytearray(4)
        assert (source.size, source.read_at(8, 9)) == (10, b"89")
        assert source.read_into(memoryview(buffer), 3) == 4
        assert (bytes(buffer), source.modified) == (b"3456", os.stat(tmp_path / "a").st_mtime_ns)
        stream = files.SourceFile(source)
        assert (stream.seek(-3, os.SEEK_END), stream.read(1 << 40)) == (7, b"789")
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(OSError, match="is a named pipe, not a file"),
        files.open_bytes(tmp_path / "pipe"),
    ):
        pass
    with pytest.raises(FileNotFoundError), files.open_bytes(tmp_path / "none"):
        pass


def test_what_is_said_of_files_and_directories(tmp_path: Path) -> None:
    files.write(tmp_path / "d" / "a", b"123")
    assert files.size(tmp_path / "d" / "a") == 3
    assert files.stat(tmp_path / "d") is None
    assert (files.exists(tmp_path / "d"), files.is_dir(tmp_path / "d")) == (True, True)
    assert (files.exists(tmp_path / "d" / "a"), files.is_dir(tmp_path / "d" / "a")) == (True, False)
    assert not files.exists(tmp_path / "x")
    assert files.names(tmp_path / "x") == []
    with pytest.raises(FileNotFoundError, match="x"):
        files.size(tmp_path / "x")
    files.copy(tmp_path / "d" / "a", tmp_path / "e" / "b")
    files.replace(tmp_path / "d" / "a", tmp_path / "c")
    assert (files.read(tmp_path / "c"), files.read_range(tmp_path / "e" / "b", 1, 9)) == (
        b"123",
        b"23",
    )
    files.delete([tmp_path / "c", tmp_path / "gone"])
    assert files.names(tmp_path) == []


def test_local_paths_cost_no_client_no_beam_and_no_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from beam_jobs.common.files import interface as files\n"
        "path = sys.argv[1] + '/a'\n"
        "files.write(path, b'1'); files.read(path); files.entries(sys.argv[1])\n"
        "with files.lock(sys.argv[1] + '/lock', 'held'): pass\n"
        "with files.mirrored(sys.argv[1]) as mirror: mirror.push()\n"
        "heavy = {'obstore', 'boto3', 'google.auth', 'apache_beam', 'tensorflow', 'indexed_gzip'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
