"""Signals of processes that are started here, and what the system says of them."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path


def heed_signals() -> None:
    """What a shell lets its background ignore, or `nohup`, is not ignored here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def slowdown(pid: int) -> float:
    """`Outcome.slowdown` of a process until now; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        ran, waited, _ = map(int, Path(f"/proc/{pid}/schedstat").read_text().split())
        return (ran + waited) / ran if ran else 0.0
    return 0.0


def session(leader: int) -> dict[int, str]:
    """Processes of a session that live, and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[3] == str(leader) and fields[0] != "Z":
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = line.decode(errors="replace")[:200]
        except (OSError, IndexError, ValueError):
            continue
    return found
