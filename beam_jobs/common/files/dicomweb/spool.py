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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from beam_jobs.common.files import scratch
from beam_jobs.common.files.clients import StoreError
from beam_jobs.common.files.dicomweb.address import SeriesAddress, is_uid
from beam_jobs.common.files.dicomweb.pack import Arriving, Kept, SpooledBytes, digest_of, kept_of

VARIABLE = "VOXELBEAM_SPOOL"

PACK = ".pack"
_PACK_NAME = re.compile(r"[0-9a-f]{12}\.pack")
_LISTED, _PARTS, _MARKER, _LOCK = "listed.json", "parts.jsonl", "series.json", "lock"
_POLL_S = 0.05
_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 64 << 10


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
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        status = os.stat(self.root)
        if status.st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "is another user's")
        if status.st_mode & 0o077:
            os.chmod(self.root, 0o700)
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
            self._unlink(name)
            os.close(descriptor)

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
        for name in os.listdir(self.directory):
            if name in (_MARKER, _PARTS) or name.endswith((PACK, ".part")):
                self._unlink(name)

    def _reopen(self, complete: Complete) -> None:
        """Makes a complete series one that lacks what was refused."""
        lines = [json.dumps({"pack": complete.pack, "stamp": complete.stamps[0]})]
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

    def open(self, complete: Complete, uid: str) -> SpooledBytes | None:
        """An instance of a complete series; None where the pack is not as the marker says."""
        try:
            return SpooledBytes(self.file(complete.pack), complete.kept[uid])
        except OSError:
            return None

    def finish(self, complete: Complete) -> None:
        """Writes the marker; the series is complete."""
        with self.writing():
            content = {
                "pack": complete.pack,
                "stamps": list(complete.stamps),
                "kept": {uid: list(kept) for uid, kept in complete.kept.items()},
                "refused": complete.refused,
            }
            self._write(_MARKER, json.dumps(content))
            self._unlink(_PARTS)
            for name in os.listdir(self.directory):
                if name.endswith(PACK) and name != complete.pack:
                    self._unlink(name)  # whoever has it open still reads it

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
    """A series' pack as it is written, and which of its instances are whole.

    They are noted as they come, so that a killed fetch goes on from there.

    Args:
      series: that is being fetched, by who holds its lock.
      stamp: of the listing; what was fetched under another is forgotten.

    Attributes:
      pack: name of the pack.
      kept: SOP Instance UID → instance.
    """

    def __init__(self, series: Spooled, stamp: int) -> None:
        self.pack = f"{uuid.uuid4().hex[:12]}{PACK}"
        self.kept: dict[str, Kept] = {}
        self._series = series
        self._end = 0
        path = series.file(_PARTS)
        with series.writing():
            found = _read_lines(path)
            if found and found[0].get("stamp") == stamp:
                self._take(str(found[0].get("pack")), found[1:])
            for name in os.listdir(series.directory):
                if name.endswith((PACK, ".part")) and name != self.pack:
                    series._unlink(name)
            lines = [json.dumps({"pack": self.pack, "stamp": stamp})]
            lines += [_line(uid, kept) for uid, kept in self.kept.items()]
            series._write(_PARTS, "".join(f"{line}\n" for line in lines))
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._pack = os.open(series.file(self.pack), flags, 0o600)
            self._notes = open(path, "a", buffering=1, encoding="ascii")  # noqa: SIM115

    def _take(self, pack: str, lines: list[Any]) -> None:
        """Believes what is proven by the pack: a power cut loses the end of any file."""
        path = self._series.file(pack)
        if not (_PACK_NAME.fullmatch(pack) and os.path.isfile(path)):
            return
        self.pack = pack
        with open(path, "rb", buffering=0) as stream:
            last = {str(line.get("uid")): line for line in lines if isinstance(line, dict)}
            for uid, line in last.items():
                with contextlib.suppress(KeyError, ValueError):  # dropped, or damaged
                    kept = kept_of(line["start"], line["size"], line["digest"])
                    if is_uid(uid) and digest_of(stream.fileno(), kept) == kept.digest:
                        self.kept[uid] = kept
                        self._end = max(self._end, kept.start + kept.size)

    def begin(self) -> Arriving:
        """An instance that arrives now, behind all that are kept; the one before is done with."""
        return Arriving(self._series.writing, self._pack, self._end)

    def keep(self, uid: str, kept: Kept) -> None:
        """Notes that an instance is whole."""
        self.kept[uid] = kept
        self._end = max(self._end, kept.start + kept.size)
        with self._series.writing():
            self._notes.write(f"{_line(uid, kept)}\n")

    def drop(self, uid: str) -> None:
        """Forgets an instance; its bytes stay unused."""
        del self.kept[uid]
        with self._series.writing():
            self._notes.write(f"{_line(uid, Kept(0, 0, ''))}\n")

    def close(self) -> None:
        """Ends the writing; what is kept stays for the next try."""
        with contextlib.suppress(OSError):
            os.close(self._pack)
        with self._series.writing():
            self._notes.close()

    def cut(self) -> None:
        """Takes from the pack's end what is not kept."""
        with self._series.writing():
            os.ftruncate(self._pack, self._end)


def _line(uid: str, kept: Kept) -> str:
    return json.dumps({"uid": uid, **kept._asdict()})


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
        kept = {str(uid): kept_of(*values) for uid, values in found["kept"].items()}
        refused = {str(uid): str(why) for uid, why in found["refused"].items()}
        pack = str(found["pack"])
        if _PACK_NAME.fullmatch(pack) and found["stamps"]:
            return Complete(pack, tuple(map(int, found["stamps"])), kept, refused)
    return None
