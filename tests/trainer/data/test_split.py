"""Folds: no patient on both sides, both classes in each."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import Manifest, ShardPatient
from tests.datasets import TARGETS, write_dataset
from trainer.data.split import check_folds, folds_in_use, folds_to_train, labels_of, permuted_labels


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    directory: Path = tmp_path_factory.mktemp("dataset")
    return write_dataset(directory, patients=24, folds=3, unlabelled=2)


def _with_patients(manifest: Manifest, fold: int, patients: list[ShardPatient]) -> Manifest:
    shards = tuple(
        dataclasses.replace(shard, patients=tuple(patients)) if shard.fold == fold else shard
        for shard in manifest.shards
    )
    return dataclasses.replace(manifest, shards=shards)


def test_sound_folds_are_accepted(manifest: Manifest) -> None:
    check_folds(manifest)
    assert folds_to_train(manifest, None) == (0, 1, 2)
    assert folds_to_train(manifest, 1) == (1,)


def test_a_patient_in_two_folds_is_refused_by_name(manifest: Manifest) -> None:
    stolen = manifest.shards_of([0])[0].patients[0]
    leaking = _with_patients(manifest, 1, [*manifest.shards_of([1])[0].patients, stolen])
    with pytest.raises(ContractError, match=rf"{stolen.patient_id} \(fold 0, fold 1\)"):
        check_folds(leaking)


def test_a_fold_without_one_class_is_refused(manifest: Manifest) -> None:
    alone = [p for p in manifest.shards_of([2])[0].patients if p.label == 1]
    with pytest.raises(ContractError, match="fold 2 has 0 negative and 4 positive"):
        check_folds(_with_patients(manifest, 2, alone))


def test_a_fold_the_dataset_lacks_is_refused_with_those_it_has(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="folds 0 to 2"):
        folds_to_train(manifest, 3)


def test_an_outer_fold_is_in_no_training(manifest: Manifest) -> None:
    assert folds_in_use(manifest, None) == (0, 1, 2)
    assert folds_in_use(manifest, 1) == folds_to_train(manifest, None, 1) == (0, 2)
    assert folds_to_train(manifest, 2, 1) == (2,)
    with pytest.raises(UsageError, match="--outer_fold 3: the dataset has folds 0 to 2"):
        folds_to_train(manifest, None, 3)
    with pytest.raises(UsageError, match="at least 3 are needed"):
        folds_to_train(dataclasses.replace(manifest, folds=2), None, 1)


def test_permutation_keeps_each_folds_balance_and_depends_on_the_seed(manifest: Manifest) -> None:
    labels = labels_of(manifest)
    permuted = permuted_labels(manifest, 1)
    assert permuted.keys() == labels.keys()
    assert permuted != labels
    assert permuted == permuted_labels(manifest, 1) != permuted_labels(manifest, 2)
    for fold in range(3):
        names = [name for name, _, own in manifest.patients if own == fold]
        assert sum(permuted[n] for n in names) == sum(labels[n] for n in names)


@pytest.mark.parametrize(("name", "where"), [("unlabelled", "unlabelled"), ("test", "test")])
def test_a_patient_in_a_fold_and_outside_is_refused_under_any_spelling(
    manifest: Manifest, name: str, where: str
) -> None:
    """A test set that was trained on would be none."""
    stolen = manifest.shards_of([0])[0].patients[1]
    outside = dataclasses.replace(
        manifest.shards_of([None])[0],
        name=f"{name}-00000-of-00001.tfrecord",
        patients=(ShardPatient(patient_id=stolen.patient_id.lstrip("0"), label=1),),
    )
    inside = [shard for shard in manifest.shards if shard.fold is not None]
    leaking = dataclasses.replace(manifest, shards=(*inside, outside))
    with pytest.raises(ContractError, match=rf"\(fold 0, {where}\)"):
        check_folds(leaking)


def test_test_patients_are_in_no_fold_and_lend_no_label(manifest: Manifest) -> None:
    outside = dataclasses.replace(
        manifest.shards_of([None])[0],
        name="test-00000-of-00001.tfrecord",
        patients=(ShardPatient(patient_id="held out", label=1),),
    )
    inside = [shard for shard in manifest.shards if shard.fold is not None]
    with_test = dataclasses.replace(manifest, shards=(*inside, outside))
    check_folds(with_test)
    assert labels_of(with_test) == labels_of(manifest)
    assert permuted_labels(with_test, 1) == permuted_labels(manifest, 1)


def test_labels_of_0_and_1_are_permuted_as_they_always_were(manifest: Manifest) -> None:
    """A permuted run that is resumed, or repeated, has the labels that it had."""
    rng, labels = np.random.default_rng(7), labels_of(manifest)
    for fold in range(manifest.folds):
        names = [name for name, _, own in manifest.patients if own == fold]
        shuffled = rng.permutation([labels[name] for name in names])
        labels.update(zip(names, shuffled.tolist(), strict=True))
    assert permuted_labels(manifest, 7) == labels


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_labels_of_any_task_are_permuted_whole_within_folds(task: str, tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path, patients=24, folds=2, target=TARGETS[task])
    check_folds(manifest)
    labels, permuted = labels_of(manifest), permuted_labels(manifest, 1)
    assert permuted != labels
    for fold in range(2):
        names = [name for name, _, own in manifest.patients if own == fold]
        assert Counter(permuted[n] for n in names) == Counter(labels[n] for n in names)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("multiclass", [0, 1, 1], "fold 1 has no patient of class '4': the macro AUC needs all"),
        ("multilabel", [(0, 1), (1, 1), (0, None)], "0 negative and 2 positive patients of 'necr"),
        ("regression", [1.0, 1.0, 1.0], "3 patients with 1 different values"),
        ("regression", [1.0, 2.0], "2 patients with 2 different values"),
    ],
)
def test_a_fold_that_cannot_be_scored_is_refused_with_what_it_lacks(
    task: str, labels: list[Any], message: str, tmp_path: Path
) -> None:
    manifest = write_dataset(tmp_path, patients=24, folds=2, target=TARGETS[task])
    few = [ShardPatient(patient_id=f"x{n}", label=label) for n, label in enumerate(labels)]
    with pytest.raises(ContractError, match=message):
        check_folds(_with_patients(manifest, 1, few))
