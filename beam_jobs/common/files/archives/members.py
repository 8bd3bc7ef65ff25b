"""What an archive holds: a table of members, whatever the format, and which names are usable."""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from beam_jobs.common.files.names import is_archive
from beam_jobs.common.files.sources import TooLargeError

STORED, DEFLATED = 0, 8  # as zip numbers them

# A DICOM file that compresses to less has no pixels; a table of half a million members takes 1 GB.
_MEMBER_BYTES = 200
_ALWAYS_MEMBERS = 100_000

_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
      size: in bytes, unpacked.
      stamp: changes when the content does.
      start: byte of the archive (of the inflated one, where all of it is compressed) at which its
        record begins: a zip's local header, a tar's data.
      packed: bytes it takes there, without a header.
      method: `STORED` or `DEFLATED`.
      crc: of the unpacked bytes, None where the archive has none.
      fault: why it cannot be read, "" where it can.
    """

    size: int
    stamp: int
    start: int
    packed: int
    method: int = STORED
    crc: int | None = None
    fault: str = ""


class Members(dict[str, Member]):
    """Members by their names, made usable; of two of one name the later counts, as unpacked.

    Args:
      packed: bytes of the archive, which bound how many members it may have.
    """

    def __init__(self, packed: int) -> None:
        super().__init__()
        self._most = max(_ALWAYS_MEMBERS, packed // _MEMBER_BYTES)

    def put(self, name: str, member: Member) -> None:
        """Adds a member; one whose name is not usable gets another, and cannot be read.

        Raises:
          TooLargeError: there are more than images would leave room for.
        """
        usable, fault = usable_name(name)
        if fault:
            usable = f"unusable-name-{len(self)}"
            member = member._replace(fault=fault)
        elif is_archive(usable):
            member = member._replace(fault="an archive in an archive is not read")
        self.pop(usable, None)
        if len(self) >= self._most:
            why = f"it lists more than {self._most} members, too many for images in its bytes"
            raise TooLargeError(errno.EFBIG, why)
        self[usable] = member


def usable_name(name: str) -> tuple[str, str]:
    """(a member's name without needless parts, "") or ("", what is wrong with it).

    What is wrong never repeats the name: it may be a person's, and stands in tables.

    >>> usable_name("./train//1.dcm")
    ('train/1.dcm', '')
    >>> usable_name("../etc/passwd")
    ('', "the member's name leaves the archive")
    """
    if _CONTROL.search(name):
        return "", "the member's name has control characters"
    parts = name.split("/")
    if name.startswith("/") or _DRIVE.match(name) or ".." in parts:
        return "", "the member's name leaves the archive"
    short = "/".join(part for part in parts if part not in ("", "."))
    return (short, "") if short else ("", "the member has no name")
