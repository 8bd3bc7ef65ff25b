"""Log loss of logits, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss

from trainer.metrics.logits import log_loss, sigmoid


def test_log_loss_is_scikit_learns_and_finite_for_great_logits() -> None:
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 2, 50), rng.normal(size=50)
    assert log_loss(labels, logits) == pytest.approx(sklearn_log_loss(labels, sigmoid(logits)))
    assert log_loss([0, 1], [800.0, 800.0]) == pytest.approx(400.0)
