"""Records out of TFRecord shards, damaged ones apart from the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.example import decode_case
from beam_jobs.core.record import RecordSchema
from beam_jobs.core.tfrecord import DamagedRecordError, surviving_records
from serving.predict.reasons import Unpredicted

# A row about something refused, with names of a conversion's rejects.csv.
Reject = dict[str, str]
REJECT_COLUMNS = ("scope", "subject", "patient", "modality", "reason", "detail")


def reject_row(*, scope: str, subject: str, reason: str, detail: str) -> Reject:
    """A reject that no patient can be named for."""
    values = (scope, subject, "", "", str(reason), detail)
    return dict(zip(REJECT_COLUMNS, values, strict=True))


def surviving_cases(
    stream: IO[bytes], shard: str, schema: RecordSchema
) -> Iterator[tuple[str, bytes] | Reject]:
    """Yields (patient_id, serialized Example) or a reject for each record of a shard.

    Every record is decoded once, so that what is yielded fits `schema` for certain.

    Args:
      stream: of the shard, seekable, at its beginning.
      shard: its name, for the rejects.
      schema: what its records must be.
    """
    for number, record in enumerate(surviving_records(stream)):
        if isinstance(record, DamagedRecordError):
            yield reject_row(
                scope="record",
                subject=shard,
                reason=Unpredicted.CORRUPT_RECORD,
                detail=f"{shard}, record {number}: {record}",
            )
            continue
        try:
            case = decode_case(record, schema)
        except (ValueError, IndexError) as error:  # ContractError, and values numpy cannot take
            yield reject_row(
                scope="record",
                subject=shard,
                reason=Unpredicted.INVALID_RECORD,
                detail=f"{shard}, record {number}: {error}",
            )
        else:
            yield case.patient_id, record


def require_fits(stream: IO[bytes], shard: str, schema: RecordSchema) -> None:
    """Refuses a shard whose first readable record is of another schema.

    Raises:
      ContractError: names the shard and every differing field.
    """
    for record in surviving_records(stream):
        if not isinstance(record, DamagedRecordError):
            try:
                decode_case(record, schema)
            except (ValueError, IndexError) as error:
                raise ContractError(f"{shard}: {error}") from error
            return
