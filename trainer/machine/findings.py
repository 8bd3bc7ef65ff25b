"""What a check finds: rows to be read, and what is to be mended."""

from __future__ import annotations

import dataclasses
from typing import Literal

GIB = 2**30
# "" where all is well, "note" for what is merely absent or odd, "fault" for what has an entry under
# "to mend".
Mark = Literal["", "note", "fault"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a section.

    Attributes:
      name: what it is of.
      text: what was found.
      mark: how well it is.
    """

    name: str
    text: str
    mark: Mark = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """Something needed that is broken.

    Attributes:
      what: was found.
      stops: what does not work for it.
      mend: what to do.
    """

    what: str
    stops: str
    mend: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """What there is to say of one subject.

    Attributes:
      title: the subject.
      rows: in order.
      faults: likewise.
    """

    title: str
    rows: tuple[Row, ...]
    faults: tuple[Fault, ...] = ()


def gib(size: float) -> str:
    """Bytes for a reader.

    >>> gib(25 * 2**30), gib(3 * 2**28), gib(0)
    ('25 GiB', '0.75 GiB', '0 GiB')
    """
    amount = size / GIB
    return f"{amount:.0f} GiB" if amount >= 10 else f"{round(amount, 2):g} GiB"
