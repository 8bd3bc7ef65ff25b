"""multipart/related as it comes over the wire (RFC 2046, PS3.18 8.6), a part at a time.

A body is read in blocks and never held whole, whatever its length and that of its parts. It is
complete only where its closing delimiter was read: a service that is killed ends a body in ways
that HTTP itself calls complete.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from beam_jobs.common.files.dicomweb.session import CutError

BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 64 << 10
_PREAMBLE_BYTES = 64 << 10
_LINE_BYTES = 64  # of a delimiter's line, behind the delimiter
_CUT = "the answer was cut off"
_NONE = "the answer is no multipart body"
_PARAMETER = re.compile(r';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))', re.IGNORECASE)
_LENGTH = re.compile(rb"^content-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?$", re.IGNORECASE | re.M)
_HEADER_END = re.compile(rb"\n\r?\n")


class NotMultipartError(ValueError):
    """A body that is no multipart/related."""


class WrongLengthError(CutError):
    """A part is not as long as its Content-Length says: it has to be read without."""


def boundary_of(content_type: str) -> bytes:
    """The boundary of a Content-Type.

    Raises:
      NotMultipartError: it is no multipart type, or names no boundary.

    >>> boundary_of('multipart/related; type="application/dicom"; boundary="a b"')
    b'a b'
    """
    found = _PARAMETER.search(content_type)
    if not content_type.lower().lstrip().startswith("multipart/") or found is None:
        raise NotMultipartError("no multipart body")
    boundary = re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]
    if not boundary:
        raise NotMultipartError("a multipart body without a boundary")
    return boundary.encode("latin-1", "replace")


class Parts:
    """The parts of a body, one after the other.

    for part in Parts(read, boundary):
        for piece in part:
            ...

    A piece is a view of a block that was read: what is kept longer keeps the block.

    Args:
      read: gives at most so many of the next bytes, b"" at the end.
      boundary: as `boundary_of` gives it.
      by_length: skip over a part by its Content-Length, where it has one; what looks like a
        delimiter amid its bytes is none then.

    Attributes:
      is_complete: whether the closing delimiter was read.
    """

    def __init__(
        self, read: Callable[[int], bytes], boundary: bytes, *, by_length: bool = True
    ) -> None:
        self.is_complete = False
        self._read = read
        self._dashes = b"--" + boundary
        self._by_length = by_length
        self._block = b""  # what was read last, with what of the one before is not done with
        self._at = 0  # where in it the rest begins

    def __iter__(self) -> Iterator[Iterator[memoryview]]:
        """The parts, each as its pieces; of one that is left early the rest is skipped.

        Raises:
          CutError: the body ends before its closing delimiter, or is none of multipart.
        """
        self._to_first()
        while True:
            if self._is_closing():
                self.is_complete = True
                return
            part = self._part(self._header())
            yield part
            for _ in part:
                pass

    def _more(self) -> None:
        """Reads a block; what is not done with is at its begin then, and `_at` is 0."""
        data = self._read(BLOCK_BYTES)
        if not data:
            raise CutError(_CUT)
        rest = self._block[self._at :]
        self._block, self._at = rest + data if rest else data, 0

    def _left(self) -> int:
        return len(self._block) - self._at

    def _to_first(self) -> None:
        """Goes behind the first delimiter; what is before it is no part."""
        while True:
            at = self._block.find(self._dashes)
            while at > 0 and self._block[at - 1 : at] != b"\n":
                at = self._block.find(self._dashes, at + 1)
            if at >= 0:
                self._at = at + len(self._dashes)
                return
            if self._left() > _PREAMBLE_BYTES:
                raise CutError(_NONE)
            self._more()

    def _is_closing(self) -> bool:
        """Goes to the end of a delimiter's line; whether it was the closing one."""
        while self._left() < 2:
            self._more()
        if self._block.startswith(b"--", self._at):
            return True
        while (at := self._block.find(b"\n", self._at)) < 0:
            if self._left() > _HEADER_BYTES:
                raise CutError(_NONE)
            self._more()
        self._at = at + 1
        return False

    def _header(self) -> int | None:
        """Goes behind a part's header; its Content-Length, if it is to be gone by."""
        while True:
            if self._block.startswith((b"\r\n", b"\n"), self._at):
                self._at = self._block.index(b"\n", self._at) + 1
                return None
            found = _HEADER_END.search(self._block, self._at, self._at + _HEADER_BYTES)
            if found is not None:
                header = self._block[self._at : found.start()]
                self._at = found.end()
                length = _LENGTH.search(header) if self._by_length else None
                return int(length[1]) if length else None
            if self._left() >= _HEADER_BYTES:
                raise CutError(_NONE)
            self._more()

    def _part(self, length: int | None) -> Iterator[memoryview]:
        if length is None:
            yield from self._to_delimiter()
            return
        while length:
            if self._left() == 0:
                self._more()
            size = min(length, self._left())
            piece = memoryview(self._block)[self._at : self._at + size]
            self._at += size
            length -= size
            yield piece
        wanted = len(self._dashes) + 2
        with contextlib.suppress(CutError):
            while self._left() < wanted:
                self._more()
        for line_end in (b"\r\n", b"\n"):
            if self._block.startswith(line_end + self._dashes, self._at):
                self._at += len(line_end) + len(self._dashes)
                return
        if self._left() < wanted:
            raise CutError(_CUT)
        raise WrongLengthError("a part of the answer has another length than it says")

    def _to_delimiter(self) -> Iterator[memoryview]:
        """A part of unknown length: up to a line that is the delimiter and nothing else."""
        mark = b"\r\n" + self._dashes
        keep = len(mark) + _LINE_BYTES  # its line's end has to be seen too
        begin = self._at  # where the next may be looked for
        while True:
            at = self._block.find(mark, begin)
            if at < 0:
                sure = self._left() - keep
                if sure > 0:
                    yield self._piece(self._at + sure)
                self._more()
                begin = 0
                continue
            is_one = self._ends_line(at + len(mark))
            if is_one is None:
                at -= self._at
                self._more()
                begin = at
            elif is_one:
                if at > self._at:
                    yield self._piece(at)
                self._at = at + len(mark)
                return
            else:
                begin = at + 1

    def _piece(self, end: int) -> memoryview:
        piece = memoryview(self._block)[self._at : end]
        self._at = end
        return piece

    def _ends_line(self, end: int) -> bool | None:
        """Whether a delimiter's line ends at `end`; None where more has to be read to tell."""
        rest = self._block[end : end + _LINE_BYTES]
        if rest.startswith(b"--"):
            return True
        line = rest.lstrip(b" \t")
        if line.startswith(b"\r\n"):
            return True
        return None if line in (b"", b"\r", b"-") and len(rest) < _LINE_BYTES else False
