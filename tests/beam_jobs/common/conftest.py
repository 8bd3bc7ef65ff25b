"""Stores emulated on this machine, one after the other, found by this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from beam_jobs.common.files import clients
from tests import azurite, stores
from tests.stores import Emulator

KINDS = {"s3": stores.s3, "gs": stores.gs, "az": azurite.az}
_number = itertools.count()


@pytest.fixture(
    scope="module",
    params=["s3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gs", "az"))],
)
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    with KINDS[request.param]() as running:
        yield running


@pytest.fixture
def store(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The emulator, without yesterday's requests, faults and delays; failing within seconds."""
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "RETRIES", 2)
    emulator.front.fault = lambda method, path: None
    emulator.front.delay = 0.0
    emulator.front.requests.clear()
    return emulator


@pytest.fixture
def root(store: Emulator) -> str:
    """A prefix of the store that nobody has used yet."""
    return store.path(f"root-{next(_number)}")
