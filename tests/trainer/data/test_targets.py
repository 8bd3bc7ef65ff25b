"""Labels as arrays, and back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.datasets import TARGETS
from trainer.data.targets import labels_in, targets_of, truth_of

LABELS: dict[str, list[Any]] = {
    "binary": [0, 1, 1],
    "multiclass": [2, 0, 1],
    "multilabel": [(0, 1), (None, 1), (1, None)],
    "regression": [0.1, -12.0, 3.4e38],
}


@pytest.mark.parametrize("task", list(LABELS))
def test_labels_come_back_from_their_array(task: str) -> None:
    truth = truth_of(TARGETS[task], LABELS[task])
    assert labels_in(TARGETS[task], truth) == LABELS[task]
    assert [type(one) for one in labels_in(TARGETS[task], truth)] == list(map(type, LABELS[task]))
    assert targets_of(TARGETS[task], truth).shape == (3, TARGETS[task].outputs)
