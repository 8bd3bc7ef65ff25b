"""Records out of TFRecord shards, damaged ones told apart from the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from beam_jobs.core.record import ContractError, RecordSchema
from beam_jobs.tfrecord import decode_case, read_records

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

    A record whose content is damaged costs that record; the reading goes on behind it, as far as
    the lengths of the framing hold. Every record is decoded once, so that what is yielded fits
    `schema` for certain.

    Args:
      stream: of the shard, seekable or at least telling its position.
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


def _surviving(stream: IO[bytes]) -> Iterator[bytes | ContractError]:
    """Records, and an error in the place of each that is damaged."""
    header_bytes = 12  # length and its checksum, see beam_jobs.tfrecord
    while True:
        start = stream.tell()
        try:
            for record in read_records(stream):
                yield record
                start = stream.tell()
            return
        except ContractError as error:
            at = str(error).rsplit(" at byte ", 1)[0]
            yield ContractError(f"{at} at byte {start}")
            # Damage to the header itself: the length is not known, the next record not found.
            if stream.tell() - start <= header_bytes:
                return
