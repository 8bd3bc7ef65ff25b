"""A series brought into the spool: whole, or with what the service refuses named.

The series comes as one multipart answer, each part a file as it lies in the service. It counts as
whole only where the answer came to its closing delimiter and each instance that the service lists
was in it, once. A cut answer looks like success to HTTP, so what is missing is requested again:
the series for a while, then each instance by itself. One that the service refuses is named in the
spool and cannot be opened; a service that stays away ends the command, and what came stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from beam_jobs.common.files.dicomweb import part10, search, session
from beam_jobs.common.files.dicomweb.address import SeriesAddress
from beam_jobs.common.files.dicomweb.multipart import (
    NotMultipartError,
    Parts,
    WrongLengthError,
    boundary_of,
)
from beam_jobs.common.files.dicomweb.session import CutError, Patience
from beam_jobs.common.files.dicomweb.spool import Complete, Journal, Kept, Listed, Spooled

# Files as they lie there, whatever their transfer syntax: without the star services transcode.
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_HEAD_BYTES = 64 << 10
_FEW = 16  # a series comes so much faster than its instances one by one
_TRIES = 3  # of the same answer, cut where it was cut before
_TEMPORARY = ".dcm.part"


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
    found = Complete((listed.stamp, *stamps), job.journal.kept, job.refused)
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
        series.unmark()
        self.journal = Journal(series, listed.stamp)
        self.refused: dict[str, str] = {}

    def close(self) -> None:
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
        with answer:
            if answer.status_code != 200:
                return True
            came: set[str] = set()
            doubtful: set[str] = set()
            for uid, kept, temporary in self._parts(answer):
                # What came by an earlier answer stays; twice in one, it is the same or neither.
                if uid not in self._expected or (uid in self.journal.kept and uid not in came):
                    self._drop(temporary)
                elif uid not in came:
                    self._keep(uid, kept, temporary)
                else:
                    self._drop(temporary)
                    if self.journal.kept.get(uid, kept) != kept:
                        doubtful.add(uid)
                came.add(uid)
            for uid in doubtful:
                self.journal.drop(uid)
        return not self._missing

    def _parts(self, answer: Any, uid: str = "") -> Iterator[tuple[str, Kept, str]]:
        """(SOP Instance UID, what came, its temporary file) of each part of an answer.

        Args:
          answer: that has not been read yet.
          uid: the only one that was requested, where files without a readable one are it.

        Raises:
          CutError: the answer was cut, or is no multipart one.
        """
        with session.whole():
            try:
                boundary = boundary_of(answer.headers.get("Content-Type", ""))
            except NotMultipartError as error:
                raise CutError(f"the service sent {error} of instances") from error
            parts = iter(Parts(_reader(answer), boundary, by_length=self._by_length))
        while True:
            with session.whole():
                part = next(parts, None)
            if part is None:
                return
            yield self._written(part, uid)

    def _written(self, part: Iterator[bytes], only: str) -> tuple[str, Kept, str]:
        temporary = os.path.join(self._series.directory, f"{uuid.uuid4().hex}{_TEMPORARY}")
        digest = hashlib.sha256()
        size, head = 0, b""
        with self._series.writing():
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        try:
            while True:
                with session.whole():
                    piece = next(part, None)
                if piece is None:
                    break
                if len(head) < _HEAD_BYTES:
                    head += piece[: _HEAD_BYTES - len(head)]
                digest.update(piece)
                size += len(piece)
                with self._series.writing():
                    _write(descriptor, piece)
        except BaseException:
            self._drop(temporary)
            raise
        finally:
            os.close(descriptor)
        found = part10.uid_of(head)
        if found not in self._expected:
            found = part10.uid_within(head) or found or only
        return found, Kept(size, digest.hexdigest()), temporary

    def _keep(self, uid: str, kept: Kept, temporary: str) -> None:
        with self._series.writing():
            os.replace(temporary, self._series.file(uid))
        self.journal.add(uid, kept)

    def _drop(self, temporary: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(temporary)

    def _one_by_one(self, missing: list[str]) -> None:
        """Requests instances; those that the service does not hand out are refused.

        A service that answers nothing else either is not believed, but waited for.
        """
        patience = Patience(self._address.service)
        while missing:
            refused = {}
            executor = ThreadPoolExecutor(session.AT_ONCE, thread_name_prefix="dicomweb")
            try:
                for uid, found in zip(missing, executor.map(self._single, missing), strict=True):
                    if isinstance(found, str):
                        refused[uid] = found
                    else:
                        self._keep(uid, *found)
            finally:
                executor.shutdown(wait=True, cancel_futures=True)
            if not refused or search.answers(self._address.service):
                self.refused.update(refused)
                return
            missing = list(refused)
            patience.wait(refused[missing[0]])

    def _single(self, uid: str) -> tuple[Kept, str] | str:
        """An instance in a temporary file, or why the service does not hand it out."""
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
                came: list[tuple[str, Kept, str]] = []
                try:
                    came.extend(self._parts(answer, uid))
                except WrongLengthError as error:
                    self._by_length, why = False, str(error)
                except CutError as cut:
                    why = str(cut)
                else:
                    if len(came) == 1 and came[0][0] == uid:
                        _, kept, temporary = came[0]
                        return kept, temporary
                    why = (
                        "the service sent another instance" if came else "the service sent nothing"
                    )
                for _, _, temporary in came:
                    self._drop(temporary)
        return why


def _reader(answer: Any) -> Callable[[int], bytes]:
    return lambda length: answer.raw.read(length, decode_content=True)


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]
