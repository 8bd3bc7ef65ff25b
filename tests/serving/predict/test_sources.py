"""What an input is: patterns of shards, on disks as in stores; archives behind web servers."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.predict.sources import Source, find_source, is_pattern, matching
from tests.archives import make
from tests.serving.model.test_contract import contract

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


def test_an_archive_behind_a_web_server_is_dicom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "test.zip", {"00001/T1w/1.dcm": b"1"})
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        path = f"http://127.0.0.1:{server.server_address[1]}/test.zip"
        found = find_source(path, contract(), model="model")
        server.shutdown()
    assert found == Source(dicom=path, schema=contract().schema)
