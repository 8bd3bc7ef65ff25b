"""The command that measures predictions: what it says of classes, findings and values."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.metrics.tasks.test_answers_table import oof_lines, write
from trainer.evaluate import main

SAID = {
    "multiclass": (
        "macro AUC 0.",
        "n = 60; 2: 20, 3: 20, 4: 20)",
        "Of 3 classes, each against the rest,",
    ),
    "multilabel": ("mean AUC 0.", "; edema: ", "Of 2 findings, each by itself,"),
    "regression": ("Spearman correlation 0.", "n = 60)", "The interval lies above 0:", "value ± "),
}


@pytest.mark.parametrize("task", SAID)
def test_command_tells_a_tasks_score_its_verdict_and_each_part(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "a.csv", oof_lines(task))
    two = write(tmp_path / "b.csv", oof_lines(task, seeds=2))
    assert main(["--predictions", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    for text in SAID[task]:
        assert text in said
    assert "better than chance" in said
    assert "b: 0." in said
    for name in {"multiclass": ("class 2", "class 4"), "multilabel": ("edema", "necrosis")}.get(
        task, ()
    ):
        assert f"\n{name} " in said


def test_scores_that_allow_no_claim_print_none_of_any_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.csv", oof_lines("multiclass", no_claim="permuted"))
    assert main(["--predictions", str(file)]) == 0
    said = capsys.readouterr().out
    assert "macro AUC of permuted labels 0." in said
    assert "interval" not in said.replace("No claim", "")
    assert "p = " not in said
