"""What a step makes smaller, a task: every patient's loss, of what the last Dense layer gives.

binary       weighted binary cross-entropy of the logit
multiclass   weighted cross-entropy of the softmax
multilabel   mean over the labels of each one's weighted binary cross-entropy, over the patients of
             whom it is known
regression   Huber's loss of the standardised value (P. J. Huber, 1964)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import Target
from trainer.config.run import CROSS_ENTROPY, TrainConfig
from trainer.training.optimization import cross_entropy, weighted_loss
from trainer.training.user_parts import EachLoss, own_loss

# Standard deviations of the training values up to which an error counts by its square.
HUBER_DELTA = 1.0


def softmax_cross_entropy(label: Any, logit: Any) -> Any:
    """Of every example, (batch,), from logits; both are (batch, classes)."""
    return keras.losses.categorical_crossentropy(label, logit, from_logits=True)


def huber(label: Any, value: Any) -> Any:
    """Huber's loss of every example, (batch,), of standardised values; both are (batch, 1)."""
    return keras.losses.huber(label, value, delta=HUBER_DELTA)


_LOSSES: dict[str, EachLoss] = {
    "binary": cross_entropy,
    "multiclass": softmax_cross_entropy,
    "multilabel": cross_entropy,
    "regression": huber,
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """A task's loss.

    Attributes:
      target: what labels say.
      each: (label, answer) → (rows,), both (rows, outputs); of a multilabel both are (rows, 1), a
        row for each label of each patient.
      smoothing: labels are moved by so much towards all outcomes being equally likely.
      weights: of the classes in the loss: a binary's pair; (classes,); of a multilabel
        (2, labels), negative and positive, over the share of patients of whom a label is known.
      value: the network's layer `Value`, of a regression.
    """

    target: Target
    each: EachLoss
    smoothing: float
    weights: Any
    value: Any = None

    def parts(self, label: Any) -> tuple[Any, ...]:
        """A batch's labels as what mixup mixes: themselves, and of a multilabel what is known.

        Args:
          label: (rows, outputs), NaN where one is not known.

        Returns:
          float32 arrays: (labels,), standardised of a regression; of a multilabel (labels, known),
          both 0 where one is not known, known else 1.
        """
        if self.target.task == "regression":
            return (self.value.standardised(ops.cast(label, "float32")),)
        if self.target.task == "multilabel":
            known = ops.logical_not(ops.isnan(label))
            return ops.where(known, label, ops.zeros_like(label)), ops.cast(known, "float32")
        return (label,)

    def loss(self, answer: Any, label: Any, *known: Any) -> Any:
        """The loss of every patient, (rows,) float32.

        Args:
          answer: (rows, outputs) of the last Dense layer.
          label: the first of `parts`, maybe mixed.
          known: the others.
        """
        if self.target.task == "binary":
            return weighted_loss(
                label, answer, smoothing=self.smoothing, weights=self.weights, loss=self.each
            )
        label, answer = ops.cast(label, "float32"), ops.cast(answer, "float32")
        if self.target.task == "regression":
            return self.each(label, answer)
        if self.target.task == "multiclass":
            weight = ops.sum(label * self.weights, axis=-1)
            smoothed = label * (1.0 - self.smoothing) + self.smoothing / self.target.outputs
            return weight * self.each(smoothed, answer)
        share = known[0]
        # Of a label that only one of two mixed patients has, that one's.
        label = label / ops.where(share > 0, share, ops.ones_like(share))
        weight = share * (self.weights[1] * label + self.weights[0] * (1.0 - label))
        smoothed = label * (1.0 - self.smoothing) + 0.5 * self.smoothing
        flat = self.each(ops.reshape(smoothed, (-1, 1)), ops.reshape(answer, (-1, 1)))
        return ops.mean(weight * ops.reshape(flat, ops.shape(label)), axis=-1)


def make_objective(
    config: TrainConfig,
    target: Target,
    *,
    weights: tuple[float, float],
    targets: npt.NDArray[Any] | None,
    value: Any = None,
) -> Objective:
    """The loss that a config asks for.

    Args:
      config: of the run.
      target: what labels say.
      weights: of a binary's negative and positive class.
      targets: (n, outputs) of the training patients, of other tasks.
      value: the network's layer `Value`, of a regression.

    Raises:
      UsageError: an option that means nothing for this target, or a loss that cannot be learnt
        from.
    """
    if target.task == "regression":
        for name, off in (("label_smoothing", 0.0), ("class_weights", "none")):
            if (asked := getattr(config, name)) != off:
                raise UsageError(f"--{name} {asked}: labels are values, not classes; leave it out")
    each = _LOSSES[target.task]
    if config.loss != CROSS_ENTROPY:
        each = own_loss(config.loss, target)
    found: Any = weights
    if target.task in ("multiclass", "multilabel"):
        if targets is None:
            raise ValueError("the loss needs the labels of the training patients")
        found = task_weights(config.class_weights, target, targets)
    return Objective(
        target=target, each=each, smoothing=config.label_smoothing, weights=found, value=value
    )


def task_weights(kind: str, target: Target, targets: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Weights of classes, or of labels' two outcomes, 1 on average over the training patients.

    Those of a label are divided by the share of patients of whom it is known, so that each label
    counts alike, however many are known: the mean over the patients is the mean over the labels of
    the mean over the patients of whom one is known.

    Args:
      kind: "balanced" weighs classes, or a label's two outcomes, alike.
      target: multiclass or multilabel.
      targets: (n, outputs) of the training patients, NaN unknown.

    Returns:
      (classes,), or (2, labels): of the negative and the positive.
    """
    wide = np.asarray(targets, np.float64)
    if target.task == "multiclass":
        share = np.nanmean(wide, axis=0)
        even = np.divide(1.0, target.outputs * share, out=np.ones_like(share), where=share > 0)
        return np.asarray(even if kind == "balanced" else np.ones_like(share), np.float32)
    known = ~np.isnan(wide)
    count = known.sum(axis=0)
    positive = np.divide(
        np.where(known, wide, 0.0).sum(axis=0), count, out=np.zeros(len(count)), where=count > 0
    )
    shares = np.stack([1.0 - positive, positive])
    even = np.divide(0.5, shares, out=np.ones_like(shares), where=(shares > 0) & (shares < 1))
    found = even if kind == "balanced" else np.ones_like(shares)
    return np.asarray(found * len(wide) / np.maximum(count, 1), np.float32)
