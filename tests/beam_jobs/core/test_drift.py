"""Drift: marked where two cohorts differ, silent elsewhere; counts that add up in any order."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core import drift
from beam_jobs.core.drift import QUANTILES, Statistics, compare, of_case, of_series
from beam_jobs.core.record import PreparedCase, RecordSchema
from tests.datasets import make_cases, make_schema

SCHEMA = make_schema(shape=(12, 12, 10), modalities=("FLAIR", "T1w"))


def series(patients: int, seed: int = 0, **changes: object) -> list[dict[str, object]]:
    """Rows of series.csv: two thirds axial, spacings and field strengths that vary a little."""
    rng = np.random.default_rng(seed)
    return [
        {
            "patient": f"{number:05d}",
            "modality": modality,
            "verdict": "used",
            "plane": "axial" if rng.uniform() < 0.67 else "coronal",
            "row_spacing": float(rng.choice([0.5, 0.9])),
            "column_spacing": 0.5,
            "slice_step": float(rng.normal(3.0, 0.3)),
            "field_strength": float(rng.choice([1.5, 3.0])),
            **changes,
        }
        for number in range(patients)
        for modality in SCHEMA.modalities
    ]


def cohort(cases: list[PreparedCase], rows: list[dict[str, object]]) -> Statistics:
    total = of_series(rows, SCHEMA.modalities)
    for case in cases:
        total += of_case(case, SCHEMA)
    return total


def cases(count: int, seed: int, **changes: Any) -> list[PreparedCase]:
    """Heads whose brightness differs from patient to patient."""
    rng = np.random.default_rng(seed)
    gains = rng.normal(1.0, 0.1, count)
    return [
        dataclasses.replace(
            case, volume=np.clip(case.volume * gain, 0, 255).astype(np.uint8), **changes
        )
        for case, gain in zip(make_cases(SCHEMA, patients=count, seed=seed), gains, strict=True)
    ]


TRAINING = cohort(cases(80, 1), series(80, 1))


def drifts(found: Statistics) -> set[str]:
    compared, _ = compare(TRAINING, found, SCHEMA.modalities)
    return {f"{c.modality} {c.what}" for c in compared if c.drifted}


def test_patients_of_the_same_kind_do_not_stand_out() -> None:
    assert sum(bool(drifts(cohort(cases(60, s), series(60, s)))) for s in range(2, 12)) == 0


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"plane": "sagittal"}, "plane"),
        ({"slice_step": 6.0}, "step"),
        ({"row_spacing": 2.0, "column_spacing": 2.0}, "spacing"),
        ({"field_strength": 7.0}, "field_strength"),
    ],
)
def test_series_of_another_kind_stand_out_alone(changes: dict[str, object], found: str) -> None:
    other = cohort(cases(60, 2), series(60, 2, **changes))
    assert drifts(other) == {f"FLAIR {found}", f"T1w {found}"}


def test_a_field_strength_that_one_cohort_does_not_tell_is_no_drift() -> None:
    nifti = cohort(cases(60, 2), series(60, 2, field_strength=None))
    for one, other in ((TRAINING, nifti), (nifti, TRAINING)):
        compared, unknown = compare(one, other, SCHEMA.modalities)
        assert not any(c.what == "field_strength" for c in compared)
        assert {"FLAIR field_strength", "T1w field_strength"} <= set(unknown)
    assert drifts(nifti) == set()


def test_a_handful_of_patients_raises_no_alarm_by_chance() -> None:
    for seed in range(2, 12):
        few = cohort(cases(2, seed), series(2, seed, plane="sagittal"))
        assert not {name for name in drifts(few) if "intensity" not in name}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_quantiles_are_those_of_the_foreground(dtype: str) -> None:
    schema = RecordSchema(
        modalities=("T1w",), shape=(40, 40, 20), dtype=dtype, spec_fingerprint="a"
    )
    top = 1.0 if dtype == "float16" else float(np.iinfo(dtype).max)
    volume = np.random.default_rng(0).uniform(0.1, 0.9, schema.volume_shape)
    volume[:20] = 0
    case = PreparedCase(
        patient_id="a", volume=(volume * top).astype(dtype), affine=np.eye(4), present=(True,)
    )
    bins = of_case(case, schema).bins("T1w", "intensity")
    expected = np.percentile(volume[volume > 0], QUANTILES)
    found = [bins[f"q{quantile:02d} sum"] / 256 for quantile in QUANTILES]
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_parts_add_up_in_any_order_and_come_back_from_text() -> None:
    parts = [of_case(case, SCHEMA) for case in cases(9, 3)]
    parts.append(of_series(series(9), SCHEMA.modalities))
    forward = sum(parts, drift.NONE)
    grouped = sum(parts[5:], drift.NONE) + sum(parts[:5][::-1], drift.NONE)
    assert forward.dumps() == grouped.dumps()
    assert Statistics.loads(forward.dumps()) == forward
    assert len(sum([*parts, *parts], drift.NONE).dumps()) < 1.1 * len(forward.dumps())


@pytest.mark.parametrize("text", ["{}", '{"format": "voxelbeam-statistics"}', "[", "\xff"])
def test_what_are_no_statistics_is_refused(text: str) -> None:
    with pytest.raises(ContractError):
        Statistics.loads(text)
