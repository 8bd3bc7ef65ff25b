"""The machine: processors, memory, disks, and whose home it is, as far as this process may use it.

A container's share is less than the machine has, and most libraries see the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import pwd
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from beam_jobs.common.files import scratch
from trainer.machine.findings import GIB, Fault, Row, Section, gib

_LITTLE_DISK = GIB  # a warning's bound
_NO_DISK = 2**20  # a file system that is full may have some blocks left
# Command → what it is for; none is needed otherwise.
_COMMANDS = {"java": "Flink and Spark from here", "docker": "building images"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processors:
    """Those that this process may use.

    Attributes:
      machine: logical ones that there are.
      allowed: of these, by affinity.
      quota: how many a cgroup lets it use at a time on the average, None without a limit.
    """

    machine: int
    allowed: int
    quota: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """In bytes; None where the system does not say.

    Attributes:
      total: of the machine.
      available: of it, now.
      limit: of a cgroup, None without one.
      used: of that limit, caches that can be dropped not counted.
    """

    total: int | None
    available: int | None
    limit: int | None
    used: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A directory.

    Attributes:
      path: "" where there is none.
      free: bytes, None where the system does not say.
      writable: for this process.
    """

    path: str
    free: int | None
    writable: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Home:
    """Where libraries keep files of a user's.

    Attributes:
      path: what HOME says, else the user database's; "" where neither does.
      why: how it comes that there is none to write to, "" where there is one.
    """

    path: str
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """All of it.

    Attributes:
      python: its version, and where it is.
      platform: operating system and processor.
      commands: those of other programs that are on the PATH.
    """

    python: str
    platform: str
    processors: Processors
    memory: Memory
    here: Place
    temporary: Place
    home: Home
    commands: tuple[str, ...]


def measure(root: Path = Path("/")) -> System:
    """This machine.

    Args:
      root: above `proc` and `sys`.
    """
    return System(
        python=f"{platform.python_version()}, {sys.executable or 'of an unknown place'}",
        platform=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processors=Processors(
            machine=os.cpu_count() or 1, allowed=len(os.sched_getaffinity(0)), quota=_quota(root)
        ),
        memory=memory(root),
        here=_place("."),
        temporary=_temporary(),
        home=home(),
        commands=tuple(filter(shutil.which, _COMMANDS)),
    )


def home(environ: os._Environ[str] = os.environ) -> Home:
    """The user's home directory, as Python and with it most libraries find it."""
    path, why = environ.get("HOME", ""), ""
    if not path:
        try:
            path = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            why = f"HOME is not set, and user {os.getuid()} is not in the user database"
    if path and not os.path.isdir(path):
        why = f"{path} is no directory"
    elif path and not os.access(path, os.W_OK | os.X_OK):
        why = f"{path} cannot be written to"
    return Home(path=path, why=why)


def _place(path: str) -> Place:
    try:
        full = os.path.realpath(path, strict=True)
        free = shutil.disk_usage(full).free
    except OSError:  # a directory that was removed
        return Place(path="", free=None, writable=False)
    return Place(path=full, free=free, writable=os.access(full, os.W_OK | os.X_OK))


def _temporary() -> Place:
    try:
        found = scratch.temporary_directory()
    except OSError:
        return Place(path="", free=None, writable=False)
    # A command has a directory of its own there.
    return _place(os.path.dirname(found) if scratch.is_scratch(found) else found)


def memory(root: Path = Path("/")) -> Memory:
    """What the machine has, and what of it a container may use.

    Args:
      root: above `proc` and `sys`.
    """
    listed = {}
    for line in _text(root / "proc/meminfo").splitlines():
        words = line.split()
        with contextlib.suppress(IndexError, ValueError):
            listed[words[0].rstrip(":")] = int(words[1]) * 1024
    limit = used = None
    for directory in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            found = _number(directory / name)
            if found is not None and found < (listed.get("MemTotal") or math.inf):
                limit = int(min(found, limit or found))
                used = _used(directory) if limit == found else used
    return Memory(
        total=listed.get("MemTotal"), available=listed.get("MemAvailable"), limit=limit, used=used
    )


def _used(directory: Path) -> int | None:
    for name, droppable in (
        ("memory.current", "inactive_file"),
        ("memory.usage_in_bytes", "total_inactive_file"),
    ):
        if (found := _number(directory / name)) is not None:
            rows = dict(
                line.split(maxsplit=1) for line in _text(directory / "memory.stat").splitlines()
            )
            return max(0, int(found) - int(rows.get(droppable, 0)))
    return None


def _quota(root: Path) -> float | None:
    """Processors by CPU time: cgroup v2's cpu.max, v1's quota over its period."""
    found = []
    for directory in _cgroups(root, "cpu"):
        words = _text(directory / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            found.append(int(words[0]) / int(words[1]))
        quota = _number(directory / "cpu.cfs_quota_us")
        period = _number(directory / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            found.append(quota / period)
    return min(found) if found else None


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """This process's groups of a controller, from its own up: each may have a limit.

    A container that is shown the host's path has its own group at the top.
    """
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or (parts[1] and controller not in parts[1].split(",")):
            continue
        # Hierarchies of version 1 are mounted by controller, version 2's alone or beside them.
        mounts = [top / controller, top / parts[1]] if parts[1] else [top, top / "unified"]
        for mount in mounts:
            place = mount / parts[2].lstrip("/")
            while place != mount:
                yield place
                place = place.parent
            yield mount


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _number(path: Path) -> float | None:
    with contextlib.suppress(ValueError):  # "max", or nothing there
        return float(_text(path))
    return None


def section(system: System) -> Section:
    """The section of the machine."""
    faults = []
    temporary = _disk_row("temporary", system.temporary)
    if not system.temporary.writable:
        temporary = dataclasses.replace(temporary, mark="fault")
        faults.append(
            Fault(
                what="there is no directory for temporary files that can be written to",
                stops="whatever reads from or writes to a store, and most other commands",
                mend="set TMPDIR to a directory that you may write to",
            )
        )
    elif system.temporary.free is not None and system.temporary.free < _NO_DISK:
        temporary = dataclasses.replace(temporary, mark="fault")
        faults.append(
            Fault(
                what=f"the disk of {system.temporary.path}, for temporary files, is full",
                stops="whatever reads from or writes to a store, and most other commands",
                mend="remove files there, or set TMPDIR to a directory on another disk",
            )
        )
    rows = (
        Row(name="Python", text=system.python),
        Row(name="system", text=system.platform),
        _processors_row(system.processors),
        _memory_row(system.memory),
        _disk_row("here", system.here),
        temporary,
        _home_row(system.home),
        _commands_row(system.commands),
    )
    return Section(title="machine", rows=rows, faults=tuple(faults))


def _processors_row(found: Processors) -> Row:
    text = f"{found.allowed}"
    if found.allowed < found.machine:
        text += f" of {found.machine} (this process's affinity)"
    if found.quota is None or found.quota >= found.allowed:
        return Row(name="processors", text=text)
    return Row(
        name="processors",
        text=f"{text}, but the time of {found.quota:.3g} (a cgroup's quota): "
        f"--workers {max(1, round(found.quota))} suits better than a process for each",
        mark="note",
    )


def _memory_row(found: Memory) -> Row:
    if found.total is None:
        return Row(name="memory", text="the system does not say", mark="note")
    text = gib(found.total)
    if found.available is not None:
        text += f", {gib(found.available)} available"
    if found.limit is not None:
        used = "" if found.used is None else f", of which {gib(found.used)} are used"
        text += f"; a cgroup allows {gib(found.limit)}{used}"
    return Row(name="memory", text=text)


def _disk_row(name: str, found: Place) -> Row:
    if not found.path:
        what = "no directory" if name == "temporary" else "a directory that is gone"
        return Row(name=name, text=what, mark="note")
    free = "" if found.free is None else f", {gib(found.free)} free"
    little = found.free is not None and found.free < _LITTLE_DISK
    if not found.writable:
        return Row(name=name, text=f"{found.path}{free}, cannot be written to", mark="note")
    return Row(name=name, text=f"{found.path}{free}", mark="note" if little else "")


def _home_row(found: Home) -> Row:
    if not found.why:
        return Row(name="home", text=found.path)
    return Row(
        name="home",
        text=f"none: {found.why}. Nothing here needs one, but matplotlib looks for fonts anew in "
        "every process (MPLCONFIGDIR=DIR keeps them), and credentials in files are not found; "
        "HOME=DIR sets one",
        mark="note",
    )


def _commands_row(found: tuple[str, ...]) -> Row:
    absent = [f"no {name} ({use})" for name, use in _COMMANDS.items() if name not in found]
    return Row(name="commands", text=", ".join([*found, *absent]), mark="note" if absent else "")
