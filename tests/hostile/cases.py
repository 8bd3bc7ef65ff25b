"""What a case is, where cases are found, and how one is run."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import tests.hostile
from beam_jobs.common.console import PROG, VERBS
from tests.hostile.made import Made
from tests.hostile.sandbox import CODES, Sandbox, faults
from tests.hostile.zygote import CONSOLE, Outcome, Zygotes

MODULES = {PROG: CONSOLE, **{verb: module for verb, (module, _) in VERBS.items()}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One attack on one command.

    Attributes:
      attack: what kind it is, a phrase for the table.
      subject: the command, by its verb of `voxelbeam`, or "voxelbeam" itself.
      name: what tells it from others of its attack and subject.
      make: puts what is needed into a sandbox, and gives the command's arguments.
      codes: the exit codes it may end with.
      expect: what else must hold: faults, none where all is well.
      may_change: whether a path below the sandbox, besides its output, may differ afterwards.
      may_add: whether one that was not there may be.
      env: additions to the environment.
      limits: resource limits by name.
      terminal: whether it writes to a terminal.
      timeout: seconds it may take on a busy machine.
      quick: whether it is part of `make test`.
    """

    attack: str
    subject: str
    name: str = ""
    make: Callable[[Sandbox], Sequence[object]]
    codes: tuple[int, ...] = CODES
    expect: Callable[[Outcome, Sandbox], Iterable[str]] = lambda outcome, sandbox: ()
    may_change: Callable[[str], bool] = lambda name: False
    may_add: Callable[[str], bool] = lambda name: False
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    terminal: bool = False
    timeout: float = 120.0
    quick: bool = False

    def __post_init__(self) -> None:
        if self.subject not in MODULES:
            raise ValueError(f"{self.subject!r} is no command: {', '.join(MODULES)}")

    @property
    def id(self) -> str:
        """Attack, subject and name, as pytest shows them."""
        text = "-".join(part for part in (self.subject, self.attack, self.name) if part)
        return re.sub(r"[^\w.,=+-]+", "_", text, flags=re.ASCII)[:120]


def collected() -> list[Case]:
    """The cases of every module `cases_*` beside this one.

    Raises:
      ValueError: two have one id.
    """
    found: dict[str, Case] = {}
    for module in sorted(
        info.name
        for info in pkgutil.iter_modules(tests.hostile.__path__)
        if info.name.startswith("cases_")
    ):
        for case in importlib.import_module(f"tests.hostile.{module}").CASES:
            if case.id in found:
                raise ValueError(f"{module} has a second case {case.id}")
            found[case.id] = case
    return list(found.values())


def run(case: Case, directory: Path, made: Made, zygotes: Zygotes) -> tuple[Outcome, list[str]]:
    """Runs a case in a new directory, which is removed when all held.

    Returns:
      How it ended, and what did not hold.
    """
    directory.mkdir()
    sandbox = Sandbox(root=directory, made=made)
    arguments = case.make(sandbox)
    before = sandbox.snapshot()
    module = MODULES[case.subject]
    outcome = zygotes.of(module).run(
        module,
        list(map(str, arguments)),
        cwd=sandbox.work,
        env=sandbox.environment(case.env),
        streams=sandbox.path("streams"),
        timeout=case.timeout,
        limits=case.limits,
        terminal=case.terminal,
    )
    found = [
        *faults(
            outcome,
            sandbox,
            before,
            codes=case.codes,
            may_change=case.may_change,
            may_add=case.may_add,
            terminal=case.terminal,
            says_no=case.subject in ("check", "doctor"),
        ),
        *case.expect(outcome, sandbox),
    ]
    if not found:
        remove(directory)
    return outcome, found


def remove(directory: Path) -> None:
    """Removes a case's directory, whatever modes it gave its own."""
    for folder in sorted(directory.rglob("*")):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)
