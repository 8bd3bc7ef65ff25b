"""How workers on this machine report progress: files they append to."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from beam_jobs.common.files import interface as files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ticks:
    """Local files that grow with the work; "" where workers are elsewhere.

    Attributes:
      files: a byte for each file whose header was read.
      planned: a byte for each patient that will be converted.
      patients: a byte for each patient done.
      shards: a line for each shard done: its name, and why it was converted.
    """

    files: str = ""
    planned: str = ""
    patients: str = ""
    shards: str = ""

    @classmethod
    def below(cls, directory: str) -> Ticks:
        """Tick files in a local directory."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: os.path.join(directory, name) for name in names})


def tick(path: str, count: int) -> None:
    """Notes in `path` that `count` more units are done."""
    _append(path, b"." * count)


def note(path: str, line: str) -> None:
    """Appends a line to `path`."""
    _append(path, f"{line}\n".encode())


def _append(path: str, data: bytes) -> None:
    """Appends at once, so that several processes may write one file."""
    # The files go when the command is interrupted; its threads may still tick.
    if path and os.path.isdir(os.path.dirname(path)):
        with (
            contextlib.suppress(FileNotFoundError),
            files.refused(path),
            open(path, "ab", buffering=0) as file,
        ):
            file.write(data)


def count(path: str) -> int:
    """How many units are done."""
    return os.path.getsize(path) if path and os.path.exists(path) else 0


def lines(path: str) -> list[str]:
    """The lines noted so far."""
    if not (path and os.path.exists(path)):
        return []
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()
