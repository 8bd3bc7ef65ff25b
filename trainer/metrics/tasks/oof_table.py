"""oof_predictions.csv of every task: its columns, and the rows of one member.

task         label                          answers
-----------  -----------------------------  -----------------------------------------------------
binary       label (0 or 1)                 logit, probability
multiclass   label (name of the class)      logit_CLASS ..., probability_CLASS ...
multilabel   label_NAME ... (0, 1, empty)   logit_NAME ..., probability_NAME ...
regression   label (in its unit)            value
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.target import Target
from trainer.config.run_layout import OOF_COLUMNS
from trainer.metrics.auc import Floats
from trainer.metrics.logits import sigmoid
from trainer.metrics.tasks.measure import softmax

_ID, _, *_MEMBER = OOF_COLUMNS[:4]
_CHOSEN = OOF_COLUMNS[6:]


def oof_columns(target: Target) -> tuple[str, ...]:
    """Names of the columns, in their order; of a binary `OOF_COLUMNS`."""
    if target.task == "binary":
        return OOF_COLUMNS
    kinds = ("value",) if target.task == "regression" else ("logit", "probability")
    answers = (column for kind in kinds for column in target.columns(kind))
    return (_ID, *target.label_columns, *_MEMBER, *answers, *_CHOSEN)


def oof_rows(
    target: Target,
    *,
    patient_ids: Sequence[str],
    truth: npt.NDArray[Any],
    answers: Floats,
    fold: int,
    seed: int,
    chosen: Sequence[Any],
) -> list[tuple[Any, ...]]:
    """The rows of one member's held-out patients.

    Args:
      target: what labels say.
      patient_ids: (n,).
      truth: as `data.targets.truth_of` has it.
      answers: logits or values, (n,) or (n, outputs).
      fold: held out.
      seed: of the member.
      chosen: the last columns' values: epoch, epoch_choice, no_claim.
    """
    cells = _labels(target, truth), _answers(target, answers)
    return [
        (patient_id, *label, fold, seed, *answer, *chosen)
        for patient_id, label, answer in zip(patient_ids, *cells, strict=True)
    ]


def _labels(target: Target, truth: npt.NDArray[Any]) -> list[list[Any]]:
    if target.task == "multilabel":
        return [["" if one != one else int(one) for one in row] for row in truth.tolist()]
    if target.task == "multiclass":
        return [[target.names[one]] for one in truth.tolist()]
    return [[one] for one in truth.tolist()]


def _answers(target: Target, answers: Floats) -> list[list[float]]:
    table = answers.reshape(len(answers), target.outputs)
    if target.task != "regression":
        probabilities = softmax(table) if target.task == "multiclass" else sigmoid(table)
        table = np.hstack([table, probabilities])
    cells: list[list[float]] = table.tolist()
    return cells
