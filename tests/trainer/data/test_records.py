"""Shards to batches: every record once, in a fixed order, checked, in the stored type."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import struct
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.tfrecord import record_frames
from tests.datasets import (
    MODALITIES,
    TARGETS,
    make_cases,
    make_schema,
    write_cases,
    write_dataset,
)
from trainer.data import record_reader, records
from trainer.data.records import Records, contract_error, open_records

FOLDS = [0, 1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    directory: Path = tmp_path_factory.mktemp("dataset")
    manifest = write_dataset(
        directory, patients=26, folds=2, unlabelled=3, shards=2, modalities=("T1w", "T2w")
    )
    return str(directory), manifest


def _open(dataset: tuple[str, Manifest], folds=FOLDS, modalities=("T1w",), **kwargs) -> Records:
    return open_records(*dataset, folds, modalities=modalities, **kwargs)


def _batches(records: Records, **kwargs) -> list[list[str]]:
    """The patients of each training batch."""
    batches = records.training_batches(**{"batch_size": 4, "seed": 3, "epochs": 1, **kwargs})
    return [
        [name.decode() for name in batch["patient_id"]] for batch in batches.as_numpy_iterator()
    ]


def _epochs(records: Records, **kwargs) -> list[list[str]]:
    """The order of each epoch's patients."""
    names = list(itertools.chain(*_batches(records, **kwargs)))
    return [names[i : i + records.count] for i in range(0, len(names), records.count)]


def test_each_epoch_has_every_record_once_in_an_order_of_its_own(dataset) -> None:
    records = _open(dataset)
    first, second = _epochs(records, epochs=2)
    labelled = sorted(name for name, label, _ in dataset[1].patients if label is not None)
    assert sorted(first) == sorted(second) == labelled
    assert first != second


@pytest.mark.parametrize("cache", ["none", "memory", "file"])
def test_order_depends_on_seed_and_epoch_alone(dataset, cache, monkeypatch) -> None:
    tf.random.set_seed(1)
    epochs = _epochs(_open(dataset, cache="none"), epochs=3)
    tf.random.set_seed(2)
    monkeypatch.setattr(records, "_READS", 7)
    with _open(dataset, cache=cache) as again:
        assert _epochs(again, epochs=3, first_epoch=1) == epochs[1:]
        assert _epochs(again, epochs=1, seed=4) != epochs[:1]
        assert _epochs(again, epochs=1, batch_size=26) == epochs[:1]


@pytest.mark.parametrize("parts", [2, 3])
def test_processes_together_read_the_batches_of_one(dataset, parts) -> None:
    """26 in batches of 8: the last has 2 rows, too few for three."""
    records = _open(dataset)
    alone = _batches(records, batch_size=8, epochs=2)
    shares = [
        _batches(records, batch_size=8, epochs=2, part=(index, parts)) for index in range(parts)
    ]
    together = [list(itertools.chain(*batch)) for batch in zip(*shares, strict=True)]
    assert together == [batch for batch in alone if len(batch) >= parts]
    assert len(together) == 2 * records.steps(8, parts)
    sizes = [{len(share[step]) for share in shares} for step in range(len(together))]
    assert all(max(size) - min(size) <= 1 and min(size) > 0 for size in sizes)


def test_a_process_reads_its_own_rows_only(dataset, monkeypatch) -> None:
    read = []
    original = record_reader.Shard.read_voxels

    def read_voxels(shard: record_reader.Shard, number: int, *rest: Any) -> None:
        read.append(number)
        original(shard, number, *rest)

    monkeypatch.setattr(record_reader.Shard, "read_voxels", read_voxels)
    own = _batches(_open(dataset), batch_size=8, part=(1, 2))
    assert len(read) == sum(len(batch) for batch in own) == 13


def test_smaller_batches_than_processes_are_refused(dataset) -> None:
    with pytest.raises(UsageError, match="--batch_size 2 is less than the 3 processes"):
        _open(dataset).training_batches(batch_size=2, seed=0, epochs=1, part=(0, 3))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_volumes_arrive_as_stored_with_the_channels_asked_for(tmp_path: Path, dtype: str) -> None:
    schema = make_schema(dtype=dtype)
    cases = make_cases(schema, patients=4, folds=1)
    manifest = write_cases(tmp_path, cases, schema, folds=1)
    by_id = {case.patient_id: case for case in cases}
    for names in (("T1wCE",), ("T1w", "T1wCE"), ("T2w", "FLAIR"), MODALITIES):
        records = open_records(tmp_path, manifest, [0], modalities=names, cache="none")
        channels = [MODALITIES.index(name) for name in names]
        for batch in records.evaluation_batches(batch_size=3).as_numpy_iterator():
            assert batch["volume"].dtype == dtype
            for index, name in enumerate(batch["patient_id"]):
                case = by_id[name.decode()]
                np.testing.assert_array_equal(batch["volume"][index], case.volume[..., channels])
                assert batch["label"][index] == case.label


@pytest.mark.parametrize("cache", ["none", "memory", "file"])
def test_records_of_other_writers_are_read_as_tensorflow_reads_them(tmp_path, cache) -> None:
    """Its own serializer, with the features in another order; its own parser as the oracle."""
    manifest = write_dataset(tmp_path, patients=5, folds=1, modalities=("T1w",))
    (entry,) = manifest.shards
    file = tmp_path / entry.name
    originals = [raw.numpy() for raw in tf.data.TFRecordDataset(str(file))]
    with tf.io.TFRecordWriter(str(file)) as writer:
        for raw in originals:
            example, turned = tf.train.Example.FromString(raw), tf.train.Example()
            for name in reversed(list(example.features.feature)):
                turned.features.feature[name].CopyFrom(example.features.feature[name])
            writer.write(turned.SerializeToString())
    data = file.read_bytes()
    entry = dataclasses.replace(entry, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest = dataclasses.replace(manifest, shards=(entry,))
    spec = {
        "volume": tf.io.FixedLenFeature([], tf.string),
        "patient_id": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    wanted = [tf.io.parse_single_example(raw, spec) for raw in tf.data.TFRecordDataset(str(file))]
    records = open_records(tmp_path, manifest, [0], modalities=("T1w",), cache=cache)
    (batch,) = records.evaluation_batches(batch_size=5).as_numpy_iterator()
    assert [row.tobytes() for row in batch["volume"]] == [w["volume"].numpy() for w in wanted]
    assert batch["patient_id"].tolist() == [w["patient_id"].numpy() for w in wanted]
    assert batch["label"].tolist() == [w["label"].numpy() for w in wanted]


def test_unlabelled_records_come_with_minus_one_and_train_nothing(dataset) -> None:
    records = _open(dataset, [None])
    (batch,) = records.evaluation_batches(batch_size=8).as_numpy_iterator()
    assert batch["label"].tolist() == [-1, -1, -1]
    with pytest.raises(ContractError, match="without a label cannot be trained on: 00026, 00027"):
        records.training_batches(batch_size=2, seed=0, epochs=1)


def test_replaced_labels_reach_training_and_evaluation(dataset) -> None:
    labels = {name: 1 for name, _, fold in dataset[1].patients if fold == 0}
    records = _open(dataset, [0], labels=labels)
    (batch,) = records.evaluation_batches(batch_size=64).as_numpy_iterator()
    (trained,) = records.training_batches(batch_size=64, seed=0, epochs=1).as_numpy_iterator()
    assert batch["label"].min() == 1
    assert trained["label"].dtype == np.float32
    assert trained["label"].shape == (14, 1)
    assert trained["label"].min() == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"target": TARGETS["regression"]},
            "schema_version 1 in the record of 00000, 2 in the man",
        ),
        ({"spec_fingerprint": "other"}, "spec_fingerprint b'.*', b'other' in the manifest"),
        ({"dtype": "uint16"}, "2880 bytes of voxels .*, 5760 in the manifest"),
    ],
)
def test_records_off_the_manifests_schema_are_refused(dataset, wrong, message) -> None:
    data, manifest = dataset
    manifest = dataclasses.replace(manifest, schema=dataclasses.replace(manifest.schema, **wrong))
    with pytest.raises(ContractError, match=message.replace("', b", "' in the record of 00000, b")):
        _open((data, manifest), [0])


def test_a_record_of_another_fold_is_refused(dataset) -> None:
    data, manifest = dataset
    moved = tuple(
        dataclasses.replace(entry, fold=None if entry.fold is None else 1 - entry.fold)
        for entry in manifest.shards
    )
    with pytest.raises(ContractError, match="fold 0 in the record of 00000, 1 in the manifest"):
        _open((data, dataclasses.replace(manifest, shards=moved)), [1])


def test_a_shard_that_is_missing_or_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, patients=8, folds=2)
    shard = tmp_path / manifest.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ContractError, match=f"{shard}: .* bytes, the manifest says"):
        _open((str(tmp_path), manifest))
    shard.unlink()
    with pytest.raises(ContractError, match=f"{shard}: .*does not exist"):
        _open((str(tmp_path), manifest))


def _damage(file: Path) -> int:
    """Flips a bit in the middle record of three; returns where that record begins."""
    data = bytearray(file.read_bytes())
    start: int = 16 + struct.unpack("<Q", data[:8])[0]
    data[start + 500] ^= 1
    file.write_bytes(bytes(data))
    return start


def test_damaged_shards_are_named_with_both_hashes_before_anything_is_read(tmp_path) -> None:
    manifest = write_dataset(tmp_path, patients=12, folds=4, modalities=("T1w",))
    damaged = [manifest.shards[0], manifest.shards[2]]
    starts = [_damage(tmp_path / entry.name) for entry in damaged]
    with pytest.raises(ContractError) as caught:
        _open((str(tmp_path), manifest), [0, 1, 2])
    message = str(caught.value)
    assert message.startswith("shards with a wrong hash or count: ")
    for entry, start in zip(damaged, starts, strict=True):
        found = hashlib.sha256((tmp_path / entry.name).read_bytes()).hexdigest()
        assert f"{tmp_path / entry.name} (corrupt record at byte {start}; sha256 {found}" in message
        assert f"the manifest says {entry.sha256}" in message
    assert manifest.shards[1].name not in message
    assert _open((str(tmp_path), manifest), [3]).count == 2


def test_another_number_of_records_than_the_manifests_is_refused(dataset) -> None:
    data, manifest = dataset
    first, *rest = manifest.shards
    fewer = dataclasses.replace(first, patients=first.patients[:-1])
    with pytest.raises(ContractError, match=rf"{first.name} \(7 records, the manifest says 6\)"):
        _open((data, dataclasses.replace(manifest, shards=(fewer, *rest))), [0])


@pytest.mark.parametrize("cache", ["none", "file"])
def test_damage_that_comes_while_a_run_reads_is_reported_by_shard(
    tmp_path, cache, monkeypatch
) -> None:
    """Or that was hashed with the rest when the shard was written."""
    manifest = write_dataset(tmp_path, patients=3, folds=1, modalities=("T1w",))
    file = tmp_path / manifest.shards[0].name
    monkeypatch.setattr(record_reader, "record_frames", _frames_then_damage(file))
    records = _open((str(tmp_path), manifest), [0], cache=cache)
    if cache == "file":
        cached = records._rows[0][0].cached
        assert cached is not None
        cache_file, offset = cached
        os.pwrite(cache_file.descriptor, b"\xff\x00\xff", offset + 500)
    with pytest.raises(tf.errors.OpError) as caught:
        list(records.evaluation_batches(batch_size=2))
    message = str(contract_error(caught.value, data=str(tmp_path), manifest=manifest))
    assert message.startswith(f"{file}: corrupt record at byte ")
    assert "\n" not in message


def _frames_then_damage(file: Path):
    def wrapped(content):
        found = list(record_frames(content))
        _damage(file)
        return found

    return wrapped


def test_a_shard_changed_between_two_folds_is_hashed_again(tmp_path) -> None:
    manifest = write_dataset(tmp_path, patients=3, folds=1, modalities=("T1w",))
    file = tmp_path / manifest.shards[0].name
    assert _open((str(tmp_path), manifest), [0], cache="none").count == 3
    _damage(file)
    with pytest.raises(ContractError, match="wrong hash"):
        _open((str(tmp_path), manifest), [0], cache="none")


@pytest.fixture
def opened(monkeypatch) -> mock.Mock:
    """Called with each shard that is read whole."""
    read = mock.Mock(wraps=files.read)
    monkeypatch.setattr(files, "read", read)
    monkeypatch.setattr(record_reader, "_left_in_place", {})
    monkeypatch.setattr(record_reader.ShardStore, "_living", weakref.WeakValueDictionary())
    return read


@pytest.mark.parametrize("cache", ["none", "memory", "file"])
def test_open_records_share_what_they_read(dataset, tmp_path, opened, cache) -> None:
    directory = tmp_path if cache == "file" else None
    everything = _open(dataset, cache=cache, cache_dir=directory)
    assert opened.call_count == 4
    _open(dataset, [1], cache=cache, cache_dir=directory)
    assert opened.call_count == 4
    everything.close()


def test_a_cache_file_has_no_name_and_goes_with_its_readers(dataset, tmp_path, opened) -> None:
    (tmp_path / "left-over.lockfile").write_bytes(b"of a killed run")
    records = _open(dataset, cache="file", cache_dir=tmp_path)
    cached = records._rows[0][0].cached
    assert cached is not None
    descriptor = cached[0].descriptor
    del cached  # else it would live on
    assert os.fstat(descriptor).st_size == sum(entry.bytes for entry in dataset[1].shards[:4])
    assert [path.name for path in tmp_path.iterdir()] == ["left-over.lockfile"]
    batches = records.training_batches(batch_size=4, seed=0, epochs=2)
    assert len(list(batches)) == 14
    records.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(tf.errors.InvalidArgumentError, match="these records are closed"):
        list(batches)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (None, {"cache": "tape"}, "--cache tape: known: auto, memory, file, none"),
        (None, {"cache": "memory", "cache_dir": Path()}, "a cache directory is for --cache file"),
        (None, {"cache": "file", "cache_dir": Path("nowhere")}, "nowhere: no such directory"),
        ("s3://bucket/dataset", {"cache": "none"}, "--cache none is for local data"),
        ("ftp://host/dataset", {}, "cannot use ftp://; known: local paths, gs://"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(dataset, data, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        _open((data or dataset[0], dataset[1]), **options)


@pytest.mark.parametrize(
    ("data", "pages", "kind"),
    [
        ("local", 1 << 30, "memory"),
        ("local", 1, "none"),
        ("gs://bucket/data", 1 << 30, "memory"),
        ("gs://bucket/data", 1, "file"),
    ],
)
def test_auto_keeps_in_memory_what_fits_into_a_quarter(monkeypatch, data, pages, kind) -> None:
    known = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}
    monkeypatch.setattr(os, "sysconf", known.__getitem__)
    assert records._resolve_cache("auto", None, data, 1025) == kind


def test_a_full_disk_ends_in_one_line_that_names_the_place(dataset, tmp_path, monkeypatch) -> None:
    from beam_jobs.common.cli import CommandError

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CommandError, match=f"cache file in {tmp_path}, 0 MB so far: No space left"):
        _open(dataset, cache="file", cache_dir=tmp_path)


def test_errors_about_something_else_are_not_the_records(dataset) -> None:
    error = tf.errors.ResourceExhaustedError(None, None, "out of memory")
    assert contract_error(error, data=dataset[0], manifest=dataset[1]) is None
