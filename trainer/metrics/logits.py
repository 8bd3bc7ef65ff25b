"""Logits as probabilities, and what they cost: numbers that are exact for any finite logit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.metrics.auc import Floats, checked


def log_loss(labels: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Mean negative log likelihood in nats, from logits: exact and finite for any finite logit.

    scikit-learn's takes probabilities, which a logit beyond 37 rounds to 0 or 1.

    Raises:
      ValueError: as `auc`, except that one class may be absent.
    """
    truth, values = checked(labels, logits, both_classes=False)
    return float(np.mean(log_losses(truth, values)))


def log_losses(truth: npt.NDArray[np.bool_], logits: npt.NDArray[np.float64]) -> Floats:
    """Negative log likelihood of each label in nats, of the arrays' shape; finite likewise."""
    found: Floats = np.logaddexp(0.0, np.where(truth, -logits, logits))
    return found


def logit(probabilities: npt.ArrayLike, least: float = 1e-15) -> Floats:
    """Logit of each probability, float64; none is taken to be nearer to 0 or 1 than `least`."""
    clipped = np.clip(probabilities, least, 1 - least)
    found: Floats = np.log(clipped) - np.log1p(-clipped)
    return found


def sigmoid(logits: npt.ArrayLike) -> Floats:
    """Probability of each logit, float64, without overflow."""
    found: Floats = np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))
    return found
