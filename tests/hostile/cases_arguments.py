"""Arguments that no command should fall over: of every command, each kind of nonsense."""

from __future__ import annotations

from tests.hostile.cases import MODULES, Case

_NOWHERE = "\x1b[2Jnowhere\u202e\n"

CASES = [
    Case(
        attack="an option that does not exist",
        subject=subject,
        make=lambda sandbox: [f"--{_NOWHERE}"],
        codes=(2,),
        quick=subject in ("voxelbeam", "survey"),
    )
    for subject in MODULES
]
