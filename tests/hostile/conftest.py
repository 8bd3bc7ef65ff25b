"""The zygotes and the sound inputs, started and made once for all tests of the room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.made import Made
from tests.hostile.zygote import Zygotes


@pytest.fixture(scope="package")
def zygotes() -> Iterator[Zygotes]:
    with Zygotes() as zygotes:
        yield zygotes


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory, zygotes: Zygotes) -> Made:
    return Made(tmp_path_factory.mktemp("made"), zygotes)
