"""What a user's model was compiled with: its loss is checked, its optimizer kept for training."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import keras

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import PLAIN, Target

# A task's own, and what is the same: of two outputs behind a softmax, the cross-entropies are the
# binary one of their difference.
_SOFTMAX = ("categorical_crossentropy", "sparse_categorical_crossentropy")
_LOSSES = {
    "binary": ("binary_crossentropy", *_SOFTMAX),
    "multiclass": _SOFTMAX,
    "multilabel": ("binary_crossentropy",),
    "regression": ("huber",),
}
_OWN_TRAINING = ("train_step", "compute_loss")
# Optimizers of earlier builds: one that comes twice would carry its state from fold to fold.
_kept: weakref.WeakSet[keras.optimizers.Optimizer] = weakref.WeakSet()


def take_apart(reference: str, model: Any, target: Target = PLAIN) -> None:
    """Takes off a model what it was compiled with, and keeps the optimizer: `own_optimizer`.

    The loss is the trainer's, from logits; a model's own must be the same. Metrics are not used.

    Args:
      reference: what it is called, for messages.
      model: what a user's code has returned.
      target: what it answers.

    Raises:
      UsageError: it is no model, or would be trained in another way than all networks are.
    """
    if not isinstance(model, keras.Model):
        raise UsageError(f"{reference} returns {type(model).__name__}: a keras.Model is needed")
    for name in _OWN_TRAINING:
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise UsageError(
                f"{reference}: {type(model).__name__} has a {name} of its own, which is not called:"
                " trials train as trainer.task does (--loss takes a loss of your own)"
            )
    loss = getattr(model, "loss", None)
    if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
        (loss,) = loss.values() if isinstance(loss, dict) else loss
    if loss is not None:
        _require_own_loss(reference, loss, target)
    if (optimizer := getattr(model, "optimizer", None)) is not None:
        kept = _plain(reference, optimizer)
        model.optimizer, model.compiled = None, False
        # A function: Keras would write an optimizer among the model's weights.
        model.kept_optimizer = lambda: kept


def _require_own_loss(reference: str, loss: Any, target: Target) -> None:
    with contextlib.suppress(ValueError, TypeError):
        loss = keras.losses.get(loss)
    smoothing = getattr(loss, "_fn_kwargs", {}).get("label_smoothing")
    loss = getattr(loss, "fn", loss)
    wanted = _LOSSES[target.task]
    if loss not in [getattr(keras.losses, name) for name in wanted]:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise UsageError(
            f"{reference} is compiled with the loss {name}: {wanted[0]} is needed, or none "
            "(--loss takes a loss of your own)"
        )
    if smoothing:
        raise UsageError(
            f"{reference} is compiled with label_smoothing {smoothing}: say --label_smoothing"
        )


def _plain(reference: str, optimizer: Any) -> Any:
    """The optimizer without its loss scale, which follows from the precision."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if inner.built or inner in _kept:
        raise UsageError(f"{reference}: its optimizer must be made where the model is built")
    if inner.use_ema:
        raise UsageError(
            f"{reference} is compiled with an optimizer that averages weights (use_ema): say --ema"
        )
    _kept.add(inner)
    return inner


def own_optimizer(model: keras.Model) -> keras.optimizers.Optimizer | None:
    """The optimizer that a hypermodel has compiled its model with; None where it has not."""
    return getattr(model, "kept_optimizer", lambda: None)()


def keep_optimizer(source: keras.Model, target: keras.Model) -> None:
    """Gives a model that was made of another one that one's optimizer."""
    if (kept := getattr(source, "kept_optimizer", None)) is not None:
        target.kept_optimizer = kept
