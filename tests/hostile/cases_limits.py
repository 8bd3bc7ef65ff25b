"""A limit to the size of files, as a quota has it: told in one line, and no half stays."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS
from tests.hostile.sandbox import Sandbox
from tests.hostile.zygote import Outcome


def _too_large(outcome: Outcome, sandbox: Sandbox) -> Iterable[str]:
    if outcome.code == 1 and "File too large" not in outcome.stderr:
        yield "not told"
    yield from (str(path) for path in sandbox.work.rglob("*") if path.suffix == ".part")


CASES = [
    Case(
        attack="a limit to the size of files",
        subject=subject,
        make=partial(command.line, changes={}),
        codes=(0, 1),
        expect=_too_large,
        # CPython leaves halves of compiled modules where they do not fit.
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        limits={"RLIMIT_FSIZE": 20_000},
        may_change=lambda name: name.startswith("work/output"),
    )
    for subject, command in COMMANDS.items()
    # A dataset stands when its report does not fit, and a search's trials are processes.
    if command.output and subject not in ("convert", "tune")
]
