"""A spool of the test's own, no credentials of the developer's, and no long pauses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.common.files import clients
from beam_jobs.common.files.dicomweb import session
from tests.beam_jobs.common.dicomweb.pacs import Pacs, holdings, running


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("USERNAME", "PASSWORD", "TOKEN", "TOKEN_FILE"):
        monkeypatch.delenv(f"DICOMWEB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("VOXELBEAM_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(clients, "RETRY_S", 0.3)
    monkeypatch.setattr(session, "FIRST_PAUSE_S", 0.01)
    yield tmp_path / "spool"
    # What a test left under way ends by its patience and in its spool, not by the developer's.
    for thread in threading.enumerate():
        if thread.name.startswith("dicomweb"):
            thread.join(10)
    session.close()


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    with running(Pacs(holdings())) as server:
        yield server
