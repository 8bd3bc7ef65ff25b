"""What every test starts from."""

from __future__ import annotations

import pytest

from beam_jobs.common import cli


@pytest.fixture(autouse=True)
def _talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run in this process leaves `--quiet` behind, which in a process of its own ends."""
    monkeypatch.setattr(cli._Output, "quiet", False)
