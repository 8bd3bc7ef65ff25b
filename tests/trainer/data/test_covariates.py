"""Labels and covariates of any task, from records into batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import read_manifest
from beam_jobs.core.tfrecord import read_shard
from tests.datasets import AGE_AND_SITE, TARGETS, make_cases, make_schema, write_cases
from trainer.api import open_records
from trainer.data import records
from trainer.data.targets import targets_of, truth_of

SCHEMA: dict[str, Any] = {"shape": (4, 4, 3), "modalities": ("T1w",)}


def _write(directory: Path, task: str) -> None:
    schema = make_schema(**SCHEMA, target=TARGETS[task], covariates=AGE_AND_SITE)
    write_cases(directory, make_cases(schema, patients=12, folds=2, unlabelled=1), schema, folds=2)


@pytest.mark.parametrize(
    ("task", "cache"),
    list(zip(TARGETS, ("memory", "file", "none", "memory"), strict=True)),
)
def test_each_row_has_its_patients_label_and_covariates(
    task: str, cache: str, tmp_path: Path
) -> None:
    _write(tmp_path, task)
    manifest = read_manifest(tmp_path)
    cases = {
        case.patient_id: case
        for entry in manifest.shards
        for case in read_shard(str(tmp_path), entry, manifest.schema)
    }
    with open_records(
        tmp_path, folds=[0, 1, None], covariates=["site", "age"], cache=cache
    ) as every:
        batches = list(every.evaluation_batches(batch_size=5).as_numpy_iterator())
    assert sum(len(batch["patient_id"]) for batch in batches) == 13
    for batch in batches:
        own = [cases[name.decode()] for name in batch["patient_id"]]
        expected = truth_of(TARGETS[task], [case.label for case in own])
        np.testing.assert_array_equal(batch["label"], expected)
        np.testing.assert_array_equal(
            batch["covariates"], np.array([case.covariates[::-1] for case in own], np.float32)
        )
        np.testing.assert_array_equal(batch["volume"], np.stack([case.volume for case in own]))
    with open_records(tmp_path, folds=[0], covariates=(), cache=cache) as some:
        batches = list(some.training_batches(batch_size=4, seed=1, epochs=1).as_numpy_iterator())
    for batch in batches:
        assert "covariates" not in batch
        own = [cases[name.decode()] for name in batch["patient_id"]]
        truth = truth_of(TARGETS[task], [case.label for case in own])
        np.testing.assert_array_equal(batch["label"], targets_of(TARGETS[task], truth))
        assert batch["label"].dtype == np.float32


def test_records_without_a_label_are_not_trained_on(tmp_path: Path) -> None:
    _write(tmp_path, "multilabel")
    with (
        open_records(tmp_path, folds=[0, None]) as found,
        pytest.raises(ContractError, match=r"records without a label .*: 00012"),
    ):
        found.training_batches(batch_size=4, seed=1, epochs=1)


def test_covariates_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    _write(tmp_path, "binary")
    with pytest.raises(UsageError, match="unknown covariate 'sex'; the dataset has age, site"):
        open_records(tmp_path, covariates=["sex"])


def test_records_with_fewer_covariates_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    schema = make_schema(**SCHEMA, target=TARGETS["multiclass"], covariates=AGE_AND_SITE)
    fewer = dataclasses.replace(schema, covariates=AGE_AND_SITE[:1])
    found = write_cases(tmp_path, make_cases(fewer, patients=12, folds=2), fewer, folds=2)
    manifest = dataclasses.replace(found, schema=schema)
    with pytest.raises(ContractError, match=r"1 covariates in the record of 0000\d, 2 in "):
        records.open_records(tmp_path, manifest, [0], modalities=("T1w",))
