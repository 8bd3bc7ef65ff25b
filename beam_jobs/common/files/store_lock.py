"""A lock in a store: an object that is made unless there is one, and kept fresh by a heartbeat.

    process 42 on trainer-0 since 2026-11-26 12:00:00 UTC, 3f2a91c0    its holder, and a token
    8d1c… pid:[4026531836]                                             its machine: boot, namespace
    17                                                                 its last heartbeat

A killed holder leaves the object behind. On its own machine that shows at once; anywhere else it
does when the object has not changed for `LEASE_S`, by this process's clock alone.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import objects

HEARTBEAT_S = 20.0
LEASE_S = 90.0  # four heartbeats may fail
_POLL_S = 2.0
_JOIN_S = 5.0  # a heartbeat that is on its way meets a condition that no longer holds
_GONE = b"it has just ended"
_HOLDER = re.compile(r"process (\d+) on (\S+) since ")


class LockedError(CommandError):
    """Another job holds the lock; the message says who."""


class StoreLock:
    """A lock that this process holds, until it is released or taken from it."""

    _held: ClassVar[set[str]] = set()  # tokens of this process

    def __init__(self, path: str, message: str) -> None:
        self._path, self._message = path, message
        self._token = f"{owner()}, {uuid.uuid4().hex[:8]}"
        self._beats = 0
        self._lost = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def require(self) -> None:
        """Refuses to work on where the lock was taken from this process: it had been silent.

        Raises:
          LockedError: another job holds it now.
        """
        if self._lost:
            raise LockedError(held(self._message, _read(self._path)))

    def take(self, *, break_lock: bool, wait: bool) -> None:
        """Takes the lock, or says who holds it.

        Args:
          break_lock: take it from whoever holds it.
          wait: find out whether its holder still works, which takes up to `LEASE_S`.

        Raises:
          LockedError: another holds it.
        """
        content = self._content()
        taken = objects.put_new(self._path, content)
        holder = b"" if taken else _read(self._path)
        if not taken and (
            break_lock or self._is_dead(holder) or (wait and self._is_silent(holder))
        ):
            # Of two who see that, one gets it.
            taken = self._take_over(holder, content)
        if not taken:
            raise LockedError(held(self._message, _read(self._path)))
        self._held.add(self._token)
        self._thread.start()

    def release(self) -> None:
        """Removes the object; another's, who took it over, stays."""
        self._released.set()
        self._thread.join(_JOIN_S)
        self._held.discard(self._token)
        with suppress(CommandError, OSError):  # one that cannot be looked at now stays too
            if self._is_own(_read(self._path)):
                objects.delete([self._path])

    def _take_over(self, holder: bytes, content: bytes) -> bool:
        """Replaces a holder's object, though its heartbeat comes between; never another's."""
        found = holder
        while found != _GONE and _first_line(found) == _first_line(holder):
            if objects.put_over(self._path, content, found):
                return True
            found = _read(self._path)
        return objects.put_new(self._path, content)

    def _content(self) -> bytes:
        return f"{self._token}\n{_machine()}\n{self._beats}\n".encode()

    def _is_own(self, holder: bytes) -> bool:
        return holder.startswith(f"{self._token}\n".encode())

    def _is_dead(self, holder: bytes) -> bool:
        """Whether the holder is a process of this machine that is no more."""
        line, machine, *_ = [*holder.decode(errors="replace").splitlines(), "", ""]
        found = _HOLDER.match(line)
        if found is None or machine != _machine() or found[2] != socket.gethostname():
            return False
        if int(found[1]) == os.getpid():
            return line not in self._held
        try:
            os.kill(int(found[1]), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False

    def _is_silent(self, holder: bytes) -> bool:
        """Whether the object stays as it is, or goes, while a heartbeat would change it."""
        found, deadline = holder, time.monotonic() + LEASE_S
        while found != _GONE and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            found = _read(self._path)
            if found not in (holder, _GONE):
                return False
        return True

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            with suppress(CommandError, OSError):  # the next one may get through
                self._beats += 1
                holder = _read(self._path)
                # Over the very content that is its own: another's may come between.
                if not (
                    self._is_own(holder) and objects.put_over(self._path, self._content(), holder)
                ):
                    self._lost = not self._is_own(_read(self._path))
                    if self._lost:
                        return


@contextmanager
def store_lock(
    path: str, message: str, *, break_lock: bool, wait: bool, hint: str
) -> Iterator[StoreLock]:
    """Holds a store's lock for the time of the block; `lock.lock` says what the arguments are."""
    lock = StoreLock(path, message)
    try:
        lock.take(break_lock=break_lock, wait=wait)
    except LockedError as error:
        raise LockedError(f"{error}{hint}") from error
    try:
        yield lock
    finally:
        lock.release()


def held(message: str, holder: bytes) -> str:
    """The message for one who does not get a lock, with its holder."""
    line = _first_line(holder)
    return f"{message} ({line or 'it has just begun'})"


def _first_line(holder: bytes) -> str:
    return holder.decode(errors="replace").partition("\n")[0].strip()


def owner() -> str:
    """Who holds what this process locks."""
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} since {started} UTC"


def _machine() -> str:
    """Within what a process id means one process: this boot and this process namespace."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as stream:
        return f"{stream.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    return f"unknown {uuid.uuid4()}"


def _read(path: str) -> bytes:
    with suppress(FileNotFoundError):
        return objects.read(path, 0, objects.COMPARED_BYTES).data
    return _GONE
