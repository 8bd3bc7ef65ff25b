"""What a training run was asked to do, checked once and written as JSON into the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from beam_jobs.core.cli import UsageError

MODELS = ("seed_cnn",)  # named here too, so that a wrong name is told before TensorFlow loads
PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with a rate that falls in steps: `learning_rate * decay_rate ** (step // decay_steps)`.

    The defaults are the reference network's.

    Attributes:
      learning_rate: at the first step.
      decay_steps: optimizer steps between two falls.
      decay_rate: factor of one fall, in (0, 1]; 1 keeps the rate constant.
    """

    learning_rate: float = 1.5e-4
    decay_steps: int = 365
    decay_rate: float = 0.98

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"--learning_rate must be a positive number: {self.learning_rate}")
        if self.decay_steps < 1:
            raise UsageError(f"decay_steps must be at least 1: {self.decay_steps}")
        if not 0 < self.decay_rate <= 1:
            raise UsageError(f"decay_rate must lie in (0, 1]: {self.decay_rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run: a network, its data's channels and how it is trained.

    Attributes:
      fold: the fold held out for validation; None trains one member a fold (cross-validation).
      model: one of `MODELS`, the names in `trainer.models`' registry.
      modalities: channels to train on, in this order; None takes all of the dataset's.
      epochs: at most so many passes over the training folds.
      batch_size: patients an optimizer step.
      patience: stop after so many epochs without a better validation AUC.
      precision: one of `PRECISIONS`; "auto" is float32 on a CPU, mixed on a GPU.
      seed: of weights, dropout, order of the records and label permutation.
      permute_labels: shuffle the labels among the patients of each fold: what the whole recipe
        scores where nothing can be learnt.
      optimizer: learning rate and its schedule.

    Raises:
      UsageError: a value that no run can have.
    """

    fold: int | None = None
    model: str = "seed_cnn"
    modalities: tuple[str, ...] | None = None
    epochs: int = 100
    batch_size: int = 8
    patience: int = 50
    precision: str = "auto"
    seed: int = 0
    permute_labels: bool = False
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1: {getattr(self, name)}")
        if self.fold is not None and self.fold < 0:
            raise UsageError(f"--fold must be 0 or more: {self.fold}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed must lie in 0 .. 2**31 - 1: {self.seed}")
        if self.model not in MODELS:
            raise UsageError(f"unknown model {self.model!r}; known: {', '.join(MODELS)}")
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"--precision must be one of {', '.join(PRECISIONS)}: {self.precision!r}"
            )
        if self.modalities is not None:
            object.__setattr__(self, "modalities", tuple(self.modalities))
            if not self.modalities or len(set(self.modalities)) != len(self.modalities):
                raise UsageError(f"--modalities must be distinct: {' '.join(self.modalities)}")

    def resolve(self, available: tuple[str, ...]) -> TrainConfig:
        """The config with its channels named, checked against those of a dataset.

        Raises:
          UsageError: a modality that the dataset does not hold.
        """
        chosen = self.modalities or available
        unknown = [name for name in chosen if name not in available]
        if unknown:
            raise UsageError(
                f"unknown modality {', '.join(unknown)}; the dataset has {', '.join(available)}"
            )
        return dataclasses.replace(self, modalities=chosen)

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        data = dataclasses.asdict(self)
        data["modalities"] = None if self.modalities is None else list(self.modalities)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Reads `to_json`'s object."""
        return cls(**{**data, "optimizer": OptimizerConfig(**data["optimizer"])})
