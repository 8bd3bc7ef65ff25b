"""Paths that lead nowhere, or to something else: for every option that names what to read."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.hostile.cases import Case
from tests.hostile.commands import COMMANDS, Command
from tests.hostile.sandbox import Sandbox

_ESCAPES = "\x1b]0;title\x07\x1b[2J\u202e\r\n[bold]"


def _loop(sandbox: Sandbox) -> Path:
    path = sandbox.path("input/loop")
    path.symlink_to("loop")
    return path


def _directory(sandbox: Sandbox) -> Path:
    path = sandbox.path("input/empty")
    path.mkdir()
    return path


def _socket(sandbox: Sandbox) -> Path:
    path = sandbox.path("input/socket")
    with socket.socket(socket.AF_UNIX) as server:
        # The whole path may be too long for an address.
        folder = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    return path


# What holds for files and directories alike.
_PATHS: dict[str, Callable[[Sandbox], object]] = {
    "nowhere": lambda sandbox: sandbox.path("input/nowhere"),
    "a name of escape sequences": lambda sandbox: sandbox.path(f"input/{_ESCAPES}"),
    "a name that is no UTF-8": lambda sandbox: "\udcff\udc80.csv",
    "an empty name": lambda sandbox: "",
    "a closed port": lambda sandbox: "http://127.0.0.1:9/x",
}
_FILES: dict[str, Callable[[Sandbox], object]] = {
    **_PATHS,
    "a directory": _directory,
    "an empty file": lambda sandbox: sandbox.write("input/f", b""),
    "random bytes": lambda sandbox: sandbox.write("input/f", random.Random(0).randbytes(100_000)),
    "UTF-16": lambda sandbox: sandbox.write("input/f", "a,b\n1,2\n".encode("utf-16")),
    "a quote that never ends": lambda sandbox: sandbox.write("input/f", 'a,b\n"' + "x" * 300_000),
    "a field of 5 MB": lambda sandbox: sandbox.write("input/f", "a,b\n" + "x" * 5_000_000 + ",1"),
    "escape sequences": lambda sandbox: sandbox.write("input/f", f"{_ESCAPES},b\n1,{_ESCAPES}\n"),
    "JSON of 100 kB of brackets": lambda sandbox: sandbox.write("input/f", "[" * 100_000),
}
_DIRECTORIES: dict[str, Callable[[Sandbox], object]] = {
    **_PATHS,
    "a name of 300 letters": lambda sandbox: "x" * 300,
    "a link to itself": _loop,
    "a file": lambda sandbox: sandbox.write("input/f", "no directory"),
    "an empty directory": _directory,
    "a socket": _socket,
}


def _line(
    sandbox: Sandbox, *, command: Command, option: str, make: Callable[[Sandbox], object]
) -> list[str]:
    return command.line(sandbox, {option: make(sandbox)})


def _of(
    subject: str,
    command: Command,
    options: tuple[str, ...],
    kinds: dict[str, Callable[..., object]],
) -> Iterator[Case]:
    for option in options:
        for kind, make in kinds.items():
            yield Case(
                attack="a path to nothing of use",
                subject=subject,
                name=f"{option} {kind}",
                make=partial(_line, command=command, option=option, make=make),
                quick=(subject, option, kind) == ("survey", "", "a name of escape sequences"),
            )


def _renamed(sandbox: Sandbox, *, command: Command) -> list[str]:
    """A command that would succeed, but for the name of the directory that its input lies in."""
    line, root = command.line(sandbox, {}), sandbox.path("input")
    sandbox.path("work/.input").mkdir()
    root.rename(sandbox.path("work/.input/\udcff\udcfe"))
    sandbox.path("work/.input").rename(root)
    return [word.replace(f"{root}/", f"{root}/\udcff\udcfe/") for word in line]


def _under_a_name() -> Iterator[Case]:
    for subject, command in COMMANDS.items():
        if command.directories or command.files:
            yield Case(
                attack="sound input in a directory whose name is no UTF-8",
                subject=subject,
                make=partial(_renamed, command=command),
                timeout=300 if subject == "tune" else 120,
            )


CASES = [
    case
    for subject, command in COMMANDS.items()
    for options, kinds in ((command.files, _FILES), (command.directories, _DIRECTORIES))
    for case in _of(subject, command, options, kinds)
] + list(_under_a_name())
