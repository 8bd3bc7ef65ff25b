"""How workers on this machine report progress: files they append to.

An engine runs work again whose worker died or whose bundle failed, and that notes it again. So a
note says what was done, and readers count each such thing once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import struct

from beam_jobs.common.files import interface as files

# A key's digest, and how many units it stands for: as long for every key, so that whoever reads
# amid the writing knows where a record ends.
_RECORD = struct.Struct("<8sQ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ticks:
    """Local files that grow with the work; "" where workers are elsewhere.

    Attributes:
      files: a record for each chunk of files whose headers were read.
      planned: a record for each patient that will be converted.
      patients: a record for each patient done.
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


def tick(path: str, *keys: str, count: int = 1) -> None:
    """Notes in `path` that what the keys name is done, `count` units each.

    Args:
      path: one of `Ticks`' files; "" notes nothing.
      keys: the same whenever the same work is done again.
      count: units that each key stands for, also the same then.
    """
    _append(path, b"".join(_RECORD.pack(_digest(key), count) for key in keys))


def note(path: str, line: str) -> None:
    """Appends a line to `path`."""
    _append(path, f"{line}\n".encode())


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest()


def _append(path: str, data: bytes) -> None:
    """Appends at once, so that several processes may write one file."""
    # The files go when the command is interrupted; its threads may still tick.
    if path and data and os.path.isdir(os.path.dirname(path)):
        with (
            contextlib.suppress(FileNotFoundError),
            files.refused(path),
            open(path, "ab", buffering=0) as file,
        ):
            file.write(data)


class Units:
    """How many units `tick` noted in a file, each key counted once.

    Args:
      path: the file; it need not be there yet.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = 0
        self._seen: set[bytes] = set()
        self._units = 0

    def done(self) -> int:
        """The units so far; of the file only what was appended since the last call is read."""
        if not (self._path and os.path.exists(self._path)):
            return self._units
        with open(self._path, "rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: len(data) // _RECORD.size * _RECORD.size]
        self._read += len(data)
        for key, count in _RECORD.iter_unpack(data):
            if key not in self._seen:
                self._seen.add(key)
                self._units += count
        return self._units


def lines(path: str) -> list[str]:
    """The lines noted so far."""
    if not (path and os.path.exists(path)):
        return []
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()
