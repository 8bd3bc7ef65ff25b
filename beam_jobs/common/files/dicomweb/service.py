"""A DICOMweb service as one more place of files: what the file layer calls.

    dicomweb+https://host/path?ModalitiesInStudy=MR        a root: the series that a search finds
    dicomweb+https://host/path/studies/…/instances/…       a file: one instance

Listing asks the service; opening an instance fetches its whole series into the spool of this
machine, once, and opens the file there. Whatever the function, it raises

  UsageError      where an address makes no sense, with no request sent;
  StoreError      where the service denies access, stays away or is none, or the spool cannot be
                  written to; what was fetched stays, and the same command goes on from there;
  CommandError    where credentials are named that cannot be read;
  OSError         where the service does not hand out one instance: that one is unreadable.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from beam_jobs.common import terminal
from beam_jobs.common.files.dicomweb import search, session, spool
from beam_jobs.common.files.dicomweb.address import (
    Root,
    SeriesAddress,
    is_uid,
    parse_file,
    parse_root,
    parse_service,
    unlisted,
)
from beam_jobs.common.files.dicomweb.fetch import fetch
from beam_jobs.common.files.dicomweb.pack import SpooledBytes
from beam_jobs.common.files.dicomweb.spool import Complete, Spooled
from beam_jobs.common.files.names import Entry, Listing, Status
from beam_jobs.common.files.sources import ByteSource, known

SPOOL_VARIABLE = spool.VARIABLE  # `--spool DIR` sets it, for this process and its children


def listing(root: str) -> Listing:
    """The instances that a root's search finds, in the order of their paths.

    Each entry's `stamp` is that of its series' metadata: it changes when instances come, go or
    have other headers. `size` is None. Of series and objects that are no images (SR, SEG, ...)
    each instance counts in `left_out`, by its modality. What the service counts and gives no UID of
    is an entry that `open_source` refuses. The spool is told what every series holds now: one that
    changed is fetched anew when it is opened, and so is what the service refused before.

    Several requests are sent at once, with a bar on a terminal.
    """
    found = parse_root(root)
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    with session.pool() as executor:
        wanted = []
        for series in _found(found, executor):
            if kind := _left_out_as(series):
                left_out[kind] += max(1, series.images or 0)
            elif series.address is not None and series.images != 0:
                wanted.append(series)
        contents = zip(wanted, executor.map(_content, wanted), strict=True)
        for series, content in terminal.track(contents, "asking for series", len(wanted)):
            assert series.address is not None
            left_out.update(content.left_out.values())
            entries += _entries(series.address, content)
    return Listing(sorted(entries), left_out)


def _found(root: Root, executor: ThreadPoolExecutor) -> Iterator[search.Series]:
    """The series that a search finds, several studies asked for at once."""

    def several(function: Callable[[Any], Any], terms: Sequence[Any]) -> Iterable[Any]:
        return terminal.track(executor.map(function, terms), "searching", len(terms))

    if (named := search.find_named(root, several)) is not None:
        yield from named
        return
    # A list of ids is as many searches.
    lists = [*several(lambda terms: [*search.studies_of(root.service, terms)], root.studies)]
    studies = list(dict.fromkeys(study for found in lists for study in found))
    for series in several(lambda study: search.find_series(root, study), studies):
        yield from series


def _left_out_as(series: search.Series) -> str:
    if series.address is None:
        return search.NO_UID
    return series.modality if series.modality in search.NO_IMAGES else ""


def _content(series: search.Series) -> search.Content:
    assert series.address is not None
    content = search.content_of(series.address, series.images)
    Spooled(series.address).list(content.listed)
    return content


def _entries(series: SeriesAddress, content: search.Content) -> Iterator[Entry]:
    listed = content.listed
    for uid in listed.uids:
        if uid not in content.left_out:
            yield Entry(series.instance(uid), None, listed.stamp)
    for number in range(listed.unlisted):
        yield Entry(series.instance(unlisted(number + 1)), None, listed.stamp)


def holds_files(root: str) -> bool:
    """Whether the search finds any series of images; few requests, which also try credentials."""
    found = parse_root(root)
    return any(not _left_out_as(series) for series in _found_first(found))


def _found_first(root: Root) -> Iterator[search.Series]:
    """The series that a search finds, with no more requests than are looked at."""
    if (named := search.find_named(root)) is not None:
        yield from named
        return
    for study in search.find_studies(root, page=16):
        yield from search.find_series(root, study)


def open_source(path: str) -> ByteSource:
    """An instance, open for reading at any place; its series is fetched where it has to be.

    Its `modified` is a stamp of its content (its size and CRC-32C), whenever it was fetched.

    Raises:
      OSError: the service does not hand out this instance, or no longer lists it.
    """
    series, uid = parse_file(path)
    if not is_uid(uid):
        raise OSError(
            errno.EIO, "the service counts it, and gives no answer in which its UID is", path
        )
    spooled = Spooled(series)
    wanted = known.entries.get(path)
    stamp = wanted.stamp if wanted is not None else 0
    if (source := _opened(spooled, uid, stamp, path)) is not None:
        return source
    with spooled.locked():
        # Another process may have fetched it while this one waited for the lock.
        if (source := _opened(spooled, uid, stamp, path)) is not None:
            return source
        _fetched(spooled, stamp)
    source = _opened(spooled, uid, 0, path)
    if source is None:
        raise OSError(errno.EIO, "went from the spool while it was opened", path)
    return source


def _opened(spooled: Spooled, uid: str, stamp: int, path: str) -> SpooledBytes | None:
    """An instance from the spool, None where its series has to be fetched first."""
    complete = spooled.complete()
    if complete is None or not _is_current(spooled, complete, uid, stamp):
        return None
    if uid in complete.refused:
        raise OSError(errno.EIO, complete.refused[uid], path)
    if uid not in complete.kept:
        raise OSError(errno.ENOENT, "the service no longer lists it", path)
    # Known by its content, it is opened for its pixels, which takes much longer than proving them.
    return spooled.open(complete, uid, proven=complete.kept[uid].stamp == stamp)


def _is_current(spooled: Spooled, complete: Complete, uid: str, stamp: int) -> bool:
    """Whether what is in the spool is what is wanted.

    Args:
      stamp: of the listing that the path is from, or of the content that was read before; 0 where
        nothing of that is known, and the last listing on this machine says.
    """
    if not stamp:
        listed = spooled.listed()
        if listed is None:
            return uid in complete.kept or uid in complete.refused
        return listed.stamp in complete.stamps
    kept = complete.kept.get(uid)
    return stamp in complete.stamps or (kept is not None and kept.stamp == stamp)


def _fetched(spooled: Spooled, stamp: int) -> Complete:
    """Fetches a series, as the last listing had it where that is the one that is wanted."""
    listed = spooled.listed()
    if listed is None or (stamp and listed.stamp != stamp):
        listed = search.content_of(spooled.address, None).listed
        spooled.list(listed)
    return fetch(spooled, listed, {stamp} - {0, listed.stamp})


def stat(path: str) -> Status | None:
    """Size and stamp of an instance that is in the spool or can be fetched; None of a root."""
    if not is_file(path):
        return None
    source = open_source(path)
    try:
        return Status(source.size, source.modified)
    finally:
        source.close()


def is_file(path: str) -> bool:
    """Whether a path is that of an instance, by its text."""
    return "?" not in path and "/instances/" in path


def forget(root: str) -> int:
    """Makes the series that a root's search finds ones that were never fetched (`--refetch`).

    Returns:
      How many of them were in this machine's spool.
    """
    found = parse_root(root)
    addresses = {series.address for series in _found_first(found)} - {None}
    return sum(Spooled(address).forget() for address in addresses if address is not None)


def spooled(root: str) -> dict[str, tuple[int, int]]:
    """What the spool has of a root's service now, for `fetched_since`."""
    return spool.markers(parse_root(root).service)


def fetched_since(root: str, before: Mapping[str, tuple[int, int]]) -> tuple[int, int, int]:
    """(series, instances, bytes) of a root's service that were fetched since.

    Args:
      root: a search, or any path of the service.
      before: of `spooled`.
    """
    return spool.fetched_since(parse_root(root).service, before)


def spool_directory() -> str:
    """The spool's directory on this machine, which need not be there yet."""
    return spool.place()


def require_service(root: str) -> None:
    """Refuses what `stow.store` would not take, with no request sent.

    Raises:
      UsageError: `root` is no service's address.
    """
    parse_service(root)
