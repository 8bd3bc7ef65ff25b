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

_SMALLEST = 1e-6  # of the mean: what float32 cannot tell from a constant


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


def mean_and_deviation(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation (of the patients themselves: divided by n) of each column.

    0 and 1 of a column of which nothing is known; 1 in place of the deviation of a constant one.

    Args:
      values: (n, columns), NaN unknown.
    """
    wide = np.asarray(values, np.float64)
    known = np.isfinite(wide)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, wide, 0.0).sum(axis=0) / count
    centred = np.where(known, wide - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    constant = deviation <= _SMALLEST * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)
