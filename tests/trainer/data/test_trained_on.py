"""Whom networks were trained on, in numbers."""

from __future__ import annotations

from typing import Any

import pytest

from beam_jobs.common.contract_json import ContractError
from tests.datasets import TARGETS
from trainer.data.trained_on import prior_of, require_trained_on, trained_on

TOLD: dict[str, tuple[list[Any], dict[str, Any], tuple[float, ...]]] = {
    "binary": ([0, 1, 1, 0, 0], {"patients": 5, "positive": 2}, (0.4,)),
    "multiclass": (
        [0, 2, 2, 1],
        {"patients": 4, "classes": {"2": 1, "3": 1, "4": 2}},
        (0.25, 0.25, 0.5),
    ),
    "multilabel": (
        [(0, 1), (1, None), (1, 0)],
        {
            "patients": 3,
            "labels": {"edema": 2, "necrosis": 1},
            "known": {"edema": 3, "necrosis": 2},
        },
        (2 / 3, 0.5),
    ),
    "regression": ([1.0, 3.0], {"patients": 2, "mean": 2.0, "sd": 1.0}, (2.0,)),
}


@pytest.mark.parametrize("task", list(TOLD))
def test_labels_are_counted_and_give_what_is_answered_without_an_image(task: str) -> None:
    labels, told, prior = TOLD[task]
    assert trained_on(TARGETS[task], labels) == told
    require_trained_on(TARGETS[task], told, where="trained_on.")
    assert prior_of(TARGETS[task], told) == pytest.approx(prior)


@pytest.mark.parametrize(
    ("task", "changed", "message"),
    [
        ("binary", {"positive": 6}, "trained_on: .* some of patients required"),
        ("multiclass", {"classes": {"2": 1, "3": 1}}, "classes.4"),
        ("multiclass", {"patients": 5}, "classes: .*5 in all required"),
        ("multilabel", {"known": {"edema": 1, "necrosis": 2}}, "known.edema: 1 found"),
        ("regression", {"sd": -1.0}, "sd"),
        ("regression", {"patients": 0}, "patients"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    task: str, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        require_trained_on(TARGETS[task], {**TOLD[task][1], **changed}, where="trained_on.")
