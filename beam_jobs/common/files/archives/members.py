"""What an archive holds: a table of members, whatever the format, and which names are usable."""

from __future__ import annotations

import re
from typing import NamedTuple

from beam_jobs.common.files.names import is_archive

STORED, DEFLATED = 0, 8  # as zip numbers them

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


class Table(NamedTuple):
    """The members of one version of an archive.

    Attributes:
      members: name → member.
      version: of the archive: its size and its tag or time of change.
      fault: why it is not all that was in the archive, "" where it is.
    """

    members: dict[str, Member]
    version: tuple[int, str]
    fault: str = ""


class Members(dict[str, Member]):
    """Members by their names, made usable; of two of one name the later counts, as unpacked."""

    def put(self, name: str, member: Member) -> None:
        """Adds a member; one whose name is not usable gets another, and cannot be read."""
        usable, fault = usable_name(name)
        if fault:
            usable = f"unusable-name-{len(self)}"
            member = member._replace(fault=fault)
        elif is_archive(usable):
            member = member._replace(fault="an archive in an archive is not read")
        self.pop(usable, None)
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
