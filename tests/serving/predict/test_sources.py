"""Patterns of shards: what they name, on disks as in stores."""

from pathlib import Path

import pytest

from serving.predict.sources import is_pattern, matching

NAMES = (
    "a/fold-0-00000-of-00002.tfrecord",
    "a/fold-0-00001-of-00002.tfrecord",
    "a/unlabelled-00000-of-00001.tfrecord",
    "a/manifest.json",
    "b[1]/fold-0-00000-of-00001.tfrecord",
    "b[1]/deep/fold-0-00000-of-00001.tfrecord",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/*.tfrecord", NAMES[:3]),
        ("a/fold-0-0000[1-9]-*", NAMES[1:2]),
        ("a/fold-?-00000-of-00002.tfrecord", NAMES[:1]),
        ("b[1]/*.tfrecord", NAMES[4:5]),
        ("*/fold-0-00000-*.tfrecord", (NAMES[0], NAMES[4])),
        ("*/deep/*", NAMES[5:]),
        (NAMES[2], NAMES[2:3]),
        ("a/fold-7-*.tfrecord", ()),
        ("nowhere/*.tfrecord", ()),
    ],
)
def test_a_pattern_names_files_part_by_part(
    place: Path, pattern: str, found: tuple[str, ...]
) -> None:
    absolute = matching(str(place / pattern))
    assert absolute == [str(place / name) for name in found]
    assert [str(Path(path)) for path in matching(pattern)] == list(found)


def test_a_directory_whose_name_holds_a_bracket_is_no_pattern(place: Path) -> None:
    assert not is_pattern(str(place / "b[1]"))
    assert is_pattern("b[1]/*.tfrecord")
