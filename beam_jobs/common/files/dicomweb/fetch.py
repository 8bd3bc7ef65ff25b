"""A series brought into the spool: whole, or with what the service refuses named.

The series comes as one multipart answer, each part a file as it lies in the service. It counts as
whole only where the answer came to its closing delimiter and each instance that the service lists
was in it, once. A cut answer looks like success to HTTP, so what is missing is requested again:
the series for a while, then each instance by itself. One that the service refuses is named in the
spool and cannot be opened; a service that stays away ends the command, and what came stays.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from beam_jobs.common.files.dicomweb import part10, search, session
from beam_jobs.common.files.dicomweb.address import SeriesAddress
from beam_jobs.common.files.dicomweb.journal import Journal
from beam_jobs.common.files.dicomweb.multipart import (
    NotMultipartError,
    Parts,
    WrongLengthError,
    boundary_of,
)
from beam_jobs.common.files.dicomweb.pack import Arriving, Kept, pieces
from beam_jobs.common.files.dicomweb.session import CutError, Patience
from beam_jobs.common.files.dicomweb.spool import Complete, Listed, Spooled

# Files as they lie there, whatever their transfer syntax: without the star services transcode.
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_FEW = 16  # a series comes so much faster than its instances one by one
_EPILOGUE_BYTES = 4096
_TRIES = 3  # of the same answer, cut where it was cut before


def fetch(series: Spooled, listed: Listed, stamps: Iterable[int] = ()) -> Complete:
    """Brings a series into the spool; who calls holds its lock.

    Args:
      series: which.
      listed: what it holds.
      stamps: further ones that what comes now is the content of.

    Raises:
      StoreError: the service stays away or denies access, or the spool cannot be written to. What
        came stays for the next try.
    """
    job = _Fetch(series, listed)
    try:
        job.run()
    finally:
        job.close()
    found = Complete(job.journal.pack, (listed.stamp, *stamps), job.journal.kept, job.refused)
    series.finish(found)
    return found


class _Fetch:
    """One series on its way.

    Attributes:
      journal: what is whole.
      refused: SOP Instance UID → why the service does not hand it out.
    """

    def __init__(self, series: Spooled, listed: Listed) -> None:
        self._series = series
        self._address: SeriesAddress = series.address
        self._expected = frozenset(listed.uids)
        self._by_length = True
        self._adding = threading.Lock()
        series.unmark()
        self.journal = Journal(series, listed.stamp)
        self.refused: dict[str, str] = {}

    def close(self) -> None:
        with self._adding:  # what is under way still finds no pack any more
            self.journal.close()

    @property
    def _missing(self) -> list[str]:
        kept = self.journal.kept
        return sorted(uid for uid in self._expected if uid not in kept and uid not in self.refused)

    def run(self) -> None:
        patience, tries = Patience(self._address.service), 0
        while tries < _TRIES and len(missing := self._missing) * _FEW > len(self._expected) > 1:
            try:
                if self._whole_series():
                    break
                why, tries = "the series came without some of its instances", tries + 1
            except WrongLengthError:
                self._by_length, tries = False, tries + 1
                continue
            except CutError as cut:
                why = str(cut)
                tries += 1
            if len(self._missing) < len(missing):  # it goes on, however often it is cut
                patience, tries = Patience(self._address.service), 1
            if tries < _TRIES:
                patience.wait(f"series {self._address.series}: {why}")
        self._one_by_one(self._missing)

    def _whole_series(self) -> bool:
        """Requests the series; False where the service does not hand it out as one.

        Raises:
          CutError: the answer was cut; what came before is kept.
        """
        answer = session.get(
            self._address.service, self._address.within, accept=_ACCEPT, stream=True
        )
        read = _reader(answer)
        with answer:
            if answer.status_code != 200:
                return True
            came: set[str] = set()
            doubtful: set[str] = set()
            for number, part in enumerate(self._parts(answer, read)):
                if number > 2 * len(self._expected) + _FEW:
                    raise CutError("the service sent many more instances than the series has")
                uid, kept = self._written(part, self.journal.begin())
                # What came by an earlier answer stays; twice in one, it is the same or neither.
                old = self.journal.kept.get(uid)
                if old is None and uid in self._expected and uid not in doubtful:
                    self.journal.keep(uid, kept)
                elif old is not None and uid in came and old.crc != kept.crc:
                    doubtful.add(uid)
                    self.journal.drop(uid)
                came.add(uid)
            _finish(read)
        return not self._missing

    def _parts(self, answer: Any, read: Callable[[int], bytes]) -> Iterator[Iterator[memoryview]]:
        """The parts of an answer that has not been read yet, and whose body `read` gives.

        Raises:
          CutError: the answer is cut, or is no multipart one.
        """
        try:
            boundary = boundary_of(answer.headers.get("Content-Type", ""))
        except NotMultipartError as error:
            raise CutError(f"the service sent {error} of instances") from error
        return iter(Parts(read, boundary, by_length=self._by_length))

    def _written(
        self, part: Iterator[memoryview], arriving: Arriving, only: str = ""
    ) -> tuple[str, Kept]:
        """Writes a part; its SOP Instance UID, and what it is.

        Args:
          part: its pieces.
          arriving: where it is written to.
          only: the UID that was requested alone: what has no readable one is it.
        """
        for piece in part:
            arriving.write(piece)
        uid = part10.uid_of(arriving.head)
        if uid not in self._expected:
            uid = part10.uid_within(arriving.head) or uid or only
        return uid, arriving.kept

    def _one_by_one(self, missing: list[str]) -> None:
        """Requests instances; those that the service does not hand out are refused.

        A service that answers nothing else either is not believed, but waited for.
        """
        patience = Patience(self._address.service)
        while missing:
            refused = {}
            with session.pool() as executor:
                for uid, why in zip(missing, executor.map(self._single, missing), strict=True):
                    if why:
                        refused[uid] = why
            if not refused or search.answers(self._address.service):
                self.refused.update(refused)
                return
            missing = list(refused)
            patience.wait(refused[missing[0]])

    def _single(self, uid: str) -> str:
        """Fetches an instance; why the service does not hand it out, "" where it does."""
        within = f"{self._address.within}/instances/{uid}"
        why = ""
        for again in range(_TRIES):
            if again:
                time.sleep(0.2 * again)
            answer = session.get(self._address.service, within, accept=_ACCEPT, stream=True)
            with answer:
                if answer.status_code != 200:
                    why = session.told(answer.status_code)
                    if answer.status_code < 500:
                        break
                    continue
                try:
                    read = _reader(answer)
                    came = self._arrived(uid, answer, read)
                except WrongLengthError as error:
                    self._by_length, why = False, str(error)
                except CutError as cut:
                    why = str(cut)
                else:
                    _finish(read)
                    if came:
                        return ""
                    why = "the service sent another instance, or none"
        return why

    def _arrived(self, uid: str, answer: Any, read: Callable[[int], bytes]) -> bool:
        """Whether an answer holds the instance and no other; it is kept then.

        Several are on their way at once, so each is a file of its own before it is in the pack.
        """
        with self._series.temporary() as descriptor:
            came: list[tuple[str, Kept]] = []
            for part in self._parts(answer, read):
                if came:  # as many as it likes would fill the disk
                    return False
                came.append(self._written(part, Arriving(self._series.writing, descriptor, 0), uid))
            if [name for name, _ in came] != [uid]:
                return False
            with self._adding:
                arriving = self.journal.begin()
                for piece in pieces(descriptor, 0, came[0][1].size):
                    arriving.write(piece)
                self.journal.keep(uid, arriving.kept)
        return True


def _finish(read: Callable[[int], bytes]) -> None:
    """Reads what is behind the last delimiter, so that the connection can be used again."""
    with contextlib.suppress(CutError):
        left = _EPILOGUE_BYTES
        while left > 0 and (data := read(left)):
            left -= len(data)


def _reader(answer: Any) -> Callable[[int], bytes]:
    """What reads the body of an answer.

    Raises:
      CutError: the connection was lost, or the body is shorter than HTTP said.
    """

    # What is there already: of a read that waits for all, a cut would take all. urllib3 1 has none.
    take = getattr(answer.raw, "read1", answer.raw.read)
    packed = "Content-Encoding" in answer.headers  # although it was not asked for

    def read(length: int) -> bytes:
        with session.whole():
            data: bytes = take(length, decode_content=packed)
            return data

    return read
