"""Which epoch's network is kept: one that nobody chose on the patients it is scored on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_CANDIDATES = 10


def candidate_epochs(epochs: int) -> tuple[int, ...]:
    """The epochs (from 1) that may be chosen: at most ten, evenly spaced, the last among them."""
    return tuple(sorted({-(-epochs * tenth // _CANDIDATES) for tenth in range(1, _CANDIDATES + 1)}))


def crossfit(losses: Mapping[int, npt.ArrayLike]) -> dict[int, int]:
    """For each fold the candidate with the lowest mean log loss over the *other* folds.

    A fold's own patients have no part in its choice. That the other folds' networks have seen
    their labels leaks next to nothing where the log loss decides; where their AUC does, it shows
    (`benchmarks/honesty.py`).

    Args:
      losses: fold → mean log loss of its held-out patients, (candidates,) or (seeds, candidates).

    Returns:
      fold → index of its candidate; of equal ones the first.

    Raises:
      ValueError: fewer than two folds.
    """
    if len(losses) < 2:
        raise ValueError(f"{len(losses)} fold: an epoch is chosen by the other folds")
    means = {fold: np.atleast_2d(values).mean(axis=0) for fold, values in losses.items()}
    return {
        fold: int(np.argmin(np.mean([means[o] for o in means if o != fold], axis=0)))
        for fold in means
    }
