"""Outputs that are somebody else's, or no place to write to: for every command that writes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS, Command
from tests.hostile.sandbox import CODES, Sandbox

_ESCAPES = "\x1b]0;title\x07\x1b[2J\u202e\r\n[bold]"


def _fifo(sandbox: Sandbox) -> Path:
    os.mkfifo(sandbox.output)
    return sandbox.output


def _foreign(sandbox: Sandbox) -> Path:
    return sandbox.write("work/output/thesis.docx", "years of work").parent


def _half(sandbox: Sandbox) -> Path:
    """A directory that calls itself finished and is not of the command's making."""
    for name in ("manifest.json", "run.json", "assets/contract.json", "study.json"):
        sandbox.write(f"work/output/{name}", "{}")
    return sandbox.output


def _linked(sandbox: Sandbox) -> Path:
    """A link to other people's directory."""
    sandbox.path("work/elsewhere").symlink_to("neighbour")
    return sandbox.path("work/elsewhere")


_ADDED = r"(metrics\.json|report\.html|saliency\.(json|html)|[^/]+\.nii\.gz)"
# TensorFlow is told where their outputs are to lie, and takes UTF-8 alone.
_TENSORFLOWS = ("train", "tune", "export")


def _nowhere(name: str) -> bool:
    return False


# What is named, and whether a file there is the user's to overwrite by naming it.
_PLACES: dict[str, Callable[[Sandbox], object]] = {
    "another's directory": lambda sandbox: sandbox.work / "neighbour",
    "a link to another's directory": _linked,
    "a directory of another's files": _foreign,
    "a directory that says it is finished": _half,
    "below a file": lambda sandbox: sandbox.work / "letter.txt" / "there",
    "a named pipe": _fifo,
    "a name of escape sequences": lambda sandbox: sandbox.output / _ESCAPES,
    "a name that is no UTF-8": lambda sandbox: f"{sandbox.output}/\udcff\udcfe",
    "a path of 5000 letters": lambda sandbox: f"{sandbox.output}/{'x/' * 2500}",
    "an empty name": lambda sandbox: "",
    "the root": lambda sandbox: "/",
    "a store that does not exist": lambda sandbox: "foo://bar/baz",
    "the input": lambda sandbox: sandbox.path("input"),
    "in the input": lambda sandbox: sandbox.path("input/out"),
}
_FOR_DIRECTORIES: dict[str, Callable[[Sandbox], object]] = {
    "a file": lambda sandbox: sandbox.work / "letter.txt",
}
_OVERWRITE: dict[str, Callable[[Sandbox], object]] = {
    "another's directory, --overwrite": lambda sandbox: sandbox.work / "neighbour",
    "a directory of another's files, --overwrite": _foreign,
    "the directory it stands in, --overwrite": lambda sandbox: ".",
    "the directory above, --overwrite": lambda sandbox: "..",
    "the input, --overwrite": lambda sandbox: sandbox.path("input"),
}


def _line(
    sandbox: Sandbox, *, command: Command, place: Callable[[Sandbox], object], more: list[str]
) -> list[str]:
    assert command.output is not None
    return [*command.line(sandbox, {command.output: place(sandbox)}), *more]


def _cases() -> Iterator[Case]:
    for subject, command in COMMANDS.items():
        if command.output is None:
            continue
        kinds = dict(_PLACES)
        if not command.output_is_file:
            kinds |= _FOR_DIRECTORIES
        replaces = subject in ("convert", "train", "baseline", "export")
        kinds |= _OVERWRITE if replaces else {}
        if subject == "convert":
            kinds["in the input"] = lambda sandbox: sandbox.path("input/cohort/train/out")
        if subject == "phantoms":  # has none
            del kinds["in the input"], kinds["the input"]
        for kind, place in kinds.items():
            more = ["--overwrite"] if kind.endswith("--overwrite") else []
            inside = kind in ("in the input", "the input") and subject != "convert"
            adds = subject in ("evaluate", "saliency") and kind.endswith("another's directory")
            yield Case(
                attack="an output that is no place to write to",
                subject=subject,
                name=kind,
                make=partial(_line, command=command, place=place, more=more),
                codes=(2,) if subject in _TENSORFLOWS and kind.endswith("UTF-8") else CODES,
                # A table or a report may stand beside what is there, and replaces nothing.
                may_add=_in_input if inside else _in_neighbour if adds else _nowhere,
                quick=(subject, kind) == ("phantoms", "a directory of another's files"),
            )


def _in_neighbour(name: str) -> bool:
    """Pages and maps, directly in it; cases of paths try what bears their names already."""
    return re.fullmatch(rf"work/neighbour/{_ADDED}", name) is not None


def _in_input(name: str) -> bool:
    return re.fullmatch(rf"input/(out|out/.*|{_ADDED})", name, re.DOTALL) is not None


CASES = list(_cases())
