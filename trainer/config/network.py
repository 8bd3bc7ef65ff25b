"""Which network a run trains, checked before Keras loads and written as JSON into the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import shown
from beam_jobs.common.files import interface as files
from trainer.config.user_code import is_reference, require_reference

SLICE_MODELS = ("slice_cnn", "slice_efficientnet_b0")
RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50")
MODELS = (
    "seed_cnn",
    *RESNETS,
    "se_resnet50",
    "densenet121",
    *(f"efficientnet_b{size}" for size in range(8)),
    *SLICE_MODELS,
)
FACTOR_MOST = 16  # of width and depth; such a network has 256 times as many weights
POOLINGS = ("avg", "max", "attention")
FUSIONS = ("early", "late")
HEADS = ("mean", "attention", "lstm", "transformer")
PADDINGS = ("same", "symmetric")
ENCODER_SUFFIXES = (".keras", ".h5")
NO_WEIGHTS = "none"  # a search chooses among names
START_FILES = ("encoder_weights", "weights")
WEIGHTS_SUFFIXES = (".keras", ".h5", ".pth", ".pt", ".safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A network of the registry, or a user's own, and its options; the defaults are as published.

    An option that a network has no use for must keep its default: `head`, `encoder` and
    `encoder_weights` belong to the slice networks, `pooling` to the 3D networks, `depth` to all but
    seed_cnn, `padding` to resnet10 to resnet50, `options` to a user's own.

    Attributes:
      name: one of `MODELS`, or `module:function` (`trainer.networks.foreign` says of what form).
      options: keyword arguments of a user's own function, as JSON.
      width: factor on the filters of every layer, rounded to multiples of 8.
      depth: factor on the blocks of every stage, rounded up.
      dropout: rate in [0, 1) of every dropout layer, stochastic depth included; 0 removes them.
        None keeps the network's own; one that has none gets a layer before the logit.
      pooling: how a 3D network's last feature map becomes one vector: its mean, its maximum, or a
        mean with learnt weights.
      fusion: "early" takes the modalities as channels of one volume. "late" shows each modality
        alone to the same network and joins their features before the logit.
      head: how a slice network joins its slices: their mean, a mean with learnt weights, an LSTM
        over them in both directions, or a transformer.
      encoder: `module:function` that takes the place of a slice network's 2D encoder.
      encoder_weights: file with weights for a slice network's 2D encoder.
      weights: file with weights that a 3D network starts from; None, or "none" where a search
        chooses: it starts from none.
      padding: of a ResNet where a stride is: "same" as TensorFlow pads, "symmetric" as PyTorch
        does; None is what the weights were trained with, "same" without any.

    Raises:
      UsageError: a value that no network can have, or an option that this one cannot use.
    """

    name: str = "seed_cnn"
    width: float = 1.0
    depth: float = 1.0
    dropout: float | None = None
    pooling: str = "avg"
    fusion: str = "early"
    head: str = "mean"
    encoder_weights: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    encoder: str | None = None
    weights: str | None = None
    padding: str | None = None

    def __post_init__(self) -> None:
        if is_reference(self.name):
            require_reference(self.name, flag="--model")
        elif self.name not in MODELS:
            raise UsageError(f"unknown model {shown(self.name)}; known: {', '.join(MODELS)}")
        for flag, factor in (("--width", self.width), ("--depth", self.depth)):
            if not (math.isfinite(factor) and factor > 0):
                raise UsageError(f"{flag} must be a positive number: {factor}")
            if factor > FACTOR_MOST:
                raise UsageError(f"{flag} must be at most {FACTOR_MOST}: {factor}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout must lie in [0, 1): {self.dropout}")
        for flag, value, known in (
            ("--pooling", self.pooling, POOLINGS),
            ("--fusion", self.fusion, FUSIONS),
            ("--head", self.head, HEADS),
        ):
            if value not in known:
                raise UsageError(f"{flag} must be one of {', '.join(known)}: {shown(value)}")
        if self.padding not in (None, *PADDINGS):
            raise UsageError(
                f"--padding must be one of {', '.join(PADDINGS)}: {shown(self.padding)}"
            )
        if self.weights == NO_WEIGHTS:
            object.__setattr__(self, "weights", None)
        if self.encoder is not None:
            require_reference(self.encoder, flag="--encoder")
        for flag, file, suffixes in (
            ("--encoder_weights", self.encoder_weights, ENCODER_SUFFIXES),
            ("--weights", self.weights, WEIGHTS_SUFFIXES),
        ):
            if file is not None and not file.endswith(suffixes):
                raise UsageError(f"{flag} must name a {' or '.join(suffixes)} file: {shown(file)}")
        self._require_used()

    def _require_used(self) -> None:
        """Refuses an option that would change nothing."""
        if self.name in SLICE_MODELS:
            useless: tuple[str, ...] = ("pooling", "options", "weights")
        elif is_reference(self.name):
            useless = ("head", "encoder", "encoder_weights")
        else:
            useless = ("head", "encoder", "encoder_weights", "options")
            useless = (*useless, "depth") if self.name == "seed_cnn" else useless
        useless = useless if self.name in RESNETS else (*useless, "padding")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in useless and value != _default(field):
                raise UsageError(f"--{field.name} {value}: {self.name} has no use for it")

    @property
    def has_own_code(self) -> bool:
        """Whether a user's own code makes layers of it: then only that code makes it again."""
        return is_reference(self.name) or self.encoder is not None

    def require_files(self) -> None:
        """Refuses weights that are not there, before anything slow is begun.

        Not part of `__post_init__`: a finished run's config is read where the file may be gone.

        Raises:
          UsageError: `encoder_weights` or `weights` is not a file.
        """
        for name in START_FILES:
            file = getattr(self, name)
            if file is not None and files.stat(file) is None:
                raise UsageError(f"--{name}: {file} is not a file")

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back.

        Fields that versions before 0.7 lack stand there only where they were set: runs without them
        are the same runs.
        """
        data = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.name in _SINCE_07 and data[field.name] == _default(field):
                del data[field.name]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """Reads `to_json`'s object."""
        return cls(**data)


_SINCE_07 = ("options", "encoder", "weights", "padding")


def _default(field: dataclasses.Field[Any]) -> Any:
    return {} if field.default is dataclasses.MISSING else field.default
