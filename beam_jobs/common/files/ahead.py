"""Begins of files fetched before they are opened: without it each of a store is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

from beam_jobs.common.files.archives import archive as archives
from beam_jobs.common.files.archives.archive import Span
from beam_jobs.common.files.clients import AT_ONCE, client_of, pool
from beam_jobs.common.files.names import Entry, is_dicomweb, is_remote, split, split_member
from beam_jobs.common.files.objects import Piece, read_range
from beam_jobs.common.files.sources import known

_WINDOW = 2 * AT_ONCE  # requests sent ahead
_WINDOW_BYTES = 64 << 20
# Members of an archive that lie so close are one request of up to so many bytes.
_GAP_BYTES = 128 << 10
_RUN_BYTES = 2 << 20


class Wanted(NamedTuple):
    """What one request gives.

    Attributes:
      paths: of the files whose begins it gives.
      length: about how many bytes that are.
      fetch: the request; path → begin.
    """

    paths: tuple[str, ...]
    length: int
    fetch: Callable[[], Mapping[str, Piece]]


class _Ahead:
    """Requests sent a few at a time before their answers are needed, in a given order."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._wanted = wanted
        self._place = {path: i for i, one in enumerate(wanted) for path in one.paths}
        self._sent: dict[int, Future[Mapping[str, Piece]]] = {}
        self._next = 0
        self._send(0)

    def _send(self, place: int) -> None:
        length = sum(self._wanted[index].length for index in self._sent)
        while self._next < min(len(self._wanted), place + _WINDOW):
            length += self._wanted[self._next].length
            if length > _WINDOW_BYTES and self._sent:
                return
            self._sent[self._next] = pool().submit(self._wanted[self._next].fetch)
            self._next += 1

    def take(self, path: str) -> Callable[[], Piece] | None:
        """A file's begin, None where it is none of the wanted or was passed over already."""
        place = self._place.get(path)
        if place is None:
            return None
        for passed in [index for index in self._sent if index < place]:
            self._sent.pop(passed).cancel()
        self._next = max(self._next, place)
        self._send(place)
        sent = self._sent.get(place)
        if sent is None:
            return None
        if path == self._wanted[place].paths[-1]:
            del self._sent[place]
        return lambda: sent.result()[path]

    def close(self) -> None:
        for sent in self._sent.values():
            sent.cancel()


@contextmanager
def fetched_ahead(entries: Iterable[Entry], length: int) -> Iterator[None]:
    """For the time of the block, this thread finds the entries' first `length` bytes fetched.

    Args:
      entries: what will be opened, in that order; opening others, or in another order, costs time.
        Local files are left alone. Of DICOMweb's, whose series come whole, nothing is fetched, but
        what the listing says of them is known.
      length: how much of each; the listing's size and stamp are known with it.
    """
    entries = list(entries)
    remote = [entry for entry in entries if is_remote(entry.path)]
    if not remote:
        yield
        return
    wanted = list(_wanted([entry for entry in remote if not is_dicomweb(entry.path)], length))
    before = known.entries, known.take
    ahead = _Ahead(wanted)
    known.entries, known.take = {entry.path: entry for entry in entries}, ahead.take
    try:
        yield
    finally:
        known.entries, known.take = before
        ahead.close()


def _wanted(entries: Iterable[Entry], length: int) -> Iterator[Wanted]:
    """The requests that give the entries' first `length` bytes."""
    run: list[Span] = []
    # Found once: looking the environment over for each object is a tenth of a request's work.
    clients: dict[tuple[str, str], Any] = {}
    for entry in entries:
        member = split_member(entry.path)
        span = archives.span_of(*member, length) if member else None
        if run and (span is None or not _continues(run, span)):
            yield _of_members(run)
            run = []
        if span is not None:
            run.append(span)
        elif member is None:
            bucket = split(entry.path)[:2]
            if bucket not in clients:
                clients[bucket] = client_of(entry.path)[0]
            yield _of_object(entry, length, clients[bucket])
    if run:
        yield _of_members(run)


def _of_object(entry: Entry, length: int, client: Any) -> Wanted:
    path = entry.path
    first = length if entry.size is None else min(length, entry.size)
    return Wanted((path,), first, lambda: {path: read_range(path, 0, first, "", client)})


def _continues(run: Sequence[Span], span: Span) -> bool:
    """Whether one request for members that lie close together may give one more."""
    first, last = run[0], run[-1]
    return (
        span.archive.path == first.archive.path
        and span.start - last.start >= 0
        and span.start - last.end <= _GAP_BYTES
        and span.end - first.start <= _RUN_BYTES
    )


def _of_members(run: Sequence[Span]) -> Wanted:
    archive, start = run[0].archive, run[0].start
    end = max(span.end for span in run)

    def fetch() -> dict[str, Piece]:
        found = read_range(archive.path, start, end - start, archive.status.tag)
        return {
            span.path: found._replace(data=found.data[span.start - start : span.end - start])
            for span in run
        }

    return Wanted(tuple(span.path for span in run), end - start, fetch)
