"""What every test starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from beam_jobs.common import cli
from beam_jobs.common.files import interface as files
from tests import stores


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
