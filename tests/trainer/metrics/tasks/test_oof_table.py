"""oof_predictions.csv of every task."""

from __future__ import annotations

import numpy as np
import pytest

from beam_jobs.core.cohort.target import PLAIN
from tests.datasets import TARGETS
from trainer.config.run_layout import OOF_COLUMNS
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows

_END = ("epoch", "epoch_choice", "no_claim")


@pytest.mark.parametrize(
    ("task", "columns", "truth", "answers", "cells"),
    [
        ("binary", OOF_COLUMNS[1:6], [1], [0.0], (1, 2, 3, 0.0, 0.5)),
        (
            "multiclass",
            ("label", "fold", "seed", "logit_2", "logit_3", "logit_4")
            + ("probability_2", "probability_3", "probability_4"),
            [2],
            [[0.0, 0.0, np.log(2)]],
            ("4", 2, 3, 0.0, 0.0, np.log(2), 0.25, 0.25, 0.5),
        ),
        (
            "multilabel",
            ("label_edema", "label_necrosis", "fold", "seed", "logit_edema", "logit_necrosis")
            + ("probability_edema", "probability_necrosis"),
            [[1.0, np.nan]],
            [[0.0, np.log(3)]],
            (1, "", 2, 3, 0.0, np.log(3), 0.5, 0.75),
        ),
        ("regression", ("label", "fold", "seed", "value"), [12.5], [11.0], (12.5, 2, 3, 11.0)),
    ],
)
def test_a_row_says_label_and_answer_by_name(task, columns, truth, answers, cells) -> None:
    target = TARGETS[task]
    assert oof_columns(target) == ("patient_id", *columns, *_END)
    rows = oof_rows(
        target,
        patient_ids=["7"],
        truth=np.array(truth),
        answers=np.array(answers),
        fold=2,
        seed=3,
        chosen=(5, "last", ""),
    )
    assert rows == [("7", *(pytest.approx(one) for one in cells), 5, "last", "")]


def test_a_binary_table_is_what_it_was() -> None:
    assert oof_columns(PLAIN) == OOF_COLUMNS
