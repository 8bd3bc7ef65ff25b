"""Paths of DICOMweb services in the layer for files: names, dispatch, refusals. Asks no server."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files import names
from beam_jobs.common.files.dicomweb import service
from beam_jobs.common.files.dicomweb.place import service_of
from beam_jobs.common.files.local import LocalBytes
from beam_jobs.common.files.names import name_below
from beam_jobs.common.files.sources import ByteSource, known

SERVICE = "dicomweb+https://pacs.example/dicom-web"
ROOT = f"{SERVICE}?PatientID=Doe&StudyDescription=a/b.zip!/c"
FILE = f"{SERVICE}/studies/1.2/series/1.3/instances/1.4"


class Stub:
    """A service that holds one instance."""

    def __init__(self, instance: Path) -> None:
        self.instance = instance
        self.opened: list[tuple[str, int]] = []

    def listing(self, root: str) -> files.Listing:
        return files.Listing([files.Entry(FILE, None, 7)], {"SR": 2})

    def holds_files(self, root: str) -> bool:
        return True

    def open_source(self, path: str) -> ByteSource:
        entry = known.entries.get(path)
        self.opened.append((path, entry.stamp if entry else 0))
        if path != FILE:
            raise FileNotFoundError(2, "no such instance", path)
        return LocalBytes(str(self.instance))

    def stat(self, path: str) -> files.Status | None:
        return files.Status(9, 5) if path == FILE else None


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    (tmp_path / "1.4.dcm").write_bytes(b"an object")
    made = Stub(tmp_path / "1.4.dcm")
    for name in ("listing", "holds_files", "open_source", "stat"):
        monkeypatch.setattr(service, name, getattr(made, name))
    return made


@pytest.mark.parametrize(
    "root",
    [
        *(SERVICE, f"{SERVICE}/", ROOT, f"{SERVICE}/?Modality=MR", FILE),
        *(f"{SERVICE}/studies/1.2", f"{SERVICE}/studies/1.2/series/1.3?Modality=MR"),
    ],
)
def test_an_instance_has_one_name_by_whatever_search(root: str) -> None:
    assert service_of(root) == SERVICE
    assert name_below(root, FILE) == "studies/1.2/series/1.3/instances/1.4"
    assert name_below(root, files.join(root, ".")).endswith(".")
    assert "Doe" not in files.join(root, ".")
    assert "Doe" not in files.logical_root(root, FILE)


def test_a_service_whose_path_looks_like_one_below_it_keeps_it() -> None:
    assert (
        service_of("dicomweb+https://h/studies/web?Modality=MR") == "dicomweb+https://h/studies/web"
    )


def test_terms_are_no_archive_and_slashes_before_them_go() -> None:
    assert files.trimmed(f"{SERVICE}//?PatientID=a/") == f"{SERVICE}?PatientID=a/"
    assert names.split_member(ROOT) is None
    assert not names.is_archive(f"{SERVICE}?StudyDescription=x.zip")
    assert files.is_remote(ROOT)
    assert files.is_dicomweb(PurePosixPath(SERVICE))
    assert not files.is_dicomweb("https://pacs.example/dicom-web")


@pytest.mark.parametrize(
    ("root", "local"),
    [
        (f"{SERVICE}?PatientID=@ids.txt", True),
        (f"{SERVICE}?Modality=MR&StudyInstanceUID=%40ids.txt", True),
        (f"{SERVICE}?PatientID=a@b", False),
        ("ids?PatientID=@ids.txt", False),
    ],
)
def test_a_file_of_ids_is_seen_in_a_search(root: str, local: bool) -> None:
    assert files.names_local_file(root) is local


@pytest.mark.parametrize(
    "root",
    [
        "dicomweb+https://me:canary@pacs.example/web",
        "dicomweb+https://me:can/ary@pacs.example/web?Modality=MR",
        "dicomweb+https:/me:canary@pacs.example/web",
        "dicomweb+ftp://me:canary@pacs.example/web",
        f"{SERVICE}#canary",
        "dicomweb+https://",
        "dicomweb+https:///web",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(root: str) -> None:
    for refused in (files.trimmed, files.require_writable, names.require_written):
        with pytest.raises(UsageError) as error:
            refused(root)
        assert "canary" not in str(error.value)
        assert "ary@" not in str(error.value)


def test_everything_that_reads_reads_an_instance(stub: Stub) -> None:
    assert files.listing(ROOT) == ([files.Entry(FILE, None, 7)], {"SR": 2})
    assert [entry.path for entry in files.entries(ROOT)] == [FILE]
    assert files.holds_files(ROOT)
    assert files.exists(ROOT)
    assert files.is_dir(ROOT)
    assert not files.is_dir(FILE)
    assert files.size(FILE) == 9
    assert files.read(FILE) == b"an object"
    assert files.read_range(FILE, 3, 3) == b"obj"
    with files.open_read(FILE) as stream:
        assert stream.read() == b"an object"
        assert stream.seek(-6, os.SEEK_END) == 3


def test_a_file_of_a_service_can_be_copied(stub: Stub, tmp_path: Path) -> None:
    files.copy(FILE, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"an object"


def test_what_a_listing_says_is_known_when_an_instance_is_opened(stub: Stub) -> None:
    with (
        files.fetched_ahead([files.Entry(FILE, None, 7)], 64),
        files.open_bytes(FILE) as source,
    ):
        assert source.read_at(0, 2) == b"an"
    with files.open_bytes(FILE) as source:
        assert source.size == 9
    assert stub.opened == [(FILE, 7), (FILE, 0)]


def test_nothing_is_written_to_a_service(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for write in (
        lambda: files.write(FILE, b""),
        lambda: files.write_new(FILE, b""),
        lambda: files.open_write(FILE),
        lambda: files.copy(tmp_path / "x", FILE),
        lambda: files.replace(FILE, tmp_path / "y"),
        lambda: files.replace(tmp_path / "x", FILE),
        lambda: files.delete([FILE]),
        lambda: files.mirrored(SERVICE).__enter__(),
    ):
        with pytest.raises(UsageError, match="can be read, not written to"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.4.dcm", "x"]


def test_a_service_has_no_directories_of_files(stub: Stub) -> None:
    for look in (files.names, files.tree, lambda root: files.fetched(root).__enter__()):
        with pytest.raises(UsageError, match="holds no files but DICOM") as error:
            look(ROOT)
        assert "Doe" not in str(error.value)
