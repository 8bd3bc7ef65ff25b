"""metrics.json of classes, findings and values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from tests.trainer.metrics.tasks.cohorts import TASKS, make_predictions
from trainer.metrics.evaluation import evaluation_of
from trainer.metrics.tasks import evaluation
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.evaluation_words import figure_lines, number


def intervals(data: Any) -> Iterator[Any]:
    """Every interval that a JSON value holds."""
    if isinstance(data, list):
        data = dict(enumerate(data))
    if isinstance(data, dict):
        for name, value in data.items():
            if value is not None and str(name).endswith("interval"):
                yield value
            yield from intervals(value)


@pytest.mark.parametrize("task", TASKS)
def test_the_headline_is_the_tasks_estimate_and_every_key_is_documented(task):
    predictions = make_predictions(task, seeds=2)
    found = evaluation_of(predictions)
    json.dumps(found, allow_nan=False)
    expected = estimate_of_task(
        predictions.target, predictions.labels, predictions.repeats, folds=predictions.folds
    )
    assert found["score"] == expected["score"]
    assert found["interval"] == expected["interval"]
    assert found["target"] == predictions.target.to_json()
    words = set(re.findall(r"\w+", evaluation.__doc__ or ""))
    words |= set(re.findall(r"\w+", estimate_of_task.__doc__ or ""))
    keys = set(found) | set(found["figures"])
    for part, own in zip(found["parts"], expected["parts"], strict=True):
        assert {name: part[name] for name in own} == own
        keys |= set(part) | set(part["calibration"])
    keys |= set(found.get("agreement", ())) - {"low_interval", "high_interval", "bias_interval"}
    assert keys <= words
    assert [one["by"] for one in found["groups"]] == ["fold", "seed"]
    assert found["seeds"]["min"] <= found["seeds"]["mean"] <= found["seeds"]["max"]
    for one in found["figures"].values():
        assert one["interval"][0] <= one["value"] <= one["interval"][1]


@pytest.mark.parametrize("task", TASKS)
def test_answers_that_allow_no_claim_have_no_interval_of_any_kind(task):
    found = evaluation_of(make_predictions(task, seeds=2, no_claim=("permuted",)))
    assert not list(intervals(found))
    assert found.get("conformal") is None
    assert "is that of permuted labels" in found["reading"][0]
    assert not any(re.search(r"interval(?! nor)|of 100", one) for one in found["reading"])
    assert len(list(intervals(evaluation_of(make_predictions(task, seeds=2))))) > 15


@pytest.mark.parametrize("task", TASKS)
def test_out_of_fold_intervals_are_wider_than_those_of_a_test_set(task):
    doubled, plain = (
        evaluation_of(make_predictions(task, folds=folds, n=90, strength=0.7)) for folds in (3, 1)
    )
    for name, one in doubled["figures"].items():
        if name != "pearson":  # within folds another value
            low, high = one["interval"]
            other = plain["figures"][name]["interval"]
            assert 1.25 < (high - low) / (other[1] - other[0]) < 1.6, name
    if task == "regression":
        assert plain["conformal"] is None
        assert doubled["conformal"]["level"] == 0.9
        assert "agreement" in dict(figure_lines(doubled, "ml"))


def test_patients_are_grouped_by_what_else_is_known_of_them():
    ages = tuple("" if place % 10 == 9 else str(40 + place) for place in range(60))
    sites = tuple("AB"[place % 2] for place in range(60))
    known = {"age": ages, "site": sites, "same": ("x",) * 60}
    found = evaluation_of(make_predictions("regression", covariates=known))
    groups = {one["by"]: one["groups"] for one in found["groups"]}
    assert list(groups) == ["fold", "age", "site"]
    assert [one["name"] for one in groups["site"]] == ["A", "B"]
    assert [one["n"] for one in groups["age"]] == [18, 18, 18, 6]
    assert groups["age"][-1]["name"] == "unknown"


def test_limits_that_predictions_bring_with_them_are_held_against_the_truth():
    predictions = make_predictions("regression", folds=1)
    low = predictions.labels - 1.0
    low[:15] += 5.0
    low[-1] = np.nan
    found = evaluation_of(make_predictions("regression", folds=1, low=low, high=low + 2.0))
    coverage = found["coverage"]
    assert (coverage["of"], coverage["mean_width"]) == (59, pytest.approx(2.0))
    assert coverage["share"] == pytest.approx(44 / 59)


def test_a_class_that_a_test_set_lacks_is_told_and_breaks_nothing():
    predictions = make_predictions("multiclass", folds=1)
    labels = np.where(predictions.labels == 2, 1, predictions.labels)
    found = evaluation_of(make_predictions("multiclass", folds=1, labels=labels))
    json.dumps(found, allow_nan=False)
    assert found["parts"][2]["auc"] is found["figures"]["balanced_accuracy"]["value"] is None
    assert found["confusion"][2] == [0, 0, 0]


@pytest.mark.parametrize("task", TASKS)
def test_nothing_to_compare_is_refused_in_one_line(task):
    labels = {"multiclass": np.zeros(6, int), "multilabel": np.zeros((6, 2))}.get(task, np.ones(6))
    with pytest.raises(ContractError, match="differ"):
        evaluation_of(make_predictions(task, n=6, folds=1, labels=labels))


def test_numbers_have_three_digits_that_count_and_a_true_minus():
    texts = [number(value) for value in (0, 1234.5, -17.26, 4.219, -0.0421, 0.00004, 3e7, 3e9)]
    assert texts == ["0.00", "1234", "−17.3", "4.22", "−0.042", "4.00e−05", "30000000", "3.00e+09"]
