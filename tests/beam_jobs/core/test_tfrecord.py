"""The framing is TensorFlow's, whoever writes it; a bad record is refused with its place."""

import io
import itertools
import pickle
import struct

import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.tfrecord import (
    DamagedRecordError,
    masked_crc,
    read_records,
    record_frames,
    surviving_records,
    write_record,
)

DATA = bytes(range(256)) * 2


def test_tensorflows_own_record_file_reads_back(tmp_path):
    import tensorflow as tf

    path = str(tmp_path / "y.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for data in (b"", b"one", b"two" * 1000):
            writer.write(data)
    with open(path, "rb") as stream:
        assert list(read_records(stream)) == [b"", b"one", b"two" * 1000]


def test_frames_lead_to_the_records_of_a_whole_file():
    stream = io.BytesIO()
    sizes = [write_record(stream, data) for data in (b"", b"one", b"two" * 1000)]
    content = stream.getvalue()
    frames = list(record_frames(memoryview(content)))
    assert [content[frame.data] for frame in frames] == [b"", b"one", b"two" * 1000]
    assert [frame.end for frame in frames] == list(itertools.accumulate(sizes))


@pytest.mark.parametrize(("size", "damage"), [(5, "record header"), (13, "record"), (30, "record")])
def test_frames_of_a_cut_file_are_refused_as_its_records_are(size, damage):
    stream = io.BytesIO()
    write_record(stream, b"one" * 10)
    content = stream.getvalue()[:size]
    for read in (lambda: read_records(io.BytesIO(content)), lambda: record_frames(content)):
        with pytest.raises(DamagedRecordError, match=f"^truncated {damage} at byte 0$"):
            list(read())


def test_damage_found_in_another_process_arrives_as_it_was():
    error = pickle.loads(pickle.dumps(DamagedRecordError("corrupt record at byte 0", behind=9)))
    assert (type(error), str(error), error.behind) == (
        DamagedRecordError,
        "corrupt record at byte 0",
        9,
    )


@pytest.mark.parametrize("place", [3, 9, 14, 200, -2])
def test_flipped_bit_is_refused_with_its_place(place):
    stream = io.BytesIO()
    write_record(stream, DATA)
    data = bytearray(stream.getvalue())
    data[place] ^= 4
    with pytest.raises(ContractError, match="at byte 0"):
        list(read_records(io.BytesIO(bytes(data))))


@pytest.mark.parametrize("size", [5, 13, 100])
def test_cut_file_is_refused(size):
    stream = io.BytesIO()
    write_record(stream, DATA)
    with pytest.raises(ContractError, match="truncated"):
        list(read_records(io.BytesIO(stream.getvalue()[:size])))


def head(length):
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc(packed))


@pytest.mark.parametrize("length", [2**31, 2**60, 2**63 - 1, 2**64 - 1])
def test_a_length_longer_than_any_is_refused_though_its_checksum_fits(length):
    content = head(length) + DATA
    for read in (lambda: read_records(io.BytesIO(content)), lambda: record_frames(content)):
        with pytest.raises(DamagedRecordError, match=f"^a record of {length} bytes at byte 0, lon"):
            list(read())
    (found,) = surviving_records(io.BytesIO(content))
    assert isinstance(found, DamagedRecordError)


class Counted(io.BytesIO):
    """How many bytes are read."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_lengths_within_each_other_do_not_make_the_search_for_a_record_quadratic():
    size = 12 * 4000
    content = b"\1" + b"".join(head(size - place - 16) for place in range(0, size - 16, 12))
    stream = Counted(content)
    assert all(isinstance(found, DamagedRecordError) for found in surviving_records(stream))
    assert stream.count < 5 * len(content)
