"""What is printed of an estimate: that no number contradicts the words beside it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.metrics.estimates import cases
from trainer.metrics.estimate import estimate_of
from trainer.metrics.wording import (
    REASONS,
    comparison_line,
    number_apart,
    p_text,
    permutations_text,
    reading,
    summary_line,
    verdict,
)

_NUMBER = r"(-?[\d.]*\d)"


def _claimed(text: str) -> str:
    """What a text says of chance."""
    claims = {"better than chance", "worse than chance", "cannot be told from chance"}
    (said,) = [claim for claim in claims if claim in text]
    return said.split()[0]


@given(cases())
@settings(deadline=None)  # the first call imports scipy
def test_printed_numbers_stand_on_the_side_of_the_words_beside_them(case: dict[str, Any]) -> None:
    found = estimate_of(**case)
    line, lead, more = summary_line(found), *reading(found)[:2]
    words = {_claimed(verdict(found)), _claimed(lead)}
    printed = [float(one) for one in re.findall(rf"interval {_NUMBER} to {_NUMBER},", line)[0]]
    again = [float(one) for one in re.findall(rf"from {_NUMBER} to {_NUMBER};", more)[0]]
    assert printed == again
    if found["better_than_chance"]:
        assert (words, printed[0] > 0.5) == ({"better"}, True)
        assert float(re.findall(rf"AUC of {_NUMBER} on", lead)[0]) > 0.5
    elif found["worse_than_chance"]:
        assert (words, printed[1] < 0.5) == ({"worse"}, True)
        assert float(re.findall(rf"AUC of {_NUMBER} on", lead)[0]) < 0.5
    else:
        assert words == {"cannot"}
        assert printed[0] <= 0.5 <= printed[1]
    alpha = round(1 - found["level"], 12)
    p = float(p_text(found["p_value"], alpha).split()[-1])
    claims = found["better_than_chance"] or found["worse_than_chance"]
    assert (p <= alpha if found["decided_by"] == "permutations" else p < alpha) == claims
    if told := re.search(rf"above {_NUMBER} could", more):
        value = float(re.findall(rf"AUC of {_NUMBER} on", lead)[0])
        assert found["better_than_chance"] == (value > float(told[1]))


@given(st.sampled_from(sorted(REASONS)), cases())
def test_scores_that_allow_no_claim_print_none(reason: str, case: dict[str, Any]) -> None:
    found = estimate_of(**case, no_claim=(reason,))
    said = [summary_line(found), verdict(found), *reading(found)]
    if found["permutations"]:
        said.append(permutations_text(found))
    text = " ".join(said)
    name = "permuted labels" if reason == "permuted" else "optimistic"
    assert name in said[0]
    assert name in said[2]
    assert REASONS[reason] in said[1]
    assert not re.search(r"chance|p [=<]|interval \d|anywhere from", text)


@pytest.mark.parametrize(
    ("value", "bound", "said"),
    [
        (0.503, 0.5, "0.503"),
        (0.5004, 0.5, "0.5004"),
        (0.4996, 0.5, "0.4996"),
        (0.496, 0.5, "0.496"),
        (0.507, 0.5, "0.51"),
        (0.5, 0.5, "0.50"),
        (-0.001, 0.0, "-0.001"),
        (0.6481, 0.6479, "0.6481"),
    ],
)
def test_digits_are_added_until_a_number_is_told_from_another(
    value: float, bound: float, said: str
) -> None:
    assert number_apart(value, bound) == said


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.031, "p = 0.031"),
        (1.0, "p = 1"),
        (9.999e-5, "p = 0.0001"),
        (1e-9, "p < 0.0001"),
        (0.0496, "p = 0.0496"),
        (0.04999, "p = 0.04999"),
        (0.0503, "p = 0.0503"),
        (0.05, "p = 0.05"),
    ],
)
def test_p_values_are_written_without_exponents_on_their_side_of_the_level(
    p: float, said: str
) -> None:
    assert p_text(p) == said


def test_too_few_permutations_are_said_not_to_decide_and_show_no_p_value() -> None:
    labels = np.tile([0, 1], 30)
    scores = np.random.default_rng(0).normal(size=60) + 1.5 * labels
    few = estimate_of(labels, scores, folds=np.arange(60) // 12, null=[0.5] * 19)
    assert permutations_text(few) == (
        "Of 19 whole retrainings on permuted labels, none score as high; so few cannot decide, "
        "and the interval does."
    )
    enough = estimate_of(labels, scores, folds=np.arange(60) // 12, null=[0.5] * 99)
    assert permutations_text(enough).endswith("none score as high: p = 0.02, two-sided.")


def test_a_comparison_without_a_test_says_why() -> None:
    one: dict[str, Any] = {
        "name": "old", "auc": 0.61, "no_claim": [], "other_auc": 0.78, "level": 0.95, "n": 60,
        "other_no_claim": ["own_fold"], "no_test": f"old: {REASONS['own_fold']}",
    }  # fmt: skip
    assert comparison_line(one) == (
        f"old: 0.61 and 0.78 (optimistic) on 60 patients, no test: old: {REASONS['own_fold']}"
    )
    tested = {
        **one, "other_no_claim": [], "no_test": "", "difference": -0.17, "p_value": 0.0496,
        "p_value_holm": 0.0496, "difference_interval": [-0.339, -0.0004],
    }  # fmt: skip
    assert comparison_line(tested).endswith("difference -0.17 (-0.34 to -0.0004), p = 0.0496")
    assert comparison_line({**tested, "p_value_holm": 0.0992}).endswith(", p = 0.099 (Holm)")


def test_classes_are_told_in_their_order() -> None:
    """A run's JSON is sorted by key: the order is that of the parts."""
    parts = [{"name": name} for name in ("none", "mild", "severe")]
    metrics: dict[str, Any] = {
        "measure": "macro_auc", "score": 0.7, "interval": [0.6, 0.8], "level": 0.95, "n": 6,
        "counts": {"mild": 2, "none": 1, "severe": 3}, "parts": parts, "no_claim": [],
        "chance": 0.5, "told_from_chance": 0.6, "better_than_chance": True,
        "worse_than_chance": False,
    }  # fmt: skip
    assert summary_line(metrics).endswith("n = 6; none: 1, mild: 2, severe: 3)")


def test_summary_and_verdict_say_it_in_words() -> None:
    metrics: dict[str, Any] = {
        "auc": 0.934, "auc_interval": [0.85, 0.98], "level": 0.95, "n": 60, "positive": 30,
        "better_than_chance": True, "worse_than_chance": False, "no_claim": [],
        "auc_told_from_chance": 0.66,
    }  # fmt: skip
    expected = "AUC 0.93 (95 % interval 0.85 to 0.98, n = 60: 30 positive)"
    assert summary_line(metrics) == expected
    assert "above 0.5" in verdict(metrics)
    neither = {**metrics, "better_than_chance": False}
    assert "contains 0.5" in verdict(neither)
    assert "below 0.5" in verdict({**neither, "worse_than_chance": True})
