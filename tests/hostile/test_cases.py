"""Whatever is put before a command, it ends in time, in one line, and touches nobody's files.

The cases stand in the modules `cases_*`. `python -m tests.hostile` runs them as well, and writes
the table of the documentation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.cases import Case, collected, run
from tests.hostile.made import Made
from tests.hostile.zygote import Zygotes


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
