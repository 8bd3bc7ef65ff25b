"""Prepared cases to and from `tf.train.Example` bytes, and the TFRecord framing around them.

The wire format is TensorFlow's; the code needs only protobuf and a CRC, so that a conversion
worker neither installs nor imports TensorFlow (6 s and 600 MB a process). The tests hold every
byte to TensorFlow's own reader and parser.

    length (uint64) | masked CRC32C of it | data: one Example | masked CRC32C of it

Whoever reads whole records in order takes `read_records`, or `surviving_records` where damage may
cost no more than the damaged record; whoever reads at random finds them by `record_frames`.

Sources: tensorflow/core/example/{example,feature}.proto, tensorflow/core/lib/io/record_writer.h,
tensorflow/core/lib/hash/crc32c.h; protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.record import FEATURES, PreparedCase, RecordSchema

# The framing before the data (length and its checksum) and behind it (the data's checksum).
HEAD_BYTES = 12
TAIL_BYTES = 4
_HEAD = struct.Struct("<QI")
_TAIL = struct.Struct("<I")
_CRC_MASK_DELTA = 0xA282EAD8
_LONGEST = 1 << 31  # of a record: an Example is a protobuf message
_SEARCHED_AT_ONCE = 1 << 20


class DamagedRecordError(ContractError):
    """A record whose framing or checksum does not fit.

    Attributes:
      behind: byte offset of the next record where the length can be trusted, else None.
    """

    def __init__(self, message: str, behind: int | None = None) -> None:
        super().__init__(message)
        self.behind = behind


_EXAMPLE_PROTO = """
name: "voxelbeam/example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "FloatList"
  field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED } }
message_type { name: "Int64List"
  field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type_name: ".tensorflow.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type_name: ".tensorflow.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type_name: ".tensorflow.Int64List" oneof_index: 0 } }
message_type { name: "Features"
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type_name: ".tensorflow.Feature" label: LABEL_OPTIONAL } }
  field { name: "feature" number: 1 label: LABEL_REPEATED
    type_name: ".tensorflow.Features.FeatureEntry" } }
message_type { name: "Example"
  field { name: "features" number: 1 type_name: ".tensorflow.Features" } }
"""


def _example_class() -> Any:
    """The message class of tensorflow.Example, in a pool of our own (TensorFlow's stays alone)."""
    file = text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _example_class()


def encode_case(case: PreparedCase, schema: RecordSchema) -> bytes:
    """Serializes one case as a `tf.train.Example`.

    The bytes depend on nothing but the case and the schema (map keys are sorted), so that shards
    are byte-identical whoever writes them.

    Raises:
      ContractError: the case is not what the schema says.
    """
    case.check(schema)
    example = _Example()
    feature = example.features.feature
    little_endian = case.volume.astype(case.volume.dtype.newbyteorder("<"), copy=False)
    feature["volume"].bytes_list.value.append(little_endian.tobytes(order="C"))
    feature["shape"].int64_list.value.extend(case.volume.shape)
    feature["dtype"].bytes_list.value.append(schema.dtype.encode())
    feature["modalities"].bytes_list.value.extend(name.encode() for name in schema.modalities)
    feature["present"].int64_list.value.extend(int(flag) for flag in case.present)
    feature["affine"].float_list.value.extend(case.affine.ravel().tolist())
    feature["patient_id"].bytes_list.value.append(case.patient_id.encode())
    if case.label is not None:
        feature["label"].int64_list.value.append(case.label)
    if case.fold is not None:
        feature["fold"].int64_list.value.append(case.fold)
    feature["schema_version"].int64_list.value.append(schema.version)
    feature["spec_fingerprint"].bytes_list.value.append(schema.spec_fingerprint.encode())
    serialized: bytes = example.SerializeToString(deterministic=True)
    return serialized


def decode_case(serialized: bytes, schema: RecordSchema) -> PreparedCase:
    """Reads a case back and checks it against `schema`.

    The affine comes back in the record's float32 precision, as float64.

    Raises:
      ContractError: not an Example, a feature missing or not listed, or a value off the schema.
    """
    feature = features_of(serialized)
    try:
        return _case_of(feature, schema)
    except ContractError:
        raise
    except (IndexError, ValueError) as error:  # an empty list, bad UTF-8, a short affine
        raise ContractError(f"a feature is malformed: {error}") from error


def features_of(serialized: bytes) -> Mapping[str, Any]:
    """The features of an Example by name: protobuf's `tensorflow.Feature` messages.

    Raises:
      ContractError: the bytes are no Example.
    """
    example = _Example()
    try:
        example.ParseFromString(serialized)
    except DecodeError as error:
        raise ContractError(f"not a tf.train.Example: {error}") from error
    features: Mapping[str, Any] = example.features.feature
    return features


def only_value(features: Mapping[str, Any], name: str, kind: str) -> Any:
    """The only value of a feature's list; None where there is none, or several.

    Args:
      features: as `features_of` gives them.
      name: of the feature.
      kind: "bytes_list", "float_list" or "int64_list".
    """
    values: Any = getattr(features[name], kind).value if name in features else ()
    return values[0] if len(values) == 1 else None


def voxels_offset(serialized: bytes, volume: bytes) -> int:
    """Where the voxels begin in a serialized Example: behind name and lengths of their feature.

    Any place with these very bytes would do, and a read is checked against the record's checksum.

    Args:
      serialized: the Example.
      volume: its feature "volume", not empty.

    Raises:
      ContractError: the voxels do not lie in one piece.
    """
    value = field_head(1, len(volume))
    values = field_head(1, len(value) + len(volume)) + value
    head = field_head(1, 6) + b"volume" + field_head(2, len(values) + len(volume)) + values
    at = serialized.find(head) + len(head)
    if at < len(head) or serialized[at : at + len(volume)] != volume:
        raise ContractError("a record whose voxels do not lie in one piece")
    return at


def field_head(number: int, length: int) -> bytes:
    """What stands before the `length` bytes of a protobuf message's text, bytes or message field.

    >>> field_head(2, 300)
    b'\x12\xac\x02'
    """
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Protobuf's integer of variable length: seven bits a byte, the least first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*parts, number))


def _case_of(feature: Mapping[str, Any], schema: RecordSchema) -> PreparedCase:
    unknown = set(feature) - set(FEATURES)
    missing = set(FEATURES) - {"label", "fold"} - set(feature)
    if unknown or missing:
        raise ContractError(
            f"features missing: {sorted(missing)}; features not listed: {sorted(unknown)}"
        )
    found = RecordSchema(
        modalities=tuple(name.decode() for name in feature["modalities"].bytes_list.value),
        shape=tuple(feature["shape"].int64_list.value)[:3],
        dtype=feature["dtype"].bytes_list.value[0].decode(),
        spec_fingerprint=feature["spec_fingerprint"].bytes_list.value[0].decode(),
        version=feature["schema_version"].int64_list.value[0],
    )
    schema.require_equal(found, ours="schema", theirs="record")
    raw = feature["volume"].bytes_list.value[0]
    if len(raw) != schema.volume_bytes:
        raise ContractError(f"volume of {len(raw)} bytes, schema says {schema.volume_bytes}")
    volume = np.frombuffer(raw, dtype=np.dtype(schema.dtype).newbyteorder("<"))

    def optional(name: str) -> int | None:
        values = feature[name].int64_list.value if name in feature else ()
        return int(values[0]) if values else None

    case = PreparedCase(
        patient_id=feature["patient_id"].bytes_list.value[0].decode(),
        volume=volume.astype(schema.dtype, copy=False).reshape(schema.volume_shape),
        affine=np.array(feature["affine"].float_list.value, dtype=np.float64).reshape(4, 4),
        present=tuple(bool(flag) for flag in feature["present"].int64_list.value),
        label=optional("label"),
        fold=optional("fold"),
    )
    case.check(schema)
    return case


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


def read_records(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields the records of a TFRecord stream, both checksums verified.

    Raises:
      DamagedRecordError: truncated, or a checksum does not fit; the message gives the byte offset.
    """
    offset = 0
    while (data := _read_record(stream, offset)) is not None:
        yield data
        offset += HEAD_BYTES + len(data) + TAIL_BYTES


def surviving_records(stream: IO[bytes]) -> Iterator[bytes | DamagedRecordError]:
    """Yields the records of a TFRecord stream, and an error in the place of each damaged stretch.

    A record whose content is damaged costs that record: the framing's length, which has a checksum
    of its own, leads to the next. Where the length is damaged too, the next is searched byte by
    byte.

    Args:
      stream: seekable, at its beginning.
    """
    start: int | None = 0
    while start is not None:
        try:
            data = _read_record(stream, start)
        except DamagedRecordError as error:
            yield error
            if error.behind is not None and _leads_on(stream, error.behind):
                start = error.behind
            else:
                start = _next_record(stream, start + 1)
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
    return int(length)


def _read_record(stream: IO[bytes], start: int) -> bytes | None:
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


def _read_up_to(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes, fewer only at the end (object stores may return short reads)."""
    data = stream.read(size)
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _leads_on(stream: IO[bytes], start: int) -> bool:
    """Whether the stream ends at `start`, or a record's length follows."""
    stream.seek(start)
    head = _read_up_to(stream, HEAD_BYTES)
    return not head or (len(head) == HEAD_BYTES and masked_crc(head[:8]) == _HEAD.unpack(head)[1])


def _next_record(stream: IO[bytes], start: int) -> int | None:
    """Where the first whole record at or behind `start` begins; None where there is none."""
    size = stream.seek(0, os.SEEK_END)
    for base in range(start, size, _SEARCHED_AT_ONCE):
        stream.seek(base)
        data = stream.read(_SEARCHED_AT_ONCE + HEAD_BYTES - 1)
        if len(data) < HEAD_BYTES:
            return None
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
            if masked_crc(data[place : place + 8]) == crc and _is_whole(stream, base + place):
                return base + place
    return None


def _is_whole(stream: IO[bytes], start: int) -> bool:
    """Whether a record begins there whose content fits its checksum."""
    stream.seek(start)
    try:
        return _read_record(stream, start) is not None
    except DamagedRecordError:
        return False
