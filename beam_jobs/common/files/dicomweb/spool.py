"""Where series that were fetched lie on this machine, until their user removes them.

    SPOOL/3f2a91c0d4e5f607/          a service, by the hash of its address
      1.2.840…/1.2.840…/             a study, and a series of it
        3f2a91c0d4e5.pack            its instances, one file after the other, as they came
        listed.json                  what the last listing said of the series
        parts.jsonl                  which instances are whole, while it is being fetched
        series.json                  the same when it is complete: written last
        lock                         held by whoever fetches it

SPOOL is `VOXELBEAM_SPOOL`, else a directory of the user's cache. No credential and no search term
is ever in it. It holds patients' images: nobody else may read it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from beam_jobs.common.files import local, scratch
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb.address import SeriesAddress, Service, is_uid
from beam_jobs.common.files.dicomweb.pack import Kept, SpooledBytes, crc_of, kept_of, line_of

VARIABLE = "VOXELBEAM_SPOOL"

PACK = ".pack"
PACK_NAME = re.compile(r"[0-9a-f]{12}\.pack")
_LISTED, PARTS, _MARKER, _LOCK = "listed.json", "parts.jsonl", "series.json", "lock"
_POLL_S = 0.05

_Said = TypeVar("_Said")


class Listed(NamedTuple):
    """What a listing said of a series.

    Attributes:
      stamp: changes when its instances do.
      uids: SOP Instance UIDs.
      unlisted: how many more it has, of which the service says no UID.
    """

    stamp: int
    uids: tuple[str, ...]
    unlisted: int = 0


class Complete(NamedTuple):
    """What the marker of a series says.

    Attributes:
      pack: name of the file that holds its instances.
      stamps: of listings that this is the content of; the first is that of its own.
      kept: SOP Instance UID → instance.
      refused: SOP Instance UID → why the service does not hand it out.
    """

    pack: str
    stamps: tuple[int, ...]
    kept: dict[str, Kept]
    refused: dict[str, str]


def place() -> str:
    """The spool's directory, by the environment; it need not be there."""
    if given := os.environ.get(VARIABLE):
        return os.path.abspath(os.path.expanduser(given))
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for base in (cache, scratch.temporary_directory()):
        if os.path.isabs(base) and _can_be_made(base):
            own = "voxelbeam" if base == cache else f"voxelbeam-{os.getuid()}"
            return os.path.join(base, own, "dicomweb")
    return os.path.join(scratch.temporary_directory(), f"voxelbeam-{os.getuid()}", "dicomweb")


def markers(service: Service) -> dict[str, tuple[int, int]]:
    """Marker of each complete series of a service → what tells it from the next one there."""
    found = {}
    for directory, _, names in os.walk(os.path.join(place(), service.key)):
        if _MARKER in names:
            path = os.path.join(directory, _MARKER)
            with contextlib.suppress(OSError):
                status = os.stat(path)
                found[path] = status.st_ino, status.st_mtime_ns
    return found


def fetched_since(service: Service, before: Mapping[str, tuple[int, int]]) -> tuple[int, int, int]:
    """(series, instances, bytes) that were fetched since `markers` gave `before`."""
    series = instances = size = 0
    for path, state in markers(service).items():
        complete = None if before.get(path) == state else _complete_of(_read_json(path))
        if complete is not None:
            series, instances = series + 1, instances + len(complete.kept)
            size += sum(kept.size for kept in complete.kept.values())
    return series, instances, size


def _can_be_made(directory: str) -> bool:
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    return os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK)


class Spooled:
    """A series' directory in the spool.

    Attributes:
      address: of the series.
      directory: its own.
    """

    def __init__(self, address: SeriesAddress) -> None:
        assert is_uid(address.study)
        assert is_uid(address.series)
        self.address = address
        self.root = place()
        self.directory = os.path.join(self.root, address.service.key, address.study, address.series)

    def file(self, name: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.directory, name)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What is written in the block; the disk's refusals end the command, for they are no
        fault of an image's.

        Raises:
          StoreError: with the number's text and the spool's name.
        """
        try:
            yield
        except OSError as error:
            why = error.strerror or str(error)
            raise StoreError(
                f"the spool {self.root}: {why} (--spool or {VARIABLE} names another place)"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The series is this thread's alone for the time of the block, on this machine.

        Raises:
          StoreError: the spool cannot be written to, or is another user's.
        """
        with self.writing():
            self._make()
            lock = os.open(
                os.path.join(self.directory, _LOCK),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
        try:
            with self.writing():
                _wait(lock)
            yield
        finally:
            with contextlib.suppress(OSError):  # said aloud, for a forked child has it too
                fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _make(self) -> None:
        """Makes the directories. What the spool lies in stays as it is: it may be anybody's."""
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        own = os.path.join(self.root, self.address.service.key)
        with contextlib.suppress(FileExistsError):
            os.mkdir(own, mode=0o700)
        status = os.lstat(own)
        if status.st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "is another user's")
        if status.st_mode & 0o077:
            os.chmod(own, 0o700)
        os.makedirs(self.directory, mode=0o700, exist_ok=True)

    @contextmanager
    def temporary(self) -> Iterator[int]:
        """Descriptor of a file for the time of the block."""
        name = f"{uuid.uuid4().hex[:12]}.part"
        with self.writing():
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self.file(name), flags, 0o600)
        try:
            yield descriptor
        finally:
            self.unlink(name)
            os.close(descriptor)

    def listed(self) -> Listed | None:
        """What the last listing on this machine said, None where there was none."""
        return self._remembered(_LISTED, _listed_of)

    def list(self, listed: Listed) -> None:
        """Notes what a listing says, and forgets what the service refused: it is asked again."""
        with self.writing():
            self._make()
            self.write(_LISTED, json.dumps(listed._asdict()))
        complete = self.complete()
        if complete is not None and complete.refused:
            with self.locked():
                self._reopen(complete)

    def forget(self) -> bool:
        """Makes the series one that was never fetched; whether anything of it was there."""
        if not os.path.isdir(self.directory):
            return False
        with self.locked(), self.writing():
            found = [name for name in os.listdir(self.directory) if name.endswith(PACK)]
            self._clear()
        return bool(found)

    def _clear(self) -> None:
        for name in os.listdir(self.directory):
            if name in (_MARKER, PARTS) or name.endswith((PACK, ".part")):
                self.unlink(name)

    def _reopen(self, complete: Complete) -> None:
        """Makes a complete series one that lacks what was refused."""
        lines = [json.dumps({"pack": complete.pack, "stamp": complete.stamps[0]})]
        lines += [line_of(uid, kept) for uid, kept in complete.kept.items()]
        with self.writing():
            self.write(PARTS, "".join(f"{line}\n" for line in lines))
            self.unlink(_MARKER)

    def unmark(self) -> None:
        """Makes the series one that is not complete."""
        with self.writing():
            self.unlink(_MARKER)

    def unlink(self, name: str) -> None:
        """Removes one of its files, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, name))

    def complete(self) -> Complete | None:
        """What the marker says, None where the series is not complete."""
        return self._remembered(_MARKER, _complete_of)

    def _remembered(self, name: str, parse: Callable[[Any], _Said]) -> _Said | None:
        """What a file of JSON says, read again only where it is another file by now."""
        path = os.path.join(self.directory, name)
        try:
            status = os.stat(path)
        except OSError:
            _read.pop(path, None)
            return None
        state = status.st_ino, status.st_mtime_ns, status.st_size
        known = _read.get(path)
        if known is None or known[0] != state:
            known = state, parse(_read_json(path))
            if len(_read) >= _MOST_READ:
                _read.clear()
            _read[path] = known
        said: _Said | None = known[1]
        return said

    def open(self, complete: Complete, uid: str, *, proven: bool = False) -> SpooledBytes | None:
        """An instance of a complete series; None where the pack is not as the marker says.

        Args:
          complete: what the marker says.
          uid: of the instance.
          proven: hold its bytes against their CRC-32C, once a process: disks fail, and a power cut
            loses what was written last.
        """
        pack, kept = self.file(complete.pack), complete.kept[uid]
        try:
            source = SpooledBytes(pack, kept)
        except OSError:
            return None
        if not proven or (pack, uid) in _proven:
            return source
        if crc_of(source.descriptor, kept) != kept.crc:
            source.close()
            return None
        if len(_proven) >= _MOST_PROVEN:
            _proven.clear()
        _proven.add((pack, uid))
        return source

    def finish(self, complete: Complete) -> None:
        """Writes the marker; the series is complete."""
        with self.writing():
            content = {
                "pack": complete.pack,
                "stamps": list(complete.stamps),
                "kept": {uid: list(kept) for uid, kept in complete.kept.items()},
                "refused": complete.refused,
            }
            self.write(_MARKER, json.dumps(content))
            self.unlink(PARTS)
            for name in os.listdir(self.directory):
                if name.endswith(PACK) and name != complete.pack:
                    self.unlink(name)  # whoever has it open still reads it

    def write(self, name: str, text: str) -> None:
        """Writes one of its files whole."""
        local.write(self.file(name), text.encode("ascii"))


# A file's path → (its state, what it says): every instance that is opened looks at two.
_read: dict[str, tuple[tuple[int, int, int], Any]] = {}
_MOST_READ = 512


# (path of a pack, SOP Instance UID) of what was held against its CRC-32C.
_proven: set[tuple[str, str]] = set()
_MOST_PROVEN = 100_000


def _wait(lock: int) -> None:
    """Takes the lock, when whoever has it is done or dead."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_POLL_S)


def _read_json(path: str) -> Any:
    """What a file of the spool says, None where it is not there or no JSON."""
    try:
        with open(path, encoding="ascii") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def _listed_of(found: Any) -> Listed | None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        uids = tuple(uid for uid in found["uids"] if is_uid(uid))
        return Listed(int(found["stamp"]), uids, int(found["unlisted"]))
    return None


def _complete_of(found: Any) -> Complete | None:
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        kept = {str(uid): kept_of(*values) for uid, values in found["kept"].items()}
        refused = {str(uid): str(why) for uid, why in found["refused"].items()}
        pack = str(found["pack"])
        if PACK_NAME.fullmatch(pack) and found["stamps"]:
            return Complete(pack, tuple(map(int, found["stamps"])), kept, refused)
    return None
