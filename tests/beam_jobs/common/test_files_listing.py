"""All that lies below a root is either read or counted, and what cannot be listed is not lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from beam_jobs.common.files import interface as files
from tests.archives import SUFFIXES, make, some, unpacked

NAMES = (
    *("a.dcm", "b/1.dcm", "b/2.dcm", "DICOMDIR", "c/dicomdir", "b/Thumbs.db", "b/.hidden"),
    *(".DS_Store", ".git/x", ".git/objects/y", "b/.cache/.z", "DICOMDIR.d/image"),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in NAMES:
        files.write(tmp_path / "tree" / name, b"x")
    return tmp_path / "tree"


def found_by_find(root: Path) -> int:
    command = ["find", str(root), "(", "-type", "f", "-o", "-type", "l", ")", "-print0"]
    return subprocess.run(command, capture_output=True, check=True).stdout.count(b"\0")


def total(root: Path) -> int:
    found = files.listing(root)
    return len(found.entries) + sum(found.left_out.values())


def refusal(path: str) -> str:
    with pytest.raises(OSError) as found, files.open_bytes(path):
        pass
    return found.value.strerror or ""


def test_what_is_read_and_what_is_not_are_all_that_find_lists(tree: Path) -> None:
    found = files.listing(tree)
    read = ["DICOMDIR.d/image", "a.dcm", "b/1.dcm", "b/2.dcm"]
    assert [entry.path.removeprefix(f"{tree}/") for entry in found.entries] == read
    assert found.left_out == {"hidden": 5, "DICOMDIR": 2, "Thumbs.db": 1}
    assert total(tree) == found_by_find(tree) == len(NAMES)
    assert [entry.path for entry in found.entries] == [e.path for e in files.entries(tree)]


def test_links_to_files_and_dangling_ones_are_files_and_no_directory_is_counted_twice(
    tree: Path, tmp_path: Path
) -> None:
    (tree / "link.dcm").symlink_to("a.dcm")
    (tree / "dangling").symlink_to(tmp_path / "gone")
    (tree / "itself").symlink_to("itself")
    (tree / ".hidden link").symlink_to(tmp_path)
    assert total(tree) == found_by_find(tree) == len(NAMES) + 4
    assert refusal(f"{tree}/dangling").startswith("a link to a file that is not there (git-annex")
    assert refusal(f"{tree}/itself") == os.strerror(40)
    # Links to directories stand for what is behind them, once, wherever they lead.
    (tree / "up").symlink_to(tree)
    (tree / "into hidden").symlink_to(tree / ".git")
    assert total(tree) == len(NAMES) + 4
    assert f"{tree}/into hidden/objects/y" in [entry.path for entry in files.entries(tree)]


def test_a_hidden_directory_may_be_as_deep_as_it_likes(tmp_path: Path) -> None:
    deep = tmp_path / "tree" / ".hidden"
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1_200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("x", os.O_CREAT, dir_fd=here))
    os.close(here)
    found = files.listing(tmp_path / "tree").left_out
    subprocess.run(["rm", "-r", str(tmp_path / "tree")], check=True)  # too deep for shutil.rmtree
    assert found == {"hidden": 1}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_counts_what_its_directory_does(tmp_path: Path, suffix: str) -> None:
    members = some() | {"train/.cache/deep/a": b"x", "train/Thumbs.db": b"x"}
    archive = make(tmp_path / "packed" / f"export{suffix}", members)
    directory = unpacked(tmp_path / "plain", members)
    left_out = files.listing(archive).left_out
    assert left_out == files.listing(directory).left_out
    assert left_out == {"hidden": 2, "DICOMDIR": 1, "Thumbs.db": 1}
    assert files.listing(tmp_path / "packed").left_out == left_out


class Refusing:
    """`os.scandir`, which some directories refuse."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: dict[Path, OSError]) -> None:
        self.refused = {str(path): error for path, error in refused.items()}
        self.scandir = os.scandir
        monkeypatch.setattr(os, "scandir", self)

    def __call__(self, path: str) -> object:
        if error := self.refused.get(str(path).rstrip("/")):
            raise error
        return self.scandir(path)


def test_a_directory_that_cannot_be_listed_is_an_entry_that_says_why(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Refusing(
        monkeypatch,
        {
            tree / "b": PermissionError(13, "Permission denied"),
            tree / "c": FileNotFoundError(2, "No such file or directory"),
            tree / ".git": PermissionError(13, "Permission denied"),
        },
    )
    found = files.listing(tree)
    names = [entry.path.removeprefix(f"{tree}/") for entry in found.entries]
    assert names == ["DICOMDIR.d/image", "a.dcm", "b/", "c/"]
    assert found.left_out == {"hidden": 2, "DICOMDIR": 1}  # .DS_Store, and one for .git
    assert refusal(f"{tree}/b/") == "the directory cannot be listed: Permission denied"
    assert refusal(f"{tree}/c/").endswith("No such file or directory")
    assert files.stat(f"{tree}/b/") is None
    monkeypatch.undo()
    assert refusal(f"{tree}/b/") == "the directory could not be listed"


def test_an_error_half_way_keeps_what_was_listed_before(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    class Breaking:
        def __init__(self, path: str) -> None:
            self.found = scandir(path)
            self.breaks = path.endswith("/b")

        def __enter__(self) -> Breaking:
            return self

        def __exit__(self, *_: object) -> None:
            self.found.close()

        def __iter__(self) -> Breaking:
            return self

        def __next__(self) -> os.DirEntry[str]:
            entry = next(self.found)
            if self.breaks and entry.name == "2.dcm":
                raise OSError(5, "Input/output error")
            return entry

    monkeypatch.setattr(os, "scandir", Breaking)
    names = {entry.path.removeprefix(f"{tree}/") for entry in files.entries(tree)}
    assert "b/" in names
    assert "b/2.dcm" not in names


def test_a_root_that_cannot_be_listed_is_an_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Refusing(monkeypatch, {tree: PermissionError(13, "Permission denied")})
    with pytest.raises(PermissionError):
        files.listing(tree)


@pytest.mark.parametrize(
    ("root", "path", "logical"),
    [
        ("d/x", "d/x/a", "d/x"),
        ("d/x/", "d/x/a", "d/x"),
        (".", "./a", "."),
        ("/", "/a", ""),
        ("d/x.zip", "d/x.zip!/a", "d/x"),
        ("d/x.zip", "d/x.zip/a", "d/x.zip"),
        ("d/x.zip!/", "d/x.zip!/a", "d/x"),
        ("d/x.zip!/b", "d/x.zip!/b/a", "d/x/b"),
        ("s3://bucket/x/", "s3://bucket/x/a", "s3://bucket/x"),
    ],
)
def test_a_roots_logical_path_begins_those_of_its_files(root: str, path: str, logical: str) -> None:
    assert files.logical_root(root, path) == logical
    assert files.logical(path) == f"{logical}/a"
