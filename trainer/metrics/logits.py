"""Logits as probabilities, and what they cost: numbers that are exact for any finite logit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import checked


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean negative log likelihood in nats, from logits: exact and finite for any finite logit.

    scikit-learn's takes probabilities, which a logit beyond 37 rounds to 0 or 1.

    Raises:
      ValueError: as `auc`, except that one class may be absent.
    """
    truth, values = checked(labels, logits, both_classes=False)
    return float(np.mean(np.logaddexp(0.0, np.where(truth, -values, values))))


def sigmoid(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Probability of each logit, float64, without overflow."""
    found: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))
    return found
