"""Records out of TFRecord shards, damaged ones apart from the rest."""

from __future__ import annotations

from collections.abc import Iterator

from beam_jobs.core.example import decode_case
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import DamagedRecordError, Stream, surviving_records
from serving.predict.reasons import Unpredicted

# A row about something refused, with names of a conversion's rejects.csv.
Reject = dict[str, str]
REJECT_COLUMNS = ("scope", "subject", "patient", "modality", "reason", "detail")
# So many refused records of a shard have a row each, which takes a hundred times an empty record.
_MOST_ROWS = 1000


def reject_row(*, scope: str, subject: str, reason: str, detail: str) -> Reject:
    """A reject that no patient can be named for."""
    values = (scope, subject, "", "", str(reason), detail)
    return dict(zip(REJECT_COLUMNS, values, strict=True))


def surviving_cases(
    stream: Stream, shard: str, schema: RecordSchema
) -> Iterator[PreparedCase | Reject]:
    """Yields a case that fits `schema`, or a reject, for each record of a shard.

    Of a shard that is nothing but damage the first thousand records are a reject each, and the
    others one.

    Args:
      stream: of the shard, seekable, at its beginning.
      shard: its name, for the rejects.
      schema: what its records must be.
    """
    refused = 0
    reason = Unpredicted.CORRUPT_RECORD
    for number, record in enumerate(surviving_records(stream)):
        if isinstance(record, DamagedRecordError):
            reason, why = Unpredicted.CORRUPT_RECORD, str(record)
        else:
            try:
                case = decode_case(record, schema)
            except (ValueError, IndexError) as error:  # ContractError, and what numpy cannot take
                reason, why = Unpredicted.INVALID_RECORD, str(error)
            else:
                yield case
                continue
        refused += 1
        if refused <= _MOST_ROWS:
            yield _record_row(shard, reason, f"record {number}: {why}")
    if refused > _MOST_ROWS:
        yield _record_row(shard, reason, f"{refused - _MOST_ROWS} more records like those before")


def _record_row(shard: str, reason: Unpredicted, detail: str) -> Reject:
    return reject_row(scope="record", subject=shard, reason=reason, detail=f"{shard}, {detail}")


def first_record(stream: Stream) -> bytes | None:
    """A shard's first readable record; None where it has none."""
    for record in surviving_records(stream):
        if not isinstance(record, DamagedRecordError):
            return record
    return None
