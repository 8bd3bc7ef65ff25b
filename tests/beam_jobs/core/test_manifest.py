"""A manifest is believed only as far as every field is one that a conversion can have written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, fingerprint
from beam_jobs.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    ShardPatient,
    read_manifest,
)
from beam_jobs.core.record import RecordSchema

SPEC = {"shape": [4, 3, 2]}


def manifest() -> Manifest:
    schema = RecordSchema(
        modalities=("T1w",), shape=(4, 3, 2), dtype="uint8", spec_fingerprint=fingerprint(SPEC)
    )
    folds: tuple[tuple[str, int | None], ...] = (("fold-0", 0), ("fold-1", 1), ("unlabelled", None))
    return Manifest(
        schema=schema,
        spec=SPEC,
        folds=2,
        seed=0,
        id_policy="keep",
        counts={"files": {"used": 3, "rejected": 0}, "reasons": {}},
        shards=tuple(
            ShardEntry(
                name=f"{stem}-00000-of-00001.tfrecord",
                fold=fold,
                bytes=100,
                sha256=f"{number:064x}",
                patients=(
                    ShardPatient(patient_id=f"{number}", label=None if fold is None else number),
                ),
            )
            for number, (stem, fold) in enumerate(folds)
        ),
    )


def changed(path: str, value: Any) -> str:
    """The manifest's text with one member replaced; numbers in the path are places in lists."""
    data = manifest().to_json()
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = data
    for part in way:
        inner = inner[part]
    inner[last] = value
    return json.dumps(data)


def test_a_manifest_comes_back_from_its_text_and_bytes() -> None:
    text = manifest().dumps()
    assert Manifest.loads(text) == Manifest.loads(text.encode()) == manifest()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("folds", "5", "folds: '5' found, a whole number required"),
        ("folds", True, "folds: True found, a whole number required"),
        ("folds", 2.0, "folds: 2.0 found, a whole number required"),
        ("folds", 0, "folds: 0 found, at least 1 required"),
        ("folds", 10_001, "folds: 10001 found, at most 10000 required"),
        ("folds", 10**18, "folds: 1000000000000000000 found, at most 10000 required"),
        ("spec.shape", [4, 3, 3], "spec: its fingerprint is "),
        ("schema.axes", ["x"], "schema.axes: ['x'] found, ['row', "),
        ("schema.features", [], "schema.features: [] found, ['volume', "),
        ("schema.shape", [2**20, 2**20, 1], "a volume of 1099511627776 bytes: at most 2146"),
        ("schema.shape", [2**32, 2**32, 1], "a volume of 18446744073709551616 bytes: at most 2146"),
        ("seed", None, "seed: None found"),
        ("spec", None, "spec: None found, an object required"),
        ("schema", [], "schema: [] found, an object required"),
        ("schema.shape", ["4", 3, 2], "schema.shape: ['4', 3, 2] found"),
        ("schema.shape", [4, 3, 2.5], "schema.shape: [4, 3, 2.5] found"),
        ("schema.modalities", "T1w", "schema.modalities: 'T1w' found"),
        ("schema.spec_fingerprint", 5, "schema.spec_fingerprint: 5 found"),
        ("id_policy", "rot13", "id_policy: 'rot13' found, keep or hmac required"),
        ("id_policy", [], "id_policy: [] found"),
        ("counts", [], "counts: [] found, an object required"),
        ("counts.files.used", -1, "counts.files.used: -1 found, at least 0 required"),
        ("counts.files.used", "3", "counts.files.used: '3' found"),
        ("shards", {}, "shards: {} found, a list required"),
        ("shards", [], "shards: [] found, at least one shard required"),
        ("shards.1", "a", "shards[1]: 'a' found, an object required"),
        ("shards.1.name", 5, "shards[1].name: 5 found"),
        ("shards.1.name", "../fold-1-00000-of-00001.tfrecord", "shards[1].name: '../fold-1-0"),
        ("shards.1.name", "fold-1-00000-of-00001.tfrecord\n", "shards[1].name: "),
        ("shards.1.name", "fold-\u0661-00000-of-00001.tfrecord", "shards[1].name: "),
        ("shards.1.name", "fold-0-00000-of-00001.tfrecord", "shards[1].fold: 1 found"),
        ("shards.1.fold", 2, "shards[1].fold: 2 found, a fold from 0 to 1, or null, required"),
        ("shards.1.fold", -1, "shards[1].fold: -1 found"),
        ("shards.1.fold", True, "shards[1].fold: True found"),
        ("shards.1.fold", None, "shards[1].fold: None found"),
        ("shards.1.bytes", -1, "shards[1].bytes: -1 found, at least 0 required"),
        ("shards.1.bytes", "100", "shards[1].bytes: '100' found"),
        ("shards.1.sha256", "abc", "shards[1].sha256: 'abc' found, 64 hexadecimal digits"),
        ("shards.1.count", 2, "shards[1].count: 2 found, 1, as the shards"),
        ("shards.1.patients", None, "shards[1].patients: None found, a list required"),
        ("shards.1.patients.0", [], "shards[1].patients[0]: [] found, an object required"),
        ("shards.1.patients.0.label", 7, "shards[1].patients[0].label: 7 found, 0, 1 or null"),
        ("shards.1.patients.0.label", "1", "shards[1].patients[0].label: '1' found"),
        ("shards.1.patients.0.label", True, "shards[1].patients[0].label: True found"),
        ("shards.1.patients.0.patient_id", 5, "shards[1].patients[0].patient_id: 5 found"),
        ("shards.1.patients.0.patient_id", "", "shards[1].patients[0].patient_id: '' found"),
        ("shards.1.patients.0.patient_id", "\ud800", "shards[1].patients[0].patient_id: "),
        ("dataset_fingerprint", "0" * 64, "dataset_fingerprint: "),
        ("spec_fingerprint", "other", "spec_fingerprint: 'other' found"),
        ("label_balance", {}, "label_balance: {} found"),
        ("shards.1.sha256", "f" * 64, "dataset_fingerprint: "),
        ("shards.1.patients.0.label", 0, "label_balance: "),
    ],
)
def test_a_malformed_field_is_refused_by_name_and_value(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(ContractError) as refused:
        Manifest.loads(changed(path, value))
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("path", ["folds", "spec", "shards.0.label", "shards.2.patients"])
def test_a_missing_field_is_refused_by_name(path: str) -> None:
    data = manifest().to_json()
    inner: Any = data
    *way, last = path.split(".")
    for part in way:
        inner = inner[int(part)] if part.isdigit() else inner[part]
    if last == "label":
        inner, last = inner["patients"][0], "label"
    del inner[last]
    with pytest.raises(ContractError, match=rf"{last} is missing"):
        Manifest.from_json(data)


def test_a_shard_listed_twice_is_refused() -> None:
    data = manifest().to_json()
    twin = {**data["shards"][1], "patients": [{"patient_id": "9", "label": 1}]}
    with pytest.raises(ContractError, match="shards listed twice: fold-1-"):
        Manifest.from_json({**data, "shards": [*data["shards"], twin]})


@given(st.binary(max_size=60))
def test_other_bytes_than_a_manifest_are_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ContractError):
        Manifest.loads(data)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, b"\xff{}", "[]", "null"])
def test_json_of_another_kind_is_refused(text: str | bytes) -> None:
    with pytest.raises(ContractError, match=r"not|64 bits"):
        Manifest.loads(text)


def test_a_dataset_that_is_none_is_named_by_its_path(tmp_path):
    with pytest.raises(UsageError, match=rf"{tmp_path}/nowhere: no such directory"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=rf"{tmp_path}: no manifest.json: no dataset"):
        read_manifest(tmp_path)
    file = tmp_path / MANIFEST_NAME
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=f"{file}: no such directory"):
        read_manifest(file)
    with pytest.raises(ContractError, match=rf"{file}: not UTF-8 text"):
        read_manifest(str(tmp_path))
    file.write_text(manifest().dumps())
    assert read_manifest(tmp_path) == manifest()
