"""Directories that are local while they are used, and lie in a store before and afterwards."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from tests.stores import Emulator

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.filterwarnings("ignore"),  # moto's own
]

DELETE = {"s3": "POST", "gs": "DELETE", "az": "POST"}  # in batches, where there are any


def there(store: Emulator, root: str) -> dict[str, str]:
    prefix = root.removeprefix(store.path(""))
    return {name: store.get(f"{prefix}/{name}").decode() for name in store.names(prefix)}


def test_a_local_directory_is_its_own_mirror(tmp_path: Path) -> None:
    with files.mirrored(tmp_path / "run") as run:
        assert run.local == tmp_path / "run"
        run.push()
    with files.fetched(tmp_path / "run") as model:
        assert model == tmp_path / "run"
    assert not (tmp_path / "run").exists()


def test_a_mirror_brings_new_changed_and_deleted_files(store: Emulator, root: str) -> None:
    files.write(files.join(root, "others"), b"stays")
    with files.mirrored(root) as run:
        assert run.local.is_dir()
        assert list(run.local.iterdir()) == []
        (run.local / "logs").mkdir()
        (run.local / "logs" / "events").write_text("1")
        (run.local / "config.json").write_text("{}")
        run.push()
        assert there(store, root) == {"config.json": "{}", "logs/events": "1", "others": "stays"}
        store.front.requests.clear()
        (run.local / "logs" / "events").write_text("12")
        (run.local / "config.json").unlink()
        run.push()
        assert [one.method for one in store.front.requests] == [DELETE[store.scheme], "PUT"]
        run.push()
        assert len(store.front.requests) == 2
        kept = run.local
    assert there(store, root) == {"logs/events": "12", "others": "stays"}
    assert not kept.exists()


@pytest.mark.parametrize("clock", ["goes on", "went back before the markers"])
def test_what_was_written_last_arrives_last(store: Emulator, root: str, clock: str) -> None:
    names = [
        "fold-0/network.keras",
        "z.csv",
        "a.txt",
        "fold-0/result.json",
        "metrics.json",
        "run.json",
    ]
    with files.mirrored(root) as run:
        for place, name in enumerate(names):
            time = place if clock == "goes on" or place < 3 else place - 1000
            path = run.local / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(name)
            os.utime(path, (time, time))
        store.front.requests.clear()
    arrived = [one.path.partition("root-")[2].partition("/")[2] for one in store.front.requests]
    assert arrived == names


def test_a_file_that_replaced_one_of_its_size_and_time_is_sent(store: Emulator, root: str) -> None:
    with files.mirrored(root) as run:
        for content in ("1", "2"):
            files.write_text(run.local / "state.npz", content)
            os.utime(run.local / "state.npz", (0, 0))  # a clock that went back
            run.push()
        assert there(store, root) == {"state.npz": "2"}


def test_a_marker_does_not_arrive_where_what_it_marks_does_not(store: Emulator, root: str) -> None:
    store.front.fault = lambda method, path: 403 if path.endswith("model.keras") else None
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(files.mirrored(root))
        for time, name in enumerate(("model.keras", "run.json")):
            (run.local / name).write_text(name)
            os.utime(run.local / name, (time, time))
        with pytest.raises(files.StoreError, match="keras: access denied"):
            stack.close()
    assert there(store, root) == {}


def test_a_resumed_mirror_begins_with_what_is_there_and_sends_only_changes(
    store: Emulator, root: str
) -> None:
    large = os.urandom(9 << 20)
    files.write(files.join(root, "fold-0/.state"), b"half")
    files.write(files.join(root, "large"), large)
    with files.mirrored(root, resume=True) as run:
        assert (run.local / "fold-0" / ".state").read_text() == "half"
        assert (run.local / "large").read_bytes() == large
        (run.local / "fold-0" / ".state").write_text("done")
        (run.local / "large").unlink()
        store.front.requests.clear()
    assert [one.method for one in store.front.requests] == [DELETE[store.scheme], "PUT"]
    assert there(store, root) == {"fold-0/.state": "done"}


def test_what_an_error_leaves_is_in_the_store_too(store: Emulator, root: str) -> None:
    with contextlib.suppress(KeyError), files.mirrored(root) as run:
        (run.local / "state").write_text("half")
        raise KeyError
    assert there(store, root) == {"state": "half"}


def test_who_lost_the_lock_of_a_place_pushes_nothing(store: Emulator, root: str) -> None:
    files.write(files.join(root, "state"), b"the other's")
    with contextlib.suppress(files.LockedError), files.mirrored(root) as run:
        (run.local / "state").write_text("mine")
        raise files.LockedError("another process trains this run")
    assert there(store, root) == {"state": "the other's"}


def test_fetched_is_a_directory_a_file_or_nothing(store: Emulator, root: str) -> None:
    files.write(files.join(root, "model/variables/a"), b"1")
    files.write(files.join(root, "model.keras"), b"2")
    with files.fetched(files.join(root, "model")) as model:
        assert (model / "variables" / "a").read_text() == "1"
    assert not model.exists()
    with files.fetched(files.join(root, "model.keras")) as model:
        assert (model.name, model.read_text()) == ("model.keras", "2")
    with (
        pytest.raises(FileNotFoundError, match="no such object or bucket"),
        files.fetched(files.join(root, "nothing")),
    ):
        pass


@pytest.mark.parametrize("path", ["https://host/run", "run.zip!/x"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(path: str) -> None:
    with pytest.raises(UsageError, match="not written to"), files.mirrored(path):
        pass


def test_an_archive_is_not_unpacked_to_a_disk() -> None:
    with pytest.raises(UsageError, match="has to be unpacked first"), files.fetched("run.zip"):
        pass
