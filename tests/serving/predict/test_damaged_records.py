"""Reading shards: damage costs the damaged record, not its neighbours."""

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.core.example import decode_case, encode_case
from beam_jobs.core.manifest import ShardEntry, digest
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import write_record
from serving.predict.damaged_records import first_record, surviving_cases
from serving.predict.transforms import read_shard

SCHEMA = RecordSchema(modalities=("T1w",), shape=(3, 2, 2), dtype="uint8", spec_fingerprint="a")
OTHER = RecordSchema(modalities=("T1w",), shape=(3, 2, 2), dtype="uint8", spec_fingerprint="b")
RECORDS = 4


def record(number: int, schema: RecordSchema = SCHEMA) -> bytes:
    case = PreparedCase(
        patient_id=f"{number}",
        volume=np.full(schema.volume_shape, number, schema.dtype),
        affine=np.eye(4),
        present=(True,),
    )
    return encode_case(case, schema)


def shard(*records: bytes) -> bytearray:
    stream = io.BytesIO()
    for data in records or [record(number) for number in range(RECORDS)]:
        write_record(stream, data)
    return bytearray(stream.getvalue())


SIZE = len(shard()) // RECORDS


def read(data: bytes | bytearray) -> tuple[list[str], list[str]]:
    """(patients, reasons) of a shard."""
    items = list(surviving_cases(io.BytesIO(data), "a.tfrecord", SCHEMA))
    return (
        [item.patient_id for item in items if isinstance(item, PreparedCase)],
        [f"{item['reason']}: {item['detail']}" for item in items if isinstance(item, dict)],
    )


def test_every_record_of_a_sound_shard_is_read_as_it_stands() -> None:
    items = list(surviving_cases(io.BytesIO(shard()), "a.tfrecord", SCHEMA))
    assert [encode_case(item, SCHEMA) for item in items if isinstance(item, PreparedCase)] == [
        record(number) for number in range(RECORDS)
    ]


@pytest.mark.parametrize("damaged", [(0,), (1,), (3,), (1, 2)])
def test_a_damaged_record_costs_itself_alone(damaged: tuple[int, ...]) -> None:
    data = shard()
    for number in damaged:
        data[number * SIZE + SIZE // 2] ^= 1
    patients, reasons = read(data)
    assert patients == [f"{n}" for n in range(RECORDS) if n not in damaged]
    assert reasons == [
        f"corrupt_record: a.tfrecord, record {n}: corrupt record at byte {n * SIZE}"
        for n in damaged
    ]


@pytest.mark.parametrize("byte", [0, 3, 7, 8, 11])
def test_behind_a_damaged_length_the_next_record_is_found(byte: int) -> None:
    data = shard()
    data[SIZE + byte] ^= 1
    patients, reasons = read(data)
    assert patients == ["0", "2", "3"]
    assert reasons == [
        f"corrupt_record: a.tfrecord, record 1: corrupt record length at byte {SIZE}"
    ]


def test_a_record_is_found_across_the_pieces_that_are_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = shard()
    data[SIZE] ^= 1
    for piece in range(1, 40):
        monkeypatch.setattr("beam_jobs.core.tfrecord._SEARCHED_AT_ONCE", piece)
        assert read(data)[0] == ["0", "2", "3"]


def test_bytes_that_went_missing_cost_the_records_that_lacked_them() -> None:
    data = shard()
    del data[SIZE + 20 : SIZE + 60]
    assert read(data)[0] == ["0", "2", "3"]


@pytest.mark.parametrize("left", [1, 11, 12, SIZE - 1])
def test_a_shard_that_was_cut_off_gives_what_lies_before(left: int) -> None:
    patients, reasons = read(shard()[: 2 * SIZE + left])
    assert patients == ["0", "1"]
    assert len(reasons) == 1
    assert "truncated" in reasons[0]


@pytest.mark.parametrize("data", [b"no example", b"", struct.pack("<Q", 7)])
def test_a_sound_frame_around_something_else_is_an_invalid_record(data: bytes) -> None:
    patients, reasons = read(shard(record(0), data, record(2)))
    assert patients == ["0", "2"]
    assert reasons[0].startswith("invalid_record: a.tfrecord, record 1: ")


def test_a_record_of_another_recipe_is_an_invalid_record() -> None:
    patients, reasons = read(shard(record(0), record(1, OTHER)))
    assert patients == ["0"]
    assert "spec_fingerprint" in reasons[0]


def test_the_first_readable_record_speaks_for_a_shard() -> None:
    data = shard()
    data[SIZE // 2] ^= 1
    found = first_record(io.BytesIO(data))
    assert found is not None
    assert decode_case(found, SCHEMA).patient_id == "1"
    assert first_record(io.BytesIO(b"damage")) is None


def test_a_shard_of_nothing_but_damage_is_told_in_a_thousand_rows_and_a_count() -> None:
    """A row takes a hundred times an empty record: 9 MB of them took 1.6 GB."""
    stream = io.BytesIO()
    for _ in range(1234):
        write_record(stream, b"")
    items = list(surviving_cases(io.BytesIO(stream.getvalue() + shard()), "a.tfrecord", SCHEMA))
    rejects = [item for item in items if isinstance(item, dict)]
    assert len(rejects) == 1001
    assert rejects[-1]["detail"] == "a.tfrecord, 234 more records like those before"
    assert len(items) - len(rejects) == len(list(surviving_cases(io.BytesIO(shard()), "", SCHEMA)))


@pytest.mark.parametrize("damaged", [(), (0,), (1, 2), (RECORDS - 1,)])
def test_a_listed_shard_is_read_once_and_held_against_its_hash(
    damaged: tuple[int, ...], tmp_path: Path, opened: list[files.StrPath]
) -> None:
    path = tmp_path / "a.tfrecord"
    path.write_bytes(shard())
    size, sha256 = digest(path)
    listed = ShardEntry(name="a.tfrecord", fold=None, bytes=size, sha256=sha256, patients=())
    data = shard()
    for number in damaged:
        data[number * SIZE] ^= 1  # of its length: what follows is searched for
    path.write_bytes(data)
    opened.clear()
    found = list(read_shard(str(path), listed, SCHEMA))
    assert opened == [str(path)]
    assert sum(isinstance(item, PreparedCase) for item in found) == RECORDS - len(damaged)
    told = [item["detail"] for item in found if isinstance(item, dict)]
    said = f"a.tfrecord: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}; the manifest"
    assert [detail.startswith(said) for detail in told].count(True) == bool(damaged)
