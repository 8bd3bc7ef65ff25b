"""Shards to batches: every record once, in a fixed order, checked, in the stored type."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import ContractError
from tests.datasets import MODALITIES, make_cases, make_schema, write_cases, write_dataset
from trainer.input_pipeline import Records, contract_error, open_records


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    directory: Path = tmp_path_factory.mktemp("dataset")
    return directory, write_dataset(directory, patients=26, folds=2, unlabelled=3, shards=2)


def _epochs(records: Records, **kwargs: int) -> list[list[float]]:
    """The order of each epoch's records, told by their volumes' means."""
    batches = records.training_batches(**{"batch_size": 4, "seed": 3, **kwargs})
    means = [float(v.mean()) for volume, _ in batches.as_numpy_iterator() for v in volume]
    return [means[i : i + records.count] for i in range(0, len(means), records.count)]


@pytest.mark.parametrize("cache_bytes", [None, 0])
def test_each_epoch_has_every_record_once_in_an_order_of_its_own(
    dataset: tuple[Path, Manifest], cache_bytes: int | None
) -> None:
    records = open_records(*dataset, [0, 1], modalities=MODALITIES, cache_bytes=cache_bytes)
    first, second = _epochs(records, epochs=2)
    assert len(first) == records.count == 26
    assert sorted(first) == sorted(second)
    assert first != second


def test_order_depends_on_seed_and_epoch_alone(dataset: tuple[Path, Manifest]) -> None:
    records = open_records(*dataset, [0, 1], modalities=MODALITIES)
    tf.random.set_seed(1)
    epochs = _epochs(records, epochs=3)
    tf.random.set_seed(2)
    again = open_records(*dataset, [0, 1], modalities=MODALITIES)
    assert _epochs(again, epochs=3, first_epoch=1) == epochs[1:]
    assert _epochs(again, epochs=1, seed=4) != epochs[:1]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_volumes_arrive_as_stored_with_the_channels_asked_for(tmp_path: Path, dtype: str) -> None:
    schema = make_schema(dtype=dtype)
    cases = make_cases(schema, patients=4, folds=1)
    manifest = write_cases(tmp_path, cases, schema, folds=1)
    by_id = {case.patient_id: case for case in cases}
    for names in (("T1wCE",), ("T1w", "T1wCE"), ("T2w", "FLAIR"), MODALITIES):
        records = open_records(tmp_path, manifest, [0], modalities=names)
        channels = [MODALITIES.index(name) for name in names]
        for batch in records.evaluation_batches(batch_size=3).as_numpy_iterator():
            assert batch["volume"].dtype == dtype
            for index, name in enumerate(batch["patient_id"]):
                case = by_id[name.decode()]
                np.testing.assert_array_equal(batch["volume"][index], case.volume[..., channels])
                assert batch["label"][index] == case.label


def test_unlabelled_records_come_with_minus_one(dataset: tuple[Path, Manifest]) -> None:
    records = open_records(*dataset, [None], modalities=("T1w",))
    (batch,) = records.evaluation_batches(batch_size=8).as_numpy_iterator()
    assert batch["label"].tolist() == [-1, -1, -1]


def test_replaced_labels_reach_training_and_evaluation(dataset: tuple[Path, Manifest]) -> None:
    labels = {name: 1 for name, _, fold in dataset[1].patients if fold == 0}
    records = open_records(*dataset, [0], modalities=("T1w",), labels=labels)
    (batch,) = records.evaluation_batches(batch_size=64).as_numpy_iterator()
    ((_, label),) = records.training_batches(batch_size=64, seed=0, epochs=1).as_numpy_iterator()
    assert batch["label"].min() == 1
    assert label.shape == (14, 1)
    assert label.min() == 1


@pytest.mark.parametrize(
    "wrong", [{"version": 7}, {"spec_fingerprint": "other"}, {"dtype": "uint16"}]
)
def test_records_off_the_manifests_schema_are_refused(
    dataset: tuple[Path, Manifest], wrong: dict[str, object]
) -> None:
    directory, manifest = dataset
    schema = dataclasses.replace(manifest.schema, **wrong)  # type: ignore[arg-type]
    records = open_records(
        directory, dataclasses.replace(manifest, schema=schema), [0], modalities=("T1w",)
    )
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        list(records.evaluation_batches(batch_size=4))
    refusal = contract_error(caught.value, directory=directory, manifest=manifest)
    assert "record off its contract" in str(refusal)


def test_a_record_of_another_fold_is_refused(dataset: tuple[Path, Manifest]) -> None:
    records = dataclasses.replace(open_records(*dataset, [0], modalities=("T1w",)), folds=(1,))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        list(records.training_batches(batch_size=4, seed=0, epochs=1))
    directory, manifest = dataset
    assert "fold" in str(contract_error(caught.value, directory=directory, manifest=manifest))


def test_a_shard_that_is_missing_or_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, patients=8, folds=2)
    shard = tmp_path / manifest.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ContractError, match=f"{shard.name}.*bytes"):
        open_records(tmp_path, manifest, [0], modalities=("T1w",))
    shard.unlink()
    with pytest.raises(ContractError, match=f"{shard.name}.*does not exist"):
        open_records(tmp_path, manifest, [0], modalities=("T1w",))


def test_a_corrupt_shard_becomes_a_contract_error(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, patients=8, folds=2)
    shard = tmp_path / manifest.shards[0].name
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(bytes(data))
    records = open_records(tmp_path, manifest, [0], modalities=("T1w",))
    with pytest.raises(tf.errors.DataLossError) as caught:
        list(records.evaluation_batches(batch_size=4))
    told = str(contract_error(caught.value, directory=tmp_path, manifest=manifest))
    assert told.startswith("corrupt shard: corrupted record at ")
    assert told.endswith(f": {shard}")
    first = dataclasses.replace(
        manifest.shards[0], sha256=hashlib.sha256(shard.read_bytes()).hexdigest()
    )
    born_so = dataclasses.replace(manifest, shards=(first, *manifest.shards[1:]))
    told = str(contract_error(caught.value, directory=tmp_path, manifest=born_so))
    assert "damaged when it was written" in told
