"""The journal of a series that is being fetched: a killed fetch goes on from what it says."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from typing import Any

from beam_jobs.common.files.dicomweb.address import is_uid
from beam_jobs.common.files.dicomweb.pack import Arriving, Kept, crc_of, kept_of, line_of
from beam_jobs.common.files.dicomweb.spool import PACK, PACK_NAME, PARTS, Spooled


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
        path = series.file(PARTS)
        with series.writing():
            found = _read_lines(path)
            if found and found[0].get("stamp") == stamp:
                self._take(str(found[0].get("pack")), found[1:])
            for name in os.listdir(series.directory):
                if name.endswith((PACK, ".part")) and name != self.pack:
                    series.unlink(name)
            lines = [json.dumps({"pack": self.pack, "stamp": stamp})]
            lines += [line_of(uid, kept) for uid, kept in self.kept.items()]
            series.write(PARTS, "".join(f"{line}\n" for line in lines))
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._pack = os.open(series.file(self.pack), flags, 0o600)
            self._notes = open(path, "a", buffering=1, encoding="ascii")  # noqa: SIM115

    def _take(self, pack: str, lines: list[Any]) -> None:
        """Believes what is proven by the pack: a power cut loses the end of any file."""
        path = self._series.file(pack)
        if not (PACK_NAME.fullmatch(pack) and os.path.isfile(path)):
            return
        self.pack = pack
        with open(path, "rb", buffering=0) as stream:
            last = {str(line.get("uid")): line for line in lines if isinstance(line, dict)}
            for uid, line in last.items():
                with contextlib.suppress(KeyError, ValueError):  # dropped, or damaged
                    kept = kept_of(line["start"], line["size"], line["crc32c"])
                    if is_uid(uid) and crc_of(stream.fileno(), kept) == kept.crc:
                        self.kept[uid] = kept
                        self._end = max(self._end, kept.start + kept.size)

    def begin(self) -> Arriving:
        """An instance that arrives now, behind all that are kept; the one before is done with."""
        return Arriving(self._series.writing, self._pack, self._end)

    def keep(self, uid: str, kept: Kept) -> None:
        """Notes that an instance is whole."""
        self.kept[uid] = kept
        self._end = max(self._end, kept.start + kept.size)
        try:
            self._notes.write(f"{line_of(uid, kept)}\n")
        except OSError:
            with self._series.writing():
                raise

    def drop(self, uid: str) -> None:
        """Forgets an instance; its bytes stay unused."""
        del self.kept[uid]
        with self._series.writing():
            self._notes.write(f"{line_of(uid, Kept(0, 0, -1))}\n")

    def close(self) -> None:
        """Ends the writing; what is kept stays for the next try, and nothing behind it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._pack, self._end)
        os.close(self._pack)
        self._pack = -1
        with self._series.writing():
            self._notes.close()


def _read_lines(path: str) -> list[Any]:
    """The lines of a journal, up to the first that was not written whole."""
    found = []
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as stream:
        for line in stream:
            found.append(json.loads(line))
    return found
