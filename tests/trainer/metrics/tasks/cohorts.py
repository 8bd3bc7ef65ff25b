"""Predictions of every task, made of numbers: no run, no file."""

from __future__ import annotations

from typing import Any

import numpy as np

from beam_jobs.core.cohort.target import Target
from tests.datasets import TARGETS
from trainer.metrics.logits import sigmoid
from trainer.metrics.predictions import Predictions
from trainer.metrics.tasks.measure import softmax

TASKS = ("multiclass", "multilabel", "regression")


def make_predictions(
    task: str,
    *,
    n: int = 60,
    strength: float = 1.5,
    seeds: int = 1,
    folds: int = 3,
    seed: int = 0,
    target: Target | None = None,
    **given: Any,
) -> Predictions:
    """Answers that know something of their labels; a tenth of the findings is unknown.

    Args:
      task: one of `TASKS`.
      n: patients.
      strength: how much the answers know; 0 is nothing.
      seeds: how often each patient is answered.
      folds: patients are dealt to in turn; 1 is a test set.
      seed: of all draws.
      target: what labels say, default that of `tests.datasets`.
      given: fields that differ.
    """
    rng = np.random.default_rng(seed)
    target = target or TARGETS[task]
    outputs = target.outputs
    truth: Any = 20 + 5 * rng.normal(size=n)
    signal = 20 + 0.5 * strength * (truth - 20)
    noise = 2.5
    size: tuple[int, ...] = (n,)
    if task == "multiclass":
        truth = rng.permutation(np.arange(n) % outputs)
        signal, noise, size = strength * (truth[:, None] == np.arange(outputs)), 1.0, (n, outputs)
    elif task == "multilabel":
        truth = (rng.random((n, outputs)) < 0.4).astype(float)
        signal, noise, size = strength * (truth - 0.5), 1.0, (n, outputs)
        truth[rng.random((n, outputs)) < 0.1] = np.nan
        truth[np.isnan(truth).all(axis=1), 0] = 1.0
    each = {one: signal + noise * rng.normal(size=size) for one in range(seeds)}
    scores = np.mean(list(each.values()), axis=0)
    of_scores: Any = {"multiclass": softmax, "multilabel": sigmoid}.get(task)
    fields: dict[str, Any] = {
        "name": "a run",
        "keys": tuple(f"{place:05d}" for place in range(n)),
        "labels": truth,
        "scores": scores,
        "target": target,
        "probabilities": of_scores(scores) if of_scores else None,
        "logits": scores if of_scores else None,
        "folds": np.arange(n) % folds if folds > 1 else None,
        "seeds": each if seeds > 1 else {},
    }
    return Predictions(**(fields | given))
