"""What the columns of a predictions file say: its task, its answers, and labels as texts.

task         label column(s)         answers, the first there are
-----------  ----------------------  ---------------------------------------------------------
binary       label                   a column that the caller names, or `logit`, `probability`
multiclass   label (or `class`)      logit_CLASS ..., or probability_CLASS ...
multilabel   label_NAME ... or none  logit_NAME ..., or probability_NAME ...
regression   label                   value, with `low` and `high` of its interval

`class` is the most probable one in a submission, and tells classes from findings. The twin of
`oof_table`, which writes such a file; submissions have no labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beam_jobs.common.contract_json import ContractError, shown
from beam_jobs.common.csv_table import number
from beam_jobs.core.cohort.patient_column import is_number, name_of
from beam_jobs.core.cohort.target import PLAIN, Label, Target
from trainer.metrics.auc import Floats
from trainer.metrics.logits import logit, sigmoid
from trainer.metrics.tasks.measure import softmax

_LOGIT, _PROBABILITY, _VALUE = "logit_", "probability_", "value"
_SMALLEST = 1e-15  # of a probability: what its logarithm is taken of


def target_of_columns(
    columns: Sequence[str],
    score_columns: Sequence[str],
    *,
    one_label: bool = False,
    known: Target | None = None,
    where: str = "",
) -> Target:
    """What the answers of a file are of; `PLAIN` where it has one of the score columns.

    Args:
      columns: the file's.
      score_columns: names that a binary score may have.
      one_label: a patient's label is one text, so that several answers are classes'.
      known: what the labels of the run say: taken where the columns are of its task and names.
      where: put before messages.

    Raises:
      ContractError: columns of classes or findings that no target has.
    """
    if known is not None and known.task in ("multiclass", "multilabel"):
        one_label = known.task == "multiclass"
    found = _of_columns(columns, score_columns, one_label, where)
    if known is None or known.task != found.task:
        return found
    return known if found.task == "binary" or known.names == found.names else found


def _of_columns(
    columns: Sequence[str], score_columns: Sequence[str], one_label: bool, where: str
) -> Target:
    if any(name in columns for name in score_columns):
        return PLAIN
    names = _behind(_LOGIT, columns) or _behind(_PROBABILITY, columns)
    try:
        if names and (one_label or "label" in columns or "class" in columns):
            return Target(task="multiclass", labels=("label",), classes=names)
        if names:
            return Target(task="multilabel", labels=names)
    except ContractError as error:
        raise ContractError(f"{where}{error}: columns of {', '.join(names)}") from error
    return Target(task="regression", labels=("label",)) if _VALUE in columns else PLAIN


def answer_columns(target: Target, columns: Sequence[str]) -> tuple[str, ...]:
    """Those of the answers, in the order of a network's outputs; not of a binary target."""
    if target.task == "regression":
        return (_VALUE,)
    return target.columns("logit" if _behind(_LOGIT, columns) else "probability")


def as_logits(target: Target, column: str, answers: Floats, *, where: str = "") -> Floats:
    """Answers of a file as logits, or values as they are: (n, outputs), or (n,) of values.

    Args:
      target: what the answers are of.
      column: the first of theirs: whether they are probabilities.
      answers: as they stand in the file, (n, outputs), NaN where a patient has none.
      where: put before messages.

    Raises:
      ContractError: a probability outside 0 .. 1.
    """
    if target.task == "regression":
        return answers[:, 0]
    if not column.startswith(_PROBABILITY):
        return answers
    if not ((answers >= 0) & (answers <= 1) | np.isnan(answers)).all():
        raise ContractError(f"{where}{shown(column)[1:-1]} and those beside it: 0 to 1 required")
    if target.task == "multilabel":
        return logit(answers)
    found: Floats = np.log(np.clip(answers, _SMALLEST, 1))
    return found


def probabilities_of(target: Target, logits: Floats) -> Floats | None:
    """Of logits (n, outputs); None of values."""
    if target.task == "regression":
        return None
    return softmax(logits) if target.task == "multiclass" else sigmoid(logits)


def label_of_texts(target: Target, texts: Sequence[str], *, own: bool = False) -> Label:
    """The label that a patient's cells say; an empty one of findings is not known.

    Args:
      target: what labels say.
      texts: a cell, or one of each finding.
      own: they stand beside the answers, where a binary's label is 0 or 1 whatever its classes are
        called.

    Raises:
      ValueError: none of the target; the message has what is required and what was found.
    """
    if len(texts) != len(target.label_columns):
        what = f"a label of each of {', '.join(target.names)}" if len(texts) == 1 else "one label"
        raise ValueError(f"{shown(what)[1:-1]} required, {len(texts)} found")
    if target.task == "multilabel":
        return tuple(_zero_or_one(text) if text else None for text in texts)
    if target.task == "regression":
        return _number(texts[0])
    if target.task == "binary" and own:
        return _zero_or_one(texts[0])
    if texts[0] in target.names:
        return target.names.index(texts[0])
    # A spreadsheet writes "2.0" for "2".
    same = [place for place, name in enumerate(target.names) if name_of(name) == name_of(texts[0])]
    if len(same) == 1:
        return same[0]
    # 0 and 1 are the classes' numbers, unless these are called by numbers themselves.
    if target.task == "binary" and not any(map(is_number, target.classes)):
        return _zero_or_one(texts[0])
    names = shown(", ".join(target.names))[1:-1]
    raise ValueError(f"one of {names} required, {shown(texts[0])[1:-1]} found")


def _zero_or_one(text: str) -> int:
    value = _number(text)
    if value not in (0, 1):
        raise ValueError(f"0 or 1 required, {shown(text)[1:-1]} found")
    return int(value)


def _number(text: str) -> float:
    try:
        return number(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is no finite number") from error


def _behind(kind: str, columns: Sequence[str]) -> tuple[str, ...]:
    """What stands behind the kind in the columns' names."""
    return tuple(
        name.removeprefix(kind) for name in columns if name.startswith(kind) and name != kind
    )
