"""multipart/related as it comes over the wire (RFC 2046, PS3.18 8.6), a part at a time.

A body is read in blocks and never held whole, whatever its length and that of its parts. It is
complete only where its closing delimiter was read: a service that is killed ends a body in ways
that HTTP itself calls complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from beam_jobs.common.files.dicomweb.session import CutError

BLOCK_BYTES = 1 << 20
_HEADER_BYTES = 64 << 10
_PREAMBLE_BYTES = 64 << 10
_PARAMETER = re.compile(r';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))', re.IGNORECASE)
_LENGTH = re.compile(rb"^content-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?$", re.IGNORECASE | re.M)


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
        self._buffer = b""

    def __iter__(self) -> Iterator[Iterator[bytes]]:
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
        data = self._read(BLOCK_BYTES)
        if not data:
            raise CutError("the answer was cut off")
        self._buffer = self._buffer + data if self._buffer else data

    def _to_first(self) -> None:
        """Goes behind the first delimiter; what is before it is no part."""
        while True:
            at = self._buffer.find(self._dashes)
            while at > 0 and self._buffer[at - 1 : at] != b"\n":
                at = self._buffer.find(self._dashes, at + 1)
            if at >= 0:
                self._buffer = self._buffer[at + len(self._dashes) :]
                return
            if len(self._buffer) > _PREAMBLE_BYTES:
                raise CutError("the answer is no multipart body")
            self._more()

    def _is_closing(self) -> bool:
        """Goes to the end of a delimiter's line; whether it was the closing one."""
        while len(self._buffer) < 2:
            self._more()
        if self._buffer.startswith(b"--"):
            return True
        while (at := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _HEADER_BYTES:
                raise CutError("the answer is no multipart body")
            self._more()
        self._buffer = self._buffer[at + 1 :]
        return False

    def _header(self) -> int | None:
        """Goes behind a part's header; its Content-Length, if it is to be gone by."""
        while True:
            if self._buffer.startswith((b"\r\n", b"\n")):
                end, header = self._buffer.index(b"\n") + 1, b""
                break
            found = re.search(rb"\n\r?\n", self._buffer[:_HEADER_BYTES])
            if found is not None:
                end, header = found.end(), self._buffer[: found.start()]
                break
            if len(self._buffer) >= _HEADER_BYTES:
                raise CutError("the answer is no multipart body")
            self._more()
        self._buffer = self._buffer[end:]
        length = _LENGTH.search(header) if self._by_length else None
        return int(length[1]) if length else None

    def _part(self, length: int | None) -> Iterator[bytes]:
        if length is None:
            yield from self._to_delimiter()
            return
        while length:
            if not self._buffer:
                self._more()
            piece = self._buffer[:length]
            self._buffer = self._buffer[len(piece) :]
            length -= len(piece)
            yield piece
        while len(self._buffer) < len(self._dashes) + 2:
            try:
                self._more()
            except CutError:
                break
        for line_end in (b"\r\n", b"\n"):
            if self._buffer.startswith(line_end + self._dashes):
                self._buffer = self._buffer[len(line_end + self._dashes) :]
                return
        if len(self._buffer) < len(self._dashes) + 2:
            raise CutError("the answer was cut off")
        raise WrongLengthError("a part of the answer has another length than it says")

    def _to_delimiter(self) -> Iterator[bytes]:
        """A part of unknown length: up to a line that is the delimiter and nothing else."""
        mark = b"\r\n" + self._dashes
        keep = len(mark) + 64  # blanks and the line's end have to be seen too
        start = 0
        while True:
            at = self._buffer.find(mark, start)
            if at >= 0:
                end = at + len(mark)
                try:
                    while (is_one := self._ends_line(end)) is None:
                        self._more()
                except CutError:
                    raise CutError("the answer was cut off") from None
                if is_one:
                    piece, self._buffer = self._buffer[:at], self._buffer[end:]
                    if piece:
                        yield piece
                    return
                start = at + 1
                continue
            sure = len(self._buffer) - keep
            if sure > 0:
                piece, self._buffer = self._buffer[:sure], self._buffer[sure:]
                yield piece
            start = 0
            self._more()

    def _ends_line(self, end: int) -> bool | None:
        """Whether a delimiter's line ends at `end`; None where more has to be read to tell."""
        rest = self._buffer[end : end + 64]
        if rest.startswith(b"--"):
            return True
        line = rest.lstrip(b" \t")
        if line.startswith((b"\r\n", b"\n")):
            return True
        return None if line in (b"", b"\r", b"-") and len(rest) < 64 else False
