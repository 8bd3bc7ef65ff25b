"""Prepared cases to and from `tf.train.Example` bytes.

The wire format is TensorFlow's; the code needs only protobuf, so that a conversion worker neither
installs nor imports TensorFlow (6 s and 600 MB a process). The tests hold every byte to
TensorFlow's own parser.

Sources: tensorflow/core/example/{example,feature}.proto;
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.record import PreparedCase, RecordSchema

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
        kind = label_kind(schema.target)
        getattr(feature["label"], kind).value.extend(schema.target.stored(case.label))
    if case.fold is not None:
        feature["fold"].int64_list.value.append(case.fold)
    feature["schema_version"].int64_list.value.append(schema.version)
    feature["spec_fingerprint"].bytes_list.value.append(schema.spec_fingerprint.encode())
    if schema.covariates:
        feature["covariates"].float_list.value.extend(case.covariates)
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


def label_kind(target: Target) -> str:
    """The kind of list that a record's label is."""
    return "float_list" if target.task == "regression" else "int64_list"


def label_of(features: Mapping[str, Any], target: Target) -> Label | None:
    """A record's label; None where it has none.

    Raises:
      ContractError: it is none of this target.
    """
    found = "label" in features and list(getattr(features["label"], label_kind(target)).value)
    return target.label_of_stored(found) if found else None


def covariates_of(features: Mapping[str, Any]) -> tuple[float, ...]:
    """A record's covariates, float32 values; NaN where one is not known."""
    return tuple(features["covariates"].float_list.value) if "covariates" in features else ()


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
    unknown = set(feature) - set(schema.features)
    missing = set(schema.features) - {"label", "fold"} - set(feature)
    if unknown or missing:
        raise ContractError(
            f"features missing: {sorted(missing)}; features not listed: {shown(sorted(unknown))}"
        )

    def only(name: str, kind: str = "bytes_list") -> Any:
        values = getattr(feature[name], kind).value
        if len(values) != 1:
            raise ContractError(f"{name}: {len(values)} values found, one required")
        return values[0]

    if (version := only("schema_version", "int64_list")) != schema.version:
        raise ContractError(
            f"records do not fit: version: {schema.version} in schema, {version} in record"
        )
    found = dataclasses.replace(
        schema,
        modalities=tuple(name.decode() for name in feature["modalities"].bytes_list.value),
        shape=tuple(feature["shape"].int64_list.value)[:3],
        dtype=only("dtype").decode(),
        spec_fingerprint=only("spec_fingerprint").decode(),
    )
    schema.require_equal(found, ours="schema", theirs="record")
    raw = only("volume")
    if len(raw) != schema.volume_bytes:
        raise ContractError(f"volume of {len(raw)} bytes, schema says {schema.volume_bytes}")
    volume = np.frombuffer(raw, dtype=np.dtype(schema.dtype).newbyteorder("<"))

    def optional(name: str) -> int | None:
        absent = name not in feature or not feature[name].int64_list.value
        return None if absent else int(only(name, "int64_list"))

    case = PreparedCase(
        patient_id=only("patient_id").decode(),
        volume=volume.astype(schema.dtype, copy=False).reshape(schema.volume_shape),
        affine=np.array(feature["affine"].float_list.value, dtype=np.float64).reshape(4, 4),
        present=tuple(bool(flag) for flag in feature["present"].int64_list.value),
        label=label_of(feature, schema.target),
        fold=optional("fold"),
        covariates=covariates_of(feature),
    )
    case.check(schema)
    return case
