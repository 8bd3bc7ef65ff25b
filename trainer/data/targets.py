"""Labels as arrays: what predictions are measured against, and what a network learns from.

task         truth (what is measured)              targets (what is learnt from), float32
-----------  ------------------------------------  --------------------------------------
binary       int64 (n,), 0 or 1, -1 unknown        (n, 1), NaN unknown
multiclass   int64 (n,), class index, -1 unknown   (n, classes), one hot, NaN unknown
multilabel   float64 (n, labels), NaN unknown      (n, labels), NaN unknown
regression   float64 (n,), NaN unknown             (n, 1), in the label's unit, NaN unknown
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from beam_jobs.core.cohort.target import UNKNOWN, Label, Target


def truth_of(target: Target, labels: Sequence[Label | None]) -> npt.NDArray[Any]:
    """Labels in patients' order as an array; see the table above."""
    if target.task == "multilabel":
        unknown = (None,) * len(target.labels)
        rows = [label if isinstance(label, tuple) else unknown for label in labels]
        return np.array(rows, np.float64).reshape(-1, len(target.labels))
    if target.task == "regression":
        return np.array([np.nan if label is None else label for label in labels], np.float64)
    return np.array([UNKNOWN if label is None else label for label in labels], np.int64)


def labels_in(target: Target, truth: npt.NDArray[Any]) -> list[Label]:
    """`truth_of`'s array as labels again, of patients who all have one."""
    if target.task == "multilabel":
        rows = truth.tolist()
        return [tuple(None if one != one else int(one) for one in row) for row in rows]
    found: list[Label] = truth.tolist()
    return found


def targets_of(target: Target, truth: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """`truth_of`'s array as a network learns it, float32 (n, outputs); see the table above."""
    if target.task in ("multilabel", "regression"):
        return truth.astype(np.float32).reshape(len(truth), target.outputs)
    known = (truth != UNKNOWN)[:, np.newaxis]
    found = truth[:, np.newaxis]
    if target.task == "multiclass":
        found = found == np.arange(target.outputs)
    return np.where(known, found, np.nan).astype(np.float32)
