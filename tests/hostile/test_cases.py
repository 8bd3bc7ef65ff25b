"""Whatever is put before a command, it ends in time, in one line, and touches nobody's files.

The cases stand in the modules `cases_*`. `python -m tests.hostile` runs them as well, and writes
the table of the documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.cases import Case, collected, run
from tests.hostile.made import Made
from tests.hostile.zygote import Zygotes


@pytest.fixture(scope="module")
def zygotes() -> Iterator[Zygotes]:
    with Zygotes() as zygotes:
        yield zygotes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, zygotes: Zygotes) -> Made:
    return Made(tmp_path_factory.mktemp("made"), zygotes)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.id, marks=[] if case.quick else [pytest.mark.slow])
        for case in collected()
    ],
)
def test_case(case: Case, tmp_path: Path, made: Made, zygotes: Zygotes) -> None:
    outcome, faults = run(case, tmp_path / "case", made, zygotes)
    assert not faults, f"{faults}\n{outcome}"
