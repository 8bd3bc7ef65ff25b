"""The bytes of an Example are TensorFlow's, whoever writes them; a bad one is refused."""

import dataclasses

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.example import decode_case, encode_case, voxels_offset
from beam_jobs.core.record import FEATURES, PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import write_record

SCHEMA = RecordSchema(
    modalities=("T1w", "FLAIR"), shape=(3, 4, 5), dtype="uint8", spec_fingerprint="f" * 64
)


def case(dtype="uint8", **changes) -> PreparedCase:
    rng = np.random.default_rng(0)
    base = PreparedCase(
        patient_id="00005",
        volume=rng.integers(0, 255, SCHEMA.volume_shape).astype(dtype),
        affine=np.array([[0, 2.0, 0, -3], [2, 0, 0, 4], [0, 0, 5, 6], [0, 0, 0, 1]]),
        present=(True, False),
        label=1,
        fold=3,
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
@pytest.mark.parametrize("label", [None, 0, 1])
def test_tensorflow_reads_the_record_and_would_write_the_same_bytes(tmp_path, dtype, label):
    import tensorflow as tf

    schema = dataclasses.replace(SCHEMA, dtype=dtype)
    one = case(dtype, label=label, fold=None if label is None else 0)
    path = tmp_path / "x.tfrecord"
    with path.open("wb") as stream:
        write_record(stream, encode_case(one, schema))
    (data,) = [item.numpy() for item in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(data)
    assert example.SerializeToString(deterministic=True) == data
    feature = example.features.feature
    assert set(feature) <= set(FEATURES)
    assert ("label" in feature) == (label is not None)
    volume = tf.io.decode_raw(feature["volume"].bytes_list.value[0], dtype)
    assert np.array_equal(volume.numpy().reshape(schema.volume_shape), one.volume)
    assert list(feature["affine"].float_list.value) == one.affine.ravel().tolist()


def test_voxels_are_found_in_a_serialized_case():
    data = encode_case(case(), SCHEMA)
    volume = case().volume.tobytes()
    at = voxels_offset(data, volume)
    assert data[at : at + len(volume)] == volume
    with pytest.raises(ContractError, match="in one piece"):
        voxels_offset(data, volume[::-1])


def test_decode_is_the_inverse_of_encode():
    one = case()
    back = decode_case(encode_case(one, SCHEMA), SCHEMA)
    assert np.array_equal(back.volume, one.volume)
    assert np.array_equal(back.affine, one.affine)
    assert (back.patient_id, back.present, back.label, back.fold) == ("00005", (True, False), 1, 3)


def test_equal_cases_are_equal_bytes():
    assert encode_case(case(), SCHEMA) == encode_case(case(), SCHEMA)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spec_fingerprint": "0" * 64}, "spec_fingerprint"),
        ({"modalities": ("T1w", "T2w")}, "modalities"),
        ({"dtype": "uint16"}, "dtype"),
    ],
)
def test_record_of_another_contract_is_refused_naming_the_field(change, named):
    data = encode_case(case(), SCHEMA)
    with pytest.raises(ContractError, match=named):
        decode_case(data, dataclasses.replace(SCHEMA, **change))


def test_feature_that_is_not_listed_is_refused():
    import tensorflow as tf

    example = tf.train.Example.FromString(encode_case(case(), SCHEMA))
    example.features.feature["patient_name"].bytes_list.value.append(b"nobody")
    with pytest.raises(ContractError, match="patient_name"):
        decode_case(example.SerializeToString(), SCHEMA)


def test_what_a_record_claims_is_quoted_in_a_line_of_bounded_length():
    import tensorflow as tf

    for feature in ("many", "dtype", "spec_fingerprint", "modalities"):
        example = tf.train.Example.FromString(encode_case(case(), SCHEMA))
        names = [f"{place}" for place in range(2000)] if feature == "many" else [feature]
        for name in names:
            example.features.feature[name].bytes_list.value[:] = [b"x" * 9999]
        with pytest.raises(ContractError) as refused:
            decode_case(example.SerializeToString(), SCHEMA)
        assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("feature", "kind", "value"),
    [
        ("dtype", "bytes_list", []),
        ("affine", "float_list", [1.0]),
        ("patient_id", "bytes_list", [b"\xff"]),
        ("patient_id", "bytes_list", [b"1", b"2"]),
        ("label", "int64_list", [1, 1]),
    ],
)
def test_malformed_feature_is_refused_as_a_contract_error(feature, kind, value):
    import tensorflow as tf

    example = tf.train.Example.FromString(encode_case(case(), SCHEMA))
    getattr(example.features.feature[feature], kind).value[:] = value
    with pytest.raises(ContractError):
        decode_case(example.SerializeToString(), SCHEMA)


def test_case_that_is_not_what_the_schema_says_is_not_written():
    with pytest.raises(ContractError, match="schema says"):
        encode_case(case(volume=np.zeros((3, 4, 5, 1), np.uint8)), SCHEMA)
    schema = dataclasses.replace(SCHEMA, dtype="float16")
    with pytest.raises(ContractError, match="not finite"):
        encode_case(case("float16", volume=np.full(SCHEMA.volume_shape, np.nan, "f2")), schema)
