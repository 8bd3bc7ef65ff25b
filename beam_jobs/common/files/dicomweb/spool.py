"""Where series that were fetched lie on this machine, until their user removes them.

    SPOOL/3f2a91c0d4e5f607/          a service, by the hash of its address
      1.2.840…/1.2.840…/             a study, and a series of it
        1.2.840….dcm                 an instance, as it came
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
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from beam_jobs.common.files import scratch
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb.address import SeriesAddress, is_uid
from beam_jobs.common.files.local import LocalBytes

VARIABLE = "VOXELBEAM_SPOOL"

_LISTED, _PARTS, _MARKER, _LOCK = "listed.json", "parts.jsonl", "series.json", "lock"
_POLL_S = 0.05
_BLOCK_BYTES = 1 << 20


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


class Kept(NamedTuple):
    """An instance in the spool.

    Attributes:
      size: in bytes.
      digest: SHA-256 of its bytes, hexadecimal.
    """

    size: int
    digest: str

    @property
    def stamp(self) -> int:
        """A number for its content, whenever it was fetched: 56 bits, as a listing's."""
        return int(self.digest[:14], 16) or 1


class Complete(NamedTuple):
    """What the marker of a series says.

    Attributes:
      stamps: of listings that this is the content of; the first is that of its own.
      kept: SOP Instance UID → instance.
      refused: SOP Instance UID → why the service does not hand it out.
    """

    stamps: tuple[int, ...]
    kept: dict[str, Kept]
    refused: dict[str, str]


class SpooledBytes(LocalBytes):
    """A file of the spool; `modified` tells its content, not when it was fetched."""

    __slots__ = ("_at",)

    def __init__(self, path: str, stamp: int) -> None:
        super().__init__(path)
        self._at = self.modified
        self.modified = stamp

    @property
    def is_changed(self) -> bool:
        status = os.fstat(self.descriptor)
        return (status.st_size, status.st_mtime_ns) != (self.size, self._at)


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

    def file(self, uid: str) -> str:
        """Where an instance lies."""
        return os.path.join(self.directory, f"{uid}.dcm")

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
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        status = os.stat(self.root)
        if status.st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "is another user's")
        if status.st_mode & 0o077:
            os.chmod(self.root, 0o700)
        os.makedirs(self.directory, mode=0o700, exist_ok=True)

    def listed(self) -> Listed | None:
        """What the last listing on this machine said, None where there was none."""
        found = _read_json(os.path.join(self.directory, _LISTED))
        with contextlib.suppress(KeyError, TypeError, ValueError):
            uids = tuple(uid for uid in found["uids"] if is_uid(uid))
            return Listed(int(found["stamp"]), uids, int(found["unlisted"]))
        return None

    def list(self, listed: Listed) -> None:
        """Notes what a listing says, and forgets what the service refused: it is asked again."""
        with self.writing():
            self._make()
            self._write(_LISTED, json.dumps(listed._asdict()))
        complete = self.complete()
        if complete is not None and complete.refused:
            with self.locked():
                self._reopen(complete)

    def forget(self) -> None:
        """Makes the series one that was never fetched."""
        if os.path.isdir(self.directory):
            with self.locked(), self.writing():
                self._clear()

    def _clear(self) -> None:
        self._unlink(_MARKER)
        self._unlink(_PARTS)
        for name in os.listdir(self.directory):
            if name.endswith((".dcm", ".part")):
                self._unlink(name)

    def _reopen(self, complete: Complete) -> None:
        """Makes a complete series one that lacks what was refused."""
        lines = [json.dumps({"stamp": complete.stamps[0]})]
        lines += [_line(uid, kept) for uid, kept in complete.kept.items()]
        with self.writing():
            self._write(_PARTS, "".join(f"{line}\n" for line in lines))
            self._unlink(_MARKER)

    def unmark(self) -> None:
        """Makes the series one that is not complete."""
        with self.writing():
            self._unlink(_MARKER)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, name))

    def complete(self) -> Complete | None:
        """What the marker says, None where the series is not complete."""
        path = os.path.join(self.directory, _MARKER)
        try:
            status = os.stat(path)
        except OSError:
            _markers.pop(path, None)
            return None
        state = status.st_ino, status.st_mtime_ns, status.st_size
        known = _markers.get(path)
        if known is None or known[0] != state:
            known = state, _complete_of(_read_json(path))
            if len(_markers) >= _MOST_MARKERS:
                _markers.clear()
            _markers[path] = known
        return known[1]

    def open(self, uid: str, kept: Kept) -> SpooledBytes | None:
        """An instance of a complete series; None where its file is not as the marker says."""
        try:
            source = SpooledBytes(self.file(uid), kept.stamp)
        except OSError:
            return None
        if source.size != kept.size:
            source.close()
            return None
        return source

    def finish(self, complete: Complete) -> None:
        """Writes the marker; the series is complete."""
        with self.writing():
            content = {
                "stamps": list(complete.stamps),
                "kept": {uid: list(kept) for uid, kept in complete.kept.items()},
                "refused": complete.refused,
            }
            self._write(_MARKER, json.dumps(content))
            self._unlink(_PARTS)

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(self.directory, name)
        temporary = f"{path}.{uuid.uuid4().hex[:12]}.part"
        with open(temporary, "x", encoding="ascii") as stream:
            stream.write(text)
        os.replace(temporary, path)


# Marker's path → (its state, what it says): every file that is opened looks at one.
_markers: dict[str, tuple[tuple[int, int, int], Complete | None]] = {}
_MOST_MARKERS = 256


class Journal:
    """Which instances of a series are whole, written as they come: a killed fetch goes on from it.

    Args:
      series: that is being fetched, by who holds its lock.
      stamp: of the listing; what was fetched under another is forgotten.

    Attributes:
      kept: SOP Instance UID → instance.
    """

    def __init__(self, series: Spooled, stamp: int) -> None:
        self.kept: dict[str, Kept] = {}
        self._series = series
        path = os.path.join(series.directory, _PARTS)
        with series.writing():
            found = _read_lines(path)
            if found and found[0] == {"stamp": stamp}:
                self._take(found[1:])
            self._file = open(f"{path}.part", "w", encoding="ascii")  # noqa: SIM115
            self._file.write(json.dumps({"stamp": stamp}) + "\n")
            for uid, kept in self.kept.items():
                self._note(uid, kept)
            self._file.flush()
            os.replace(f"{path}.part", path)
            for name in os.listdir(series.directory):
                stale = name.endswith(".dcm") and name[:-4] not in self.kept
                if stale or name.endswith(".dcm.part"):
                    series._unlink(name)

    def _take(self, lines: list[Any]) -> None:
        """Believes what is proven by the files: a power cut loses the end of any of them."""
        for line in lines:
            with contextlib.suppress(KeyError, TypeError, ValueError, OSError):
                uid, kept = line["uid"], Kept(int(line["size"]), str(line["digest"]))
                if is_uid(uid) and digest_of(self._series.file(uid)) == kept:
                    self.kept[uid] = kept

    def _note(self, uid: str, kept: Kept) -> None:
        self._file.write(f"{_line(uid, kept)}\n")

    def add(self, uid: str, kept: Kept) -> None:
        """Notes an instance that lies in its place."""
        self.kept[uid] = kept
        with self._series.writing():
            self._note(uid, kept)

    def drop(self, uid: str) -> None:
        """Forgets an instance; nobody who reads the journal later believes its file."""
        del self.kept[uid]
        with self._series.writing():
            self._file.flush()
            self._series._unlink(f"{uid}.dcm")

    def close(self) -> None:
        """Closes the file, which stays."""
        with self._series.writing():
            self._file.close()


def _line(uid: str, kept: Kept) -> str:
    return json.dumps({"uid": uid, "size": kept.size, "digest": kept.digest})


def digest_of(path: str) -> Kept:
    """Size and digest of a file."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return Kept(os.fstat(stream.fileno()).st_size, digest)


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


def _read_lines(path: str) -> list[Any]:
    """The lines of a journal, up to the first that was not written whole."""
    found = []
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as stream:
        for line in stream:
            found.append(json.loads(line))
    return found


def _complete_of(found: Any) -> Complete | None:
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        kept = {
            str(uid): Kept(int(size), str(digest)) for uid, (size, digest) in found["kept"].items()
        }
        refused = {str(uid): str(why) for uid, why in found["refused"].items()}
        return Complete(tuple(map(int, found["stamps"])), kept, refused)
    return None
