"""Files as pydicom may read them: inflated, within bounds, whatever a hostile one makes of it.

pydicom inflates the deflated transfer syntax whole, however much that is, and makes an object of a
kilobyte of every item of 8 bytes. What it reads here is a file in a plain transfer syntax, and it
may ask for no more pieces than a real header has.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_partial, read_preamble

from beam_jobs.common.files import interface as files
from beam_jobs.core.dicom.header_walk import DEFLATED, EXPLICIT_LITTLE, HandOver, file_meta
from beam_jobs.core.reasons import Reason, RejectedError

# Pieces that pydicom asks for are two or three an element. Headers with a few thousand elements are
# long; one that refers to each of a great many images is long too, and so is its file.
_MOST_PIECES = 100_000
_BYTES_A_PIECE = 64
_MOST_SEQUENCE = 1 << 20  # bytes of one that is looked into
_UNDEFINED = 0xFFFFFFFF
DEFERRED = 4096  # bytes of a value that is not read with the others
# A deflated file's own name of its syntax, and as long a one of what it is once inflated.
_INFLATED = EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0")


class PieceLimit:
    """A stream that gives so many pieces and no more.

    Attributes:
      left: pieces.
      name: for pydicom.
    """

    name = ""

    def __init__(self, stream: Any, size: int) -> None:
        self._stream = stream
        self._most = max(_MOST_PIECES, size // _BYTES_A_PIECE)
        self.left = self._most
        self.seek, self.tell = stream.seek, stream.tell

    @property
    def refusal(self) -> str:
        """What is wrong where `left` is below 0; pydicom may have made another error of it."""
        return f"the header has more than {self._most} pieces of data"

    def begin_anew(self) -> None:
        """What was read so far is given up by whoever read it, and takes no memory."""
        self.left = self._most

    def read(self, count: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EFBIG, self.refusal)
        if count is None or count < 0:  # only what pydicom would inflate it reads so
            raise OSError(errno.EBADMSG, "a compressed header")
        data: bytes = self._stream.read(count)
        return data


def limited(source: files.ByteSource) -> PieceLimit:
    """An open file as pydicom may read it; a corrupt length does not make it allocate that."""
    # A mapped file would end the process where it shrinks meanwhile.
    return PieceLimit(files.SourceFile(source), source.size)


def parse(stream: PieceLimit, *, force: bool, stop: Callable[[int], bool] | None = None) -> Dataset:
    """A file's data set by pydicom; long values stay in the file, which has to stay open.

    Args:
      stream: the file.
      force: also without the mark of Part 10.
      stop: whether a tag, and all behind it, is left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_partial(
            stream,  # type: ignore[arg-type]
            None if stop is None else lambda tag, _vr, _length: stop(tag),
            defer_size=DEFERRED,
            force=force,
        )


def items_of(dataset: Dataset, tag: int, *, most: int = _MOST_SEQUENCE) -> Sequence[Dataset]:
    """The items of a sequence, none where it is absent.

    Raises:
      RejectedError: as `require_short`.
    """
    require_short(dataset, tag, most=most)
    found: Sequence[Dataset] = dataset[tag].value if tag in dataset else ()
    return found or ()


def require_short(dataset: Dataset, tag: int, *, most: int = _MOST_SEQUENCE) -> None:
    """Refuses a sequence that would take a hundred times its bytes as objects.

    Args:
      dataset: what it is in.
      tag: of the sequence.
      most: bytes that it may have, where these are not objects yet.

    Raises:
      RejectedError: it has more.
    """
    raw: Any = dataset.get_item(tag, keep_deferred=True) if tag in dataset else None
    if raw is not None and raw.is_raw and _UNDEFINED > raw.length > most:
        group, number = tag >> 16, tag & 0xFFFF
        raise RejectedError(
            Reason.TOO_LARGE, f"the sequence ({group:04x},{number:04x}) has {raw.length} bytes"
        )


def deflated_from(source: files.ByteSource, begin: bytes) -> int | None:
    """Where the deflated data set of a file begins; None where it is not deflated.

    Args:
      source: the open file.
      begin: its first bytes, as many as a header's file meta information has.
    """
    if DEFLATED.encode() not in begin:
        return None
    try:
        syntax, end = file_meta(begin, [])
    except HandOver:
        stream = limited(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_preamble(stream, True)  # type: ignore[arg-type]
            meta = _read_file_meta_info(stream)  # type: ignore[arg-type]
            syntax, end = str(meta.get("TransferSyntaxUID", "")), stream.tell()
    return end if syntax == DEFLATED else None


class Inflated:
    """A file of the deflated transfer syntax as if it were of the plain one (PS3.5 A.5).

    Attributes:
      modified: of the file.
    """

    def __init__(self, source: files.ByteSource, path: str, start: int) -> None:
        """Opens a deflated file, which is closed with this one.

        Args:
          source: the open file.
          path: of it, for messages.
          start: where its data set begins.
        """
        self.modified = source.modified
        head = source.read_at(0, start)
        self._head = head.replace(DEFLATED.encode(), _INFLATED)
        self._rest = files.inflated(source, path, start)

    @property
    def size(self) -> int:
        return len(self._head) + self._rest.size

    def read_at(self, offset: int, length: int) -> bytes:
        begin = self._head[offset : offset + length] if length > 0 else b""
        after = offset + len(begin) - len(self._head)
        return begin + self._rest.read_at(after, length - len(begin)) if after >= 0 else begin

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._rest.close()


def as_plain(source: files.ByteSource, path: str) -> files.ByteSource:
    """A file of the deflated transfer syntax, inflated as far as it is read.

    Reading raises `TooLargeError` where it gives more than any image of its size does.
    """
    start = deflated_from(source, source.read_at(0, files.HEAD_BYTES))
    return source if start is None else Inflated(source, path, start)


def unreadable(error: OSError, path: str) -> RejectedError:
    """The refusal of a file that cannot be read, or is a bomb."""
    reason = Reason.TOO_LARGE if error.errno == errno.EFBIG else Reason.UNREADABLE_FILE
    return RejectedError(reason, error.strerror or type(error).__name__, path=path)
