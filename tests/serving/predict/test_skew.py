"""Skew: reported with numbers where patients differ from those of training, silent elsewhere."""

import dataclasses
import json

import numpy as np
import pytest

from serving.predict.skew import report
from tests.beam_jobs.core.test_drift import SCHEMA, TRAINING, cases, cohort, series


def test_a_line_says_how_many_comparisons_found_nothing() -> None:
    _, lines = report(TRAINING, cohort(cases(60, 2), series(60, 2)), SCHEMA.modalities)
    assert lines == ["none of 20 comparisons stands out (60 patients against 80 of training)"]


def test_the_fields_of_skew_json_are_these() -> None:
    text, _ = report(TRAINING, cohort(cases(3, 2), series(3, 2)), SCHEMA.modalities)
    data = json.loads(text)
    assert sorted(data) == [
        *("compared", "drifted", "format", "not_compared", "patients", "training_patients"),
    ]
    for one in data["compared"]:
        assert sorted(one) == [
            *("distance", "drifted", "found", "limit", "modality", "told", "training", "what"),
        ]


def test_missing_modalities_stand_out() -> None:
    blind = [dataclasses.replace(c, present=(True, n % 2 == 0)) for n, c in enumerate(cases(60, 2))]
    text, lines = report(TRAINING, cohort(blind, series(60, 2)), SCHEMA.modalities)
    data = json.loads(text)
    assert data["drifted"] == ["T1w missing"]
    assert lines[1:] == ["  T1w missing: 50% (training 0%)"]


def test_brighter_volumes_stand_out_with_both_numbers() -> None:
    bright = [
        dataclasses.replace(c, volume=np.clip(c.volume * 1.5, 0, 255).astype(np.uint8))
        for c in cases(20, 2)
    ]
    text, lines = report(TRAINING, cohort(bright, []), SCHEMA.modalities)
    data = json.loads(text)
    assert {name.split(" q")[0] for name in data["drifted"]} == {"FLAIR intensity", "T1w intensity"}
    assert "FLAIR plane" in data["not_compared"]
    assert 2 <= len(lines) <= 5
    middle = next(c for c in data["compared"] if c["what"] == "intensity q50")
    assert middle["found"]["mean"] == pytest.approx(1.5 * middle["training"]["mean"], rel=0.1)
    assert 0.005 < middle["training"]["sd"] < 0.1
