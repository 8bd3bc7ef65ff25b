"""Records out of TFRecord shards, damaged ones told apart from the rest."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import IO

import google_crc32c
import numpy as np

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.record import RecordSchema
from beam_jobs.core.tfrecord import decode_case, read_records

# A row about something refused, with the names of a conversion's rejects.csv.
Reject = dict[str, str]


def reject_row(*, scope: str, subject: str, reason: str, detail: str) -> Reject:
    """A reject that no patient can be named for."""
    return {
        "scope": scope,
        "subject": subject,
        "patient": "",
        "modality": "",
        "reason": reason,
        "detail": detail,
    }


def read_cases(
    stream: IO[bytes], shard: str, schema: RecordSchema
) -> Iterator[tuple[str, bytes] | Reject]:
    """Yields (patient_id, serialized Example) or a reject for each record of a shard.

    A record whose content is damaged costs that record: the framing's length, which has a checksum
    of its own, leads to the next. Where the length is damaged too, the next is looked for byte by
    byte. Every record is decoded once, so that what is yielded fits `schema` for certain.

    Args:
      stream: of the shard, seekable.
      shard: its name, for the rejects.
      schema: what its records must be.
    """
    for number, record in enumerate(_surviving(stream)):
        if isinstance(record, ContractError):
            yield reject_row(
                scope="record",
                subject=shard,
                reason="corrupt_record",
                detail=f"{shard}, record {number}: {record}",
            )
            continue
        try:
            case = decode_case(record, schema)
        except (ValueError, IndexError) as error:  # ContractError, and values numpy cannot take
            yield reject_row(
                scope="record",
                subject=shard,
                reason="invalid_record",
                detail=f"{shard}, record {number}: {error}",
            )
        else:
            yield case.patient_id, record


def require_fits(stream: IO[bytes], shard: str, schema: RecordSchema) -> None:
    """Refuses a shard whose first readable record is of another schema.

    Raises:
      ContractError: names the shard and every differing field.
    """
    for record in _surviving(stream):
        if not isinstance(record, ContractError):
            try:
                decode_case(record, schema)
            except (ValueError, IndexError) as error:
                raise ContractError(f"{shard}: {error}") from error
            return


_HEADER = struct.Struct("<QI")  # length and its checksum, see beam_jobs.core.tfrecord
_SEARCHED_AT_ONCE = 1 << 20
_LONGEST = 1 << 31  # of a record: an Example is a protobuf message


def _surviving(stream: IO[bytes]) -> Iterator[bytes | ContractError]:
    """Records, and an error in the place of each stretch that is damaged."""
    start = stream.tell()
    while True:
        try:
            for record in read_records(stream):
                yield record
                start = stream.tell()
            return
        except ContractError as error:
            at = str(error).rsplit(" at byte ", 1)[0]
            yield ContractError(f"{at} at byte {start}")
            behind = stream.tell()
            if "corrupt record at" in str(error) and _leads_on(stream, behind):
                start = behind
                continue
        found = _next_record(stream, start + 1)
        if found is None:
            return
        start = stream.seek(found)


def _leads_on(stream: IO[bytes], start: int) -> bool:
    """Whether the shard ends there or a record's header follows; the position stays `start`."""
    stream.seek(start)
    header = stream.read(_HEADER.size)
    stream.seek(start)
    if len(header) < _HEADER.size:
        return not header
    return bool(_masked(header[:8]) == _HEADER.unpack(header)[1])


def _next_record(stream: IO[bytes], start: int) -> int | None:
    """Where the first whole record at or behind `start` begins; None where there is none."""
    size = stream.seek(0, os.SEEK_END)
    for base in range(start, size, _SEARCHED_AT_ONCE):
        stream.seek(base)
        data = stream.read(_SEARCHED_AT_ONCE + _HEADER.size - 1)
        if len(data) < _HEADER.size:
            return None
        # Of all places those with a length below `_LONGEST`: its upper half is 0.
        zero = np.frombuffer(data, np.uint8) == 0
        last = len(data) - _HEADER.size + 1
        upper = zero[4 : 4 + last] & zero[5 : 5 + last] & zero[6 : 6 + last] & zero[7 : 7 + last]
        some = ~(zero[:last] & zero[1 : 1 + last] & zero[2 : 2 + last] & zero[3 : 3 + last])
        for place in np.flatnonzero(upper & some).tolist():
            length, crc = _HEADER.unpack_from(data, place)
            if base + place + length + 16 > size or length >= _LONGEST:
                continue
            if _masked(data[place : place + 8]) == crc and _is_whole(stream, base + place):
                return base + place
    return None


def _is_whole(stream: IO[bytes], start: int) -> bool:
    """Whether a record begins there whose content fits its checksum."""
    stream.seek(start)
    try:
        return next(read_records(stream), None) is not None
    except ContractError:
        return False


def _masked(data: bytes) -> int:
    """TFRecord's checksum: CRC32C, rotated by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
