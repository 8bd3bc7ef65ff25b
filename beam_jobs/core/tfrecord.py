"""Prepared cases to and from `tf.train.Example` bytes, and the TFRecord framing around them.

The wire format is TensorFlow's; the code needs only protobuf and a CRC, so that a conversion
worker neither installs nor imports TensorFlow (6 s and 600 MB a process). The tests hold every
byte to TensorFlow's own reader and parser.

Sources: tensorflow/core/example/{example,feature}.proto; the framing in
tensorflow/core/lib/io/record_writer.h (length, masked CRC32C of it, data, masked CRC32C of it).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.record import FEATURES, PreparedCase, RecordSchema

_CRC_MASK_DELTA = 0xA282EAD8


def _example_class() -> Any:
    """The message class of tensorflow.Example, in a pool of our own (TensorFlow's stays alone)."""
    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="voxelbeam/example.proto", package="tensorflow", syntax="proto3"
    )

    def field(message: Any, name: str, number: int, kind: int, **more: Any) -> None:
        label = more.pop("label", Field.LABEL_OPTIONAL)
        message.field.add(name=name, number=number, type=kind, label=label, **more)

    for name, kind in (
        ("BytesList", Field.TYPE_BYTES),
        ("FloatList", Field.TYPE_FLOAT),
        ("Int64List", Field.TYPE_INT64),
    ):
        field(file.message_type.add(name=name), "value", 1, kind, label=Field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        type_name = (
            ".tensorflow."
            + {"bytes": "Bytes", "float": "Float", "int64": "Int64"}[name.removesuffix("_list")]
        )
        field(
            feature, name, number, Field.TYPE_MESSAGE, type_name=type_name + "List", oneof_index=0
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, Field.TYPE_STRING)
    field(entry, "value", 2, Field.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    field(
        features,
        "feature",
        1,
        Field.TYPE_MESSAGE,
        type_name=".tensorflow.Features.FeatureEntry",
        label=Field.LABEL_REPEATED,
    )
    example = file.message_type.add(name="Example")
    field(example, "features", 1, Field.TYPE_MESSAGE, type_name=".tensorflow.Features")

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
    example = _Example()
    try:
        example.ParseFromString(serialized)
    except DecodeError as error:
        raise ContractError(f"not a tf.train.Example: {error}") from error
    try:
        return _case_of(example, schema)
    except ContractError:
        raise
    except (IndexError, ValueError) as error:  # an empty list, bad UTF-8, a short affine
        raise ContractError(f"a feature is malformed: {error}") from error


def _case_of(example: Any, schema: RecordSchema) -> PreparedCase:
    feature = example.features.feature
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


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def write_record(stream: IO[bytes], data: bytes) -> int:
    """Appends one framed record to `stream` and returns the number of bytes written."""
    length = struct.pack("<Q", len(data))
    header = length + struct.pack("<I", _masked_crc(length))
    stream.write(header)
    stream.write(data)
    stream.write(struct.pack("<I", _masked_crc(data)))
    return len(header) + len(data) + 4


def read_records(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields the records of a TFRecord stream, both checksums verified.

    Raises:
      ContractError: truncated, or a checksum does not fit; the message gives the byte offset.
    """
    offset = 0
    while header := _read_up_to(stream, 12):
        if len(header) < 12:
            raise ContractError(f"truncated record header at byte {offset}")
        length, crc = struct.unpack("<QI", header)
        if _masked_crc(header[:8]) != crc:
            raise ContractError(f"corrupt record length at byte {offset}")
        data = _read_up_to(stream, length)
        footer = _read_up_to(stream, 4)
        if len(data) < length or len(footer) < 4:
            raise ContractError(f"truncated record at byte {offset}")
        if _masked_crc(data) != struct.unpack("<I", footer)[0]:
            raise ContractError(f"corrupt record at byte {offset}")
        yield data
        offset += 16 + length


def _read_up_to(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes, fewer only at the end (object stores may return short reads)."""
    data = stream.read(size)
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data
