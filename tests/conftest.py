"""What every test starts from."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from beam_jobs.common import cli
from beam_jobs.common.files import interface as files
from tests import stores

# As commands have it. JAX, which TensorFlow imports where it is installed, would set it to 1, which
# processes that tests start take for the user's wish to see all.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Whose fixtures serve a whole room: two workers would each make them.
_ROOMS = ("tests/hostile/", "tests/serving/")


# Collecting imports every library and makes thousands of tests, hardly any of it garbage: to look
# for some takes a third of the time. What is there then stays: later searches need not pass it.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on garbage is collected, of what tests make."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one worker together (`--dist loadscope`), and so do those of a room."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    scheduler = LoadScopeScheduling(config, log)
    file_of = scheduler._split_scope

    def scope_of(nodeid: str) -> Any:
        return next((room for room in _ROOMS if nodeid.startswith(room)), file_of(nodeid))

    scheduler._split_scope = scope_of
    return scheduler


@pytest.fixture(autouse=True)
def _talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run in this process leaves `--quiet` behind, which in a process of its own ends."""
    monkeypatch.setattr(cli._Output, "quiet", False)


@pytest.fixture(
    params=[
        "disk",
        *(
            pytest.param(kind, marks=(pytest.mark.emulator, pytest.mark.slow))
            for kind in ("s3", "gs")
        ),
    ]
)
def disk_or_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A directory on a disk, or in an emulated store that everybody in this process finds."""
    if request.param == "disk":
        yield str(tmp_path)
        return
    with getattr(stores, request.param)() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running.path("place")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[files.StrPath]:
    """What was opened through the layer for files to be read as a stream, in order."""
    paths: list[files.StrPath] = []
    open_read = files.open_read

    def noted(path: files.StrPath) -> IO[bytes]:
        paths.append(path)
        return open_read(path)

    monkeypatch.setattr(files, "open_read", noted)
    return paths


@pytest.fixture
def user_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], Path]]:
    """Writes a file of a user's own into a working directory; what it brought is forgotten."""
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    yield write
    own = []
    for name in set(sys.modules) - before:
        has = getattr(sys.modules[name], "__dict__", {})
        places = [has.get("__file__"), *(has.get("__path__") or ())]
        if any(str(path).startswith(str(tmp_path)) for path in places):
            own.append(name)
    for name in own:
        del sys.modules[name]
