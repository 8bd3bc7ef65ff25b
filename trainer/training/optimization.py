"""The loss, and the optimizer that a config describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from beam_jobs.common.cli import UsageError
from trainer.config.run import OPTIMIZER_OWN, OptimizerConfig

_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def learning_rate(config: OptimizerConfig, *, epochs: int, steps_per_epoch: int) -> Any:
    """The rate as a Keras schedule over optimizer steps, or a number where it is constant."""
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "exponential":
        return keras.optimizers.schedules.ExponentialDecay(
            config.learning_rate, config.decay_steps, config.decay_rate, staircase=True
        )
    warmup = min(config.warmup_epochs, epochs - 1) * steps_per_epoch
    falling = max(epochs * steps_per_epoch - warmup, 1)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(config.learning_rate, falling)
    return keras.optimizers.schedules.CosineDecay(
        0.0, falling, warmup_target=config.learning_rate, warmup_steps=warmup
    )


def make_optimizer(
    config: OptimizerConfig,
    *,
    epochs: int,
    steps_per_epoch: int,
    precision: str,
    replicas: int,
    own: keras.optimizers.Optimizer | None = None,
    factors: Sequence[float] = (),
) -> keras.optimizers.Optimizer:
    """Adam or AdamW with its schedule, clipping and, under mixed_float16, loss scaling.

    Clipping belongs to the inner optimizer: the outer one sees scaled gradients.

    Args:
      config: what is requested.
      epochs: of the whole run, for the schedule.
      steps_per_epoch: likewise.
      precision: the dtype policy.
      replicas: each clips 1 / replicas of the summed gradients.
      own: one that the network brings along, new; it is taken as it is.
      factors: of the learning rate, a variable each, as the optimizer will be built; none: 1.

    Raises:
      UsageError: the network brings one along, and another is requested.
    """
    if own is not None:
        optimizer = _taken(own, config, replicas)
    else:
        rate = learning_rate(config, epochs=epochs, steps_per_epoch=steps_per_epoch)
        clip = None if config.clip_norm is None else config.clip_norm / replicas
        if config.weight_decay:
            kind = AdamWByVariable if factors else keras.optimizers.AdamW
            optimizer = kind(rate, weight_decay=config.weight_decay, global_clipnorm=clip)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        else:
            kind = AdamByVariable if factors else keras.optimizers.Adam
            optimizer = kind(rate, global_clipnorm=clip)
        if factors:
            optimizer.factors = tuple(factors)
    if precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


class _ByVariable:
    """Of an optimizer whose learning rate is multiplied by a factor a variable.

    So is the decay of the weights, as it is in groups of PyTorch's parameters.
    """

    factors: tuple[float, ...]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)  # type: ignore[attr-defined]
        rate = learning_rate * self.factors[index]
        if self.weight_decay and self._use_weight_decay(variable):  # type: ignore[attr-defined]
            self.assign_sub(variable, variable * self.weight_decay * rate)  # type: ignore[attr-defined]
        super().update_step(gradient, variable, rate)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: `update_step` does it."""


class AdamByVariable(_ByVariable, keras.optimizers.Adam):  # type: ignore[misc]
    """Keras' own, with `factors`."""


class AdamWByVariable(_ByVariable, keras.optimizers.AdamW):  # type: ignore[misc]
    """Keras' own, with `factors`."""


def _taken(own: Any, config: OptimizerConfig, replicas: int) -> keras.optimizers.Optimizer:
    """A network's own optimizer, whose clipping sees 1 / replicas of the summed gradients."""
    plain = OptimizerConfig()
    for name in OPTIMIZER_OWN:
        if (asked := getattr(config, name)) != getattr(plain, name):
            raise UsageError(f"--{name} {asked}: the network is compiled with its own optimizer")
    for name in _CLIPS:
        if (most := getattr(own, name)) is not None:
            setattr(own, name, most / replicas)
    return own


def clips(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether it looks at the size of gradients."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return any(getattr(inner, name) is not None for name in _CLIPS)


def cross_entropy(label: Any, logit: Any) -> Any:
    """Binary cross-entropy of every example, (batch,), from logits; both are (batch, 1)."""
    return keras.losses.binary_crossentropy(label, logit, from_logits=True)


def weighted_loss(
    label: Any,
    logit: Any,
    *,
    smoothing: float,
    weights: tuple[float, float],
    loss: Callable[[Any, Any], Any] = cross_entropy,
) -> Any:
    """The loss of every example, (batch,) float32, from logits.

    Args:
      label: (batch, 1), 0 to 1; between them after mixup.
      logit: (batch, 1) float32.
      smoothing: labels are moved by half of it towards 1/2.
      weights: of the negative and the positive class.
      loss: (label, logit) → (batch,).
    """
    label, logit = ops.cast(label, "float32"), ops.cast(logit, "float32")
    weight = weights[1] * label + weights[0] * (1.0 - label)
    target = label * (1.0 - smoothing) + 0.5 * smoothing
    each = loss(target, logit)
    return ops.reshape(weight, (-1,)) * ops.reshape(each, (-1,))


def class_weights(kind: str, positive_share: float) -> tuple[float, float]:
    """Weights of the negative and the positive class, 1 on average over the training patients."""
    if kind == "none":
        return 1.0, 1.0
    return 0.5 / (1.0 - positive_share), 0.5 / positive_share
