"""Streams from and to the objects of a store, and begins fetched before they are asked for."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files_before.stores import (
    AT_ONCE,
    HEAD_BYTES,
    STREAM_BYTES,
    Entry,
    Upload,
    store_of,
)

_WINDOW = 2 * AT_ONCE  # objects fetched ahead


class _Writer(io.RawIOBase):
    """A stream that becomes the object when it is closed; not when its block is left by an error.

    A small object is one request.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._upload: Upload | None = None
        self._path = path
        self._store = store_of(path)
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._waiting += data
        while len(self._waiting) > STREAM_BYTES:
            self._upload = self._upload or self._store.upload(self._path)
            self._upload.send(bytes(self._waiting[:STREAM_BYTES]))
            del self._waiting[:STREAM_BYTES]
        return len(data)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._upload is None:
            self._store.put(self._path, bytes(self._waiting))
            return
        try:
            self._upload.send(bytes(self._waiting))
            self._upload.finish()
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        super().close()
        if self._upload is not None:
            with suppress(CommandError, OSError):
                self._upload.abandon()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self._abandon()
        self.close()

    def __del__(self) -> None:
        self._abandon()


class _Known(threading.local):
    """What this thread knows of objects before it opens them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.ahead: _Ahead | None = None


_known = _Known()


class _Ahead:
    """Begins of objects, fetched a few at a time before they are asked for, in a given order."""

    def __init__(self, wanted: Sequence[tuple[str, int]], pool: ThreadPoolExecutor) -> None:
        self._wanted = wanted
        self._order = {path: index for index, (path, _) in enumerate(wanted)}
        self._pool = pool
        self._fetched: dict[str, Future[bytes]] = {}
        self._sent = 0
        self._send(_WINDOW)

    def _send(self, end: int) -> None:
        for path, length in self._wanted[self._sent : end]:
            self._fetched[path] = self._pool.submit(store_of(path).read, path, 0, length)
        self._sent = max(self._sent, min(end, len(self._wanted)))

    def take(self, path: str) -> Future[bytes] | None:
        """An object's begin, which is forgotten, as are those that were passed over."""
        place = self._order.get(path)
        if place is None:
            return None
        for passed in [other for other in self._fetched if self._order[other] < place]:
            self._fetched.pop(passed).cancel()
        self._sent = max(self._sent, place)
        self._send(place + 1 + _WINDOW)
        return self._fetched.pop(path, None)


@contextmanager
def ahead(entries: Iterable[Entry], length: int) -> Iterator[None]:
    """For the time of the block, this thread finds the entries' first `length` bytes fetched.

    Args:
      entries: what will be opened, in that order; opening others, or in another order, costs time.
      length: how much of each; the listing's size and stamp are known with it.
    """
    remote = [entry for entry in entries if "://" in entry.path]
    if not remote:
        yield
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wanted = [(entry.path, min(length, entry.size or length)) for entry in remote]
        _known.entries = {entry.path: entry for entry in remote}
        _known.ahead = _Ahead(wanted, pool)
        try:
            yield
        finally:
            _known.entries, _known.ahead = {}, None
            pool.shutdown(wait=True, cancel_futures=True)


class StoreFile(io.RawIOBase):
    """An object open for reading at any place; opening costs no request.

    Attributes:
      stamp: of the listing it was found in, 0 without one.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = path
        self._store = store_of(path)
        entry = _known.entries.get(path)
        self.stamp = entry.stamp if entry else 0
        self._size = entry.size if entry else None
        self._at = 0
        self._block, self._start = b"", 0
        self._fetched = _known.ahead.take(path) if _known.ahead else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = 0 if whence == os.SEEK_SET else self._at
        if whence == os.SEEK_END:
            base = self._length()
        self._at = max(0, base + offset)
        return self._at

    def _length(self) -> int:
        self._take_fetched()
        if self._size is None:
            self._size = self._store.size(self.name)
        if self._size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.name)
        return self._size

    def _take_fetched(self) -> None:
        if self._fetched is not None:
            fetched, self._fetched = self._fetched, None
            self._block, self._start = fetched.result(), 0

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while part := self.read(STREAM_BYTES):
            parts.append(part)
        return b"".join(parts)

    def read(self, count: int | None = -1) -> bytes:
        if count is None or count < 0:
            return self.readall()
        self._take_fetched()
        if self._size is not None:
            count = min(count, self._size - self._at)
        if count <= 0:
            return b""
        begin = self._at - self._start
        if not 0 <= begin < len(self._block):
            asked = max(count, HEAD_BYTES)
            self._block, self._start, begin = b"", self._at, 0
            self._block = self._store.read(self.name, self._at, asked)
            if len(self._block) < asked:
                self._size = self._at + len(self._block)
        data = self._block[begin : begin + count]
        self._at += len(data)
        return data


def open_read(path: str) -> IO[bytes]:
    """An object as a stream, read from begin to end in large pieces."""
    stream: IO[bytes] = io.BufferedReader(StoreFile(path), buffer_size=STREAM_BYTES)
    return stream


def open_write(path: str) -> IO[bytes]:
    """A stream that becomes the object when it is closed."""
    return _Writer(path)  # type: ignore[return-value]
