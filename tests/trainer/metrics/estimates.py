"""Random cohorts for properties of the estimate and of its words."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from trainer.metrics.estimate import estimate_of


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Labels with both classes in one fold, scores with ties, few repeats, a null or none."""
    n = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = rng.integers(0, draw(st.sampled_from((2, 4, 1000))), (draw(st.integers(1, 4)), n))
    scores = scores + draw(st.sampled_from((-1000.0, -2.0, 0.0, 0.5, 2.0, 1000.0))) * labels
    folds = rng.integers(0, draw(st.integers(1, 6)), n)
    folds[:2] = 0
    q = draw(st.sampled_from((0, 1, 19, 38, 39, 79, 99)))
    null = rng.integers(0, 41, q) / 40 if draw(st.booleans()) else rng.normal(0.5, 0.1, q)
    if q and draw(st.booleans()):
        null[0] = estimate_of(labels, scores[:1], folds=folds)["auc"]  # a tie with the run itself
    return {
        "labels": labels,
        "scores": scores,
        "folds": folds if draw(st.booleans()) else None,
        "null": np.clip(null, 0, 1) if q else None,
        "level": draw(st.sampled_from((0.5, 0.9, 0.95, 0.99))),
    }
