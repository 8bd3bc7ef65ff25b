"""Records of version 2: any target and covariates; version 1 where that suffices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.target import PLAIN, Target
from beam_jobs.core.example import decode_case, encode_case
from beam_jobs.core.manifest import Manifest, read_manifest
from beam_jobs.core.record import RecordSchema
from tests.datasets import AGE_AND_SITE, TARGETS, make_cases, make_schema, write_dataset


@pytest.mark.parametrize("task", TARGETS)
def test_case_of_every_task_is_read_back_as_written(task: str) -> None:
    schema = make_schema(target=TARGETS[task], covariates=AGE_AND_SITE)
    assert RecordSchema.from_json(schema.to_json()) == schema
    for case in make_cases(schema, patients=8, unlabelled=1):
        found = decode_case(encode_case(case, schema), schema)
        assert (found.label, found.fold) == (case.label, case.fold)
        np.testing.assert_array_equal(found.covariates, case.covariates)


@pytest.mark.parametrize("task", TARGETS)
def test_manifest_of_every_task_is_read_back_as_written(tmp_path: Path, task: str) -> None:
    written = write_dataset(tmp_path, target=TARGETS[task], covariates=AGE_AND_SITE)
    assert read_manifest(tmp_path) == written == Manifest.loads(written.dumps())
    assert written.schema.version == 2


def test_labels_of_0_and_1_stay_version_1() -> None:
    assert make_schema().version == 1
    assert set(make_schema().to_json()) == {
        *("version", "axes", "features", "modalities", "shape", "dtype", "spec_fingerprint"),
    }


@pytest.mark.parametrize(
    ("target", "label"),
    [
        (PLAIN, 2),
        (PLAIN, True),
        (PLAIN, 1.0),
        (TARGETS["multiclass"], 3),
        (TARGETS["multiclass"], -1),
        (TARGETS["multilabel"], [1]),
        (TARGETS["multilabel"], [1, 2]),
        (TARGETS["multilabel"], 1),
        (TARGETS["regression"], math.inf),
        (TARGETS["regression"], "1"),
    ],
)
def test_label_that_the_target_cannot_have_is_refused(target: Target, label: object) -> None:
    with pytest.raises(ContractError, match="label"):
        target.label_of_json(label)


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "ranking"},
        {"task": "multiclass", "labels": ("a",), "classes": ("x", "y")},
        {"task": "multiclass", "labels": ("a",), "classes": ("x", "y", "x")},
        {"task": "multilabel", "labels": ("a",)},
        {"task": "binary", "unit": "mm"},
    ],
)
def test_target_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ContractError):
        Target(**fields)  # type: ignore[arg-type]


def test_value_is_the_same_in_manifest_and_record() -> None:
    schema = make_schema(target=TARGETS["regression"])
    (case,) = make_cases(schema, patients=1)
    assert case.label is not None
    assert decode_case(encode_case(case, schema), schema).label == case.label
    assert schema.target.label_of_json(0.1) == 0.1
