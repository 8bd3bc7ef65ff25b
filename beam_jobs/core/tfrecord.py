"""TFRecord framing around serialized Examples: checked, found by place, and what survives damage.

    length (uint64) | masked CRC32C of it | data: one Example | masked CRC32C of it

Whoever looks at a dataset (`verify`, `report`, the forest, saliency, a model's statistics, Python
users) takes `read_shard`, which holds it against its manifest, so that a shard which was emptied,
swapped or damaged is nobody's dataset. `read_cases` and `read_records` take the bytes as they are;
`surviving_records` does where damage may cost no more than the damaged record. Who reads at random
finds records by `record_frames`: the trainer, which holds shards against the manifest itself.

Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/lib/hash/crc32c.h. The tests hold
every byte to TensorFlow's own reader.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.files import interface as files
from beam_jobs.core.example import decode_case
from beam_jobs.core.manifest import ShardEntry, ShardPatient
from beam_jobs.core.record import PreparedCase, RecordSchema

# The framing before the data (length and its checksum) and behind it (the data's checksum).
HEAD_BYTES = 12
TAIL_BYTES = 4
_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")
_CRC_MASK_DELTA = 0xA282EAD8
_LONGEST = 1 << 31  # of a record: an Example is a protobuf message
_SEARCHED_AT_ONCE = 1 << 20
_READ_AT_ONCE = 16 << 20


class Stream(Protocol):
    """What records are read from."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int = ..., /) -> int: ...


class Hashed:
    """A stream that is hashed as it is read; it ends after so many bytes.

    Behind a jump nothing is, and `digest` reads on from before it.
    """

    def __init__(self, stream: Stream, length: int) -> None:
        self._stream, self._length = stream, length
        self._at = self._hashed = 0
        self._hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(max(0, min(size, self._length - self._at)))
        if self._at == self._hashed:
            self._hash.update(data)
            self._hashed += len(data)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = self._stream.seek(offset, whence)
        return self._at

    def digest(self) -> str:
        """sha256 (hex) of all of it."""
        if self._at != self._hashed:
            self.seek(self._hashed)
        while self.read(1 << 20):
            pass
        return self._hash.hexdigest()


class DamagedRecordError(ContractError):
    """A record whose framing or checksum does not fit.

    Attributes:
      behind: byte offset of the next record where the length can be trusted, else None.
    """

    def __init__(self, message: str, behind: int | None = None) -> None:
        super().__init__(message)
        self.behind = behind


def masked_crc(*parts: bytes | memoryview | npt.NDArray[np.uint8]) -> int:
    """TFRecord's checksum of `parts` in turn: CRC32C, rotated by 15 bits, plus a constant."""
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, part)
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def write_record(stream: IO[bytes], data: bytes) -> int:
    """Appends one framed record to `stream` and returns the number of bytes written."""
    length = struct.pack("<Q", len(data))
    stream.write(length + _TAIL.pack(masked_crc(length)))
    stream.write(data)
    stream.write(_TAIL.pack(masked_crc(data)))
    return HEAD_BYTES + len(data) + TAIL_BYTES


def read_records(stream: Stream) -> Iterator[bytes]:
    """Yields the records of a TFRecord stream, both checksums verified.

    Raises:
      DamagedRecordError: truncated, or a checksum does not fit; the message gives the byte offset.
    """
    offset = 0
    while (data := _read_record(stream, offset)) is not None:
        yield data
        offset += HEAD_BYTES + len(data) + TAIL_BYTES


def read_cases(path: files.StrPath, schema: RecordSchema) -> Iterator[PreparedCase]:
    """The cases of a shard, in file order, one in memory at a time.

    Raises:
      FileNotFoundError: there is no such file.
      ContractError: it is damaged, or a record is not of the schema.
    """
    with files.open_read(path) as stream:
        yield from decoded(stream, schema)


def decoded(stream: Stream, schema: RecordSchema) -> Iterator[PreparedCase]:
    """The cases of a shard's stream, as `read_cases`."""
    for data in read_records(stream):
        yield decode_case(data, schema)


def read_shard(
    directory: files.StrPath, entry: ShardEntry, schema: RecordSchema
) -> Iterator[PreparedCase]:
    """The cases of a shard, in file order, one in memory at a time.

    What the whole file must be (its hash) is known behind the last: who stops earlier knows less.

    Args:
      directory: the dataset.
      entry: the shard, of the manifest's.
      schema: what its records must fit.

    Raises:
      ContractError: the shard or a record is not what the manifest says; the message names it.
      CommandError: a store refuses or fails.
      OSError: a disk does.
    """
    for found in inspect_shard(directory, entry, schema):
        if isinstance(found, str):
            raise ContractError(f"{files.join(directory, entry.name)}: {found}")
        yield found


def inspect_shard(
    directory: files.StrPath, entry: ShardEntry, schema: RecordSchema
) -> Iterator[PreparedCase | str]:
    """The cases of a shard and, in words, what is not as the manifest says; as `read_shard`.

    A file of another size is read to where it is damaged, but no further than the manifest says.
    """
    path = files.join(directory, entry.name)
    try:
        stream = files.open_read(path)
    except FileNotFoundError:
        yield "the manifest lists this shard, it does not exist"
        return
    count = 0
    with stream:
        size = files.size(path)
        if size != entry.bytes:
            yield f"{size} bytes, the manifest says {entry.bytes}"
        whole = Hashed(stream, entry.bytes)
        try:
            for count, record in enumerate(read_records(whole), 1):
                case = decode_case(record, schema)
                if fault := _misplaced(case, count, entry):
                    yield fault
                yield case
            if count != entry.count:
                yield f"{count} records, not the {entry.count} of the manifest"
        except ContractError as error:
            yield str(error)
        sha256 = whole.digest()
    if size == entry.bytes and sha256 != entry.sha256:
        yield f"sha256 {sha256}, the manifest says {entry.sha256}"


def surviving_records(stream: Stream) -> Iterator[bytes | DamagedRecordError]:
    """Yields the records of a TFRecord stream, and an error in the place of each damaged stretch.

    A record whose content is damaged costs that record: the framing's length, which has a checksum
    of its own, leads to the next. Where the length is damaged too, the next is searched byte by
    byte; each byte is read a few times at most, however many lengths somebody put there.

    Args:
      stream: seekable, at its beginning.
    """
    left = 2 * stream.seek(0, os.SEEK_END)
    start: int | None = stream.seek(0)
    while start is not None:
        try:
            data = _read_record(stream, start)
        except DamagedRecordError as error:
            yield error
            if error.behind is not None and _leads_on(stream, error.behind):
                start = error.behind
            else:
                start, left = _next_record(stream, start + 1, left)
            if start is not None:
                stream.seek(start)
        else:
            if data is None:
                return
            yield data
            start += HEAD_BYTES + len(data) + TAIL_BYTES


class RecordFrame(NamedTuple):
    """Where a record lies: byte offset of its framing, and bytes of its data."""

    start: int
    length: int

    @property
    def data(self) -> slice:
        """The data's bytes, in what the frame was found in."""
        return slice(self.start + HEAD_BYTES, self.start + HEAD_BYTES + self.length)

    @property
    def end(self) -> int:
        """Byte offset behind its framing."""
        return self.start + HEAD_BYTES + self.length + TAIL_BYTES


def record_frames(content: bytes | memoryview) -> Iterator[RecordFrame]:
    """Yields where each record of a whole file lies, by its lengths; no data are read.

    Args:
      content: the file's bytes.

    Raises:
      DamagedRecordError: truncated, or a length's checksum does not fit.
    """
    start = 0
    while start < len(content):
        frame = RecordFrame(start, _length_of(bytes(content[start : start + HEAD_BYTES]), start))
        if frame.end > len(content):
            raise DamagedRecordError(f"truncated record at byte {start}")
        yield frame
        start = frame.end


def _length_of(head: bytes, start: int) -> int:
    """Bytes of a record's data, by what stands before them."""
    if len(head) < HEAD_BYTES:
        raise DamagedRecordError(f"truncated record header at byte {start}")
    length, crc = _HEAD.unpack(head)
    if masked_crc(head[:8]) != crc:
        raise DamagedRecordError(f"corrupt record length at byte {start}")
    if length >= _LONGEST:
        raise DamagedRecordError(f"a record of {length} bytes at byte {start}, longer than any")
    return int(length)


def _read_record(stream: Stream, start: int) -> bytes | None:
    """The record at the stream's position, which messages call `start`; None at the end."""
    if not (head := _read_up_to(stream, HEAD_BYTES)):
        return None
    length = _length_of(head, start)
    data = _read_up_to(stream, length)
    tail = _read_up_to(stream, TAIL_BYTES)
    if len(data) < length or len(tail) < TAIL_BYTES:
        raise DamagedRecordError(f"truncated record at byte {start}")
    if masked_crc(data) != _TAIL.unpack(tail)[0]:
        behind = start + HEAD_BYTES + length + TAIL_BYTES
        raise DamagedRecordError(f"corrupt record at byte {start}", behind)
    return data


def _read_up_to(stream: Stream, size: int) -> bytes:
    """`size` bytes, fewer only at the end (object stores may return short reads)."""
    # What a damaged length claims is not reserved before it is found.
    parts, left = [stream.read(min(size, _READ_AT_ONCE))], size
    while parts[-1] and (left := left - len(parts[-1])):
        parts.append(stream.read(min(left, _READ_AT_ONCE)))
    return b"".join(parts)


def _leads_on(stream: Stream, start: int) -> bool:
    """Whether the stream ends at `start`, or a record's length follows."""
    stream.seek(start)
    head = _read_up_to(stream, HEAD_BYTES)
    return not head or (len(head) == HEAD_BYTES and masked_crc(head[:8]) == _HEAD.unpack(head)[1])


def _next_record(stream: Stream, start: int, left: int) -> tuple[int | None, int]:
    """Where the first whole record at or behind `start` begins; None where there is none.

    Args:
      stream: seekable.
      start: byte offset.
      left: bytes of records that may yet turn out not to be whole. Damage of itself makes no more
        than the file has; somebody's lengths within each other would take the square of it.

    Returns:
      The place, and what is left then.
    """
    size = stream.seek(0, os.SEEK_END)
    for base in range(start, size, _SEARCHED_AT_ONCE):
        stream.seek(base)
        data = stream.read(_SEARCHED_AT_ONCE + HEAD_BYTES - 1)
        if len(data) < HEAD_BYTES:
            return None, left
        # Of all places those with a length below `_LONGEST`: its upper half is 0.
        zero = np.frombuffer(data, np.uint8) == 0
        last = len(data) - HEAD_BYTES + 1
        upper = zero[4 : 4 + last] & zero[5 : 5 + last] & zero[6 : 6 + last] & zero[7 : 7 + last]
        some = ~(zero[:last] & zero[1 : 1 + last] & zero[2 : 2 + last] & zero[3 : 3 + last])
        places: list[int] = np.flatnonzero(upper & some).tolist()
        for place in places:
            length, crc = _HEAD.unpack_from(data, place)
            if base + place + length + HEAD_BYTES + TAIL_BYTES > size or length >= _LONGEST:
                continue
            if masked_crc(data[place : place + 8]) == crc:
                if length > left:
                    return None, left
                if _is_whole(stream, base + place):
                    return base + place, left
                left -= length
    return None, left


def _is_whole(stream: Stream, start: int) -> bool:
    """Whether a record begins there whose content fits its checksum."""
    stream.seek(start)
    try:
        return _read_record(stream, start) is not None
    except DamagedRecordError:
        return False


def _misplaced(case: PreparedCase, number: int, entry: ShardEntry) -> str:
    """How a record, the first being number 1, is another than the manifest has in its place."""
    found = ShardPatient(patient_id=case.patient_id, label=case.label)
    if number > entry.count or (found == entry.patients[number - 1] and case.fold == entry.fold):
        return ""
    wanted = entry.patients[number - 1]
    return (
        f"records and manifest differ: record {number} is of patient {shown(found.patient_id)}, "
        f"label {found.label}, fold {case.fold}, not the manifest's {shown(wanted.patient_id)}, "
        f"label {wanted.label}, fold {entry.fold}"
    )
