"""result.json: what a fold gave comes back bit for bit, whatever its labels say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from tests.datasets import TARGETS
from trainer.data.targets import truth_of
from trainer.training.fold_result import FoldResult, HeldOutLogits

LABELS: dict[str, list[Any]] = {
    "binary": [0, 1],
    "multiclass": [2, 0],
    "multilabel": [(0, None), (1, 1)],
    "regression": [0.1, 7.0],
}


def _result(task: str) -> FoldResult:
    target = TARGETS[task]
    several = (target.outputs,) if target.outputs > 1 else ()
    return FoldResult(
        fold=1,
        seed=2,
        epochs=(3, 4),
        optimistic={"epoch": 3, "auc" if task == "binary" else "score": 0.5},
        step_seconds=0.1,
        input_wait=0.1,
        seconds=1.0,
        held_out=HeldOutLogits(
            patient_ids=("a", "b"),
            labels=truth_of(target, LABELS[task]),
            logits=np.random.default_rng(0).normal(size=(2, 2, *several)),
        ),
    )


@pytest.mark.parametrize("task", list(LABELS))
def test_a_result_comes_back_as_it_was(task: str, tmp_path: Path) -> None:
    _result(task).save(tmp_path, TARGETS[task])
    found = FoldResult.load(tmp_path, TARGETS[task])
    assert found is not None
    np.testing.assert_array_equal(found.held_out.labels, _result(task).held_out.labels)
    np.testing.assert_array_equal(found.held_out.logits, _result(task).held_out.logits)
    assert found.held_out.labels.dtype == _result(task).held_out.labels.dtype
    assert found.at(1).epochs == (4,)
    stored = json.loads((tmp_path / "result.json").read_text())["held_out"]["labels"]
    assert stored == [TARGETS[task].label_to_json(one) for one in LABELS[task]]


@pytest.mark.parametrize(
    ("task", "member", "value", "message"),
    [
        ("multiclass", "labels", [3, 0], "0 to 2"),
        ("multilabel", "labels", [[0, 1], None], "a label of each patient required"),
        ("multilabel", "logits", [[[0.0, 1.0], [0.0]]] * 2, "2 of each patient required"),
        ("regression", "logits", [[[0.0], [1.0]]] * 2, r"logits\[0\]"),
        ("multiclass", "logits", [[0.0, 1.0]] * 2, r"logits\[0\]"),
    ],
)
def test_a_result_of_another_task_is_refused(
    task: str, member: str, value: Any, message: str, tmp_path: Path
) -> None:
    _result(task).save(tmp_path, TARGETS[task])
    file = tmp_path / "result.json"
    data = json.loads(file.read_text())
    data["held_out"][member] = value
    file.write_text(json.dumps(data))
    with pytest.raises(ContractError, match=message):
        FoldResult.load(tmp_path, TARGETS[task])
