"""What is requested of a training run, checked once and written as JSON into the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, Kind, ListOf, Within, require_kinds, shown
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.patient_column import names_among
from trainer.config.augment import AugmentConfig
from trainer.config.network import NetworkConfig
from trainer.config.user_code import is_reference, require_reference

PRECISIONS = ("auto", "float32", "mixed_float16", "mixed_bfloat16")
SCHEDULES = ("exponential", "cosine", "constant")
CLASS_WEIGHTS = ("none", "balanced")
XLA = ("auto", "on", "off")
MOST = 1_000_000  # of what is counted out one by one: epochs, trees, trials
CACHES = ("auto", "memory", "file", "none")
REPEATS_MOST = 1000
EPOCH_CHOICES = ("last", "crossfit")
CROSS_ENTROPY = "cross_entropy"
# Flag → place in a config's JSON of what may be a user's own `module:function`.
OWN_CODE = {
    "--model": ("network", "name"),
    "--encoder": ("network", "encoder"),
    "--augment": ("augment",),
    "--loss": ("loss",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, its rate over the steps, and what is done to gradients and weights.

    The defaults are the reference network's.

    Attributes:
      learning_rate: the highest.
      schedule: "exponential" is `learning_rate * decay_rate ** (step // decay_steps)`; "cosine"
        rises linearly over the warm-up and falls to 0 at the last epoch; "constant".
      decay_steps: optimizer steps between two falls of the exponential schedule.
      decay_rate: factor of one fall, in (0, 1].
      warmup_epochs: of the cosine schedule.
      weight_decay: decoupled (AdamW); 0 is plain Adam. Biases and normalisation are left out.
      clip_norm: gradients are scaled down to this norm of them all together; None leaves them.
      ema: decay of the exponential moving average of the weights, which is then what is validated,
        kept and exported; None, or 0, trains without. In step t the decay is at most
        (1 + t) / (10 + t): a decay near 1 averages over about the last ninth of a run.
      stage_decay: the learning rate of each stage is this times that of the next one, so that the
        first stages of a network that starts from weights change least; 1: all learn alike.
    """

    learning_rate: float = 1.5e-4
    schedule: str = "exponential"
    decay_steps: int = 365
    decay_rate: float = 0.98
    warmup_epochs: int = 5
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema: float | None = 0.9999
    stage_decay: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"--learning_rate must be a positive number: {self.learning_rate}")
        _require_one_of("schedule", self.schedule, SCHEDULES)
        if self.decay_steps < 1:
            raise UsageError(f"decay_steps must be at least 1: {self.decay_steps}")
        if not 0 < self.decay_rate <= 1:
            raise UsageError(f"decay_rate must lie in (0, 1]: {self.decay_rate}")
        if self.warmup_epochs < 0:
            raise UsageError(f"--warmup_epochs must be 0 or more: {self.warmup_epochs}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"--weight_decay must be 0 or more: {self.weight_decay}")
        if self.clip_norm is not None and not (
            math.isfinite(self.clip_norm) and self.clip_norm > 0
        ):
            raise UsageError(f"--clip_norm must be a positive number: {self.clip_norm}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UsageError(f"--ema must lie in [0, 1): {self.ema}")
        object.__setattr__(self, "ema", self.ema or None)
        if not 0 < self.stage_decay <= 1:
            raise UsageError(f"--stage_decay must lie in (0, 1]: {self.stage_decay}")


# Of these, what an optimizer that a network is compiled with decides itself.
OPTIMIZER_OWN = tuple(
    field.name
    for field in dataclasses.fields(OptimizerConfig)
    if field.name not in ("ema", "warmup_epochs")  # without a schedule nothing warms up
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run: a network, its data's channels and how it is trained.

    Attributes:
      fold: the fold held out for validation; None trains one member a fold (cross-validation).
      outer_fold: a fold that is neither trained on nor scored: it is kept for the score of settings
        that were searched on the others.
      repeats: members a fold, of seeds `seed`, `seed + 1`, ...
      network: architecture.
      modalities: channels to train on, in this order; None takes all of the dataset's.
      covariates: what else is known of a patient that the network gets; None takes all of the
        dataset's, () none. Resolved, they stand in the dataset's order, whatever was typed.
      epochs: passes over the training folds.
      epoch_choice: which epoch's network is kept, one of `EPOCH_CHOICES`; never one chosen on the
        patients it is scored on. "crossfit" chooses a fold's epoch by the other folds' log loss, of
        values by their mean absolute error.
      batch_size: patients an optimizer step, all devices together.
      precision: one of `PRECISIONS`; "auto" is float32 on a CPU, mixed on a GPU.
      xla: compile the step with XLA; "auto" does on a single GPU.
      seed: of weights, dropout, augmentation, order of the records and label permutation.
      permute_labels: shuffle the labels among the patients of each fold: what the whole recipe
        scores where nothing can be learnt.
      freeze: so many first stages of the network keep the weights that they start from.
      loss: "cross_entropy", of values Huber's, or a user's own as `module:function`.
      label_smoothing: so much of a training label is dealt out to all outcomes (of two classes,
        half of it to the other one); validation never, and not of values.
      class_weights: "balanced" weighs all classes alike in the loss, and not of values.
      augment: random changes to the training volumes, or a user's own as `module:function`.
      optimizer: learning rate and its schedule.

    Raises:
      UsageError: a value that no run can have.
    """

    fold: int | None = None
    outer_fold: int | None = None
    repeats: int = 1
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    modalities: tuple[str, ...] | None = None
    covariates: tuple[str, ...] | None = None
    epochs: int = 100
    epoch_choice: str = "last"
    batch_size: int = 8
    precision: str = "auto"
    xla: str = "auto"
    seed: int = 0
    permute_labels: bool = False
    freeze: int = 0
    loss: str = CROSS_ENTROPY
    label_smoothing: float = 0.0
    class_weights: str = "none"
    augment: AugmentConfig | str = dataclasses.field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("repeats", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1: {getattr(self, name)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) > MOST:
                raise UsageError(f"--{name} must be at most {MOST}: {getattr(self, name)}")
        if self.repeats > REPEATS_MOST:
            raise UsageError(f"--repeats must be at most {REPEATS_MOST}: {self.repeats}")
        for name in ("fold", "outer_fold"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"--{name} must be 0 or more: {value}")
        if self.fold is not None and self.fold == self.outer_fold:
            raise UsageError(f"--fold {self.fold} is the outer fold, which is not to be scored")
        if not 0 <= self.seed <= 2**31 - self.repeats:
            raise UsageError(f"--seed must lie in 0 .. 2**31 - 1: {self.seed}")
        if not 0 <= self.freeze <= MOST:
            raise UsageError(f"--freeze must be 0 or more: {self.freeze}")
        if self.loss != CROSS_ENTROPY:
            require_reference(self.loss, flag="--loss")
        if isinstance(self.augment, str):
            require_reference(self.augment, flag="--augment")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--label_smoothing must lie in [0, 1): {self.label_smoothing}")
        _require_one_of("precision", self.precision, PRECISIONS)
        _require_one_of("xla", self.xla, XLA)
        _require_one_of("class_weights", self.class_weights, CLASS_WEIGHTS)
        _require_one_of("epoch_choice", self.epoch_choice, EPOCH_CHOICES)
        if self.epoch_choice == "crossfit" and self.fold is not None:
            raise UsageError(
                f"--epoch_choice crossfit needs other folds' networks: not with --fold {self.fold}"
            )
        if self.modalities is not None:
            object.__setattr__(self, "modalities", tuple(self.modalities))
            if not self.modalities or len(set(self.modalities)) != len(self.modalities):
                raise UsageError(f"--modalities must be distinct: {' '.join(self.modalities)}")
        if self.covariates is not None:
            object.__setattr__(self, "covariates", tuple(self.covariates))
            if len(set(self.covariates)) != len(self.covariates):
                raise UsageError(f"--covariates must be distinct: {' '.join(self.covariates)}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """One a repeat."""
        return tuple(range(self.seed, self.seed + self.repeats))

    @property
    def references(self) -> list[tuple[str, str]]:
        """(flag, `module:function`) of each part that is a user's own."""
        found: list[tuple[str, str]] = []
        for flag, place in OWN_CODE.items():
            value: Any = self
            for part in place:
                value = getattr(value, part)
            if is_reference(value):
                found.append((flag, value))
        return found

    def resolve(self, available: tuple[str, ...], covariates: Sequence[str] = ()) -> TrainConfig:
        """The config with its channels and covariates named, checked against those of a dataset.

        Of a dataset without covariates they stay None: nothing is said of what is not there.

        Args:
          available: the dataset's modalities.
          covariates: the dataset's.

        Raises:
          UsageError: a modality or a covariate that the dataset does not hold.
        """
        chosen = self.modalities or available
        unknown = [name for name in chosen if name not in available]
        if unknown:
            raise UsageError(
                f"unknown modality {', '.join(unknown)}; the dataset has {', '.join(available)}"
            )
        every = self.covariates is None
        known = tuple(covariates) if every else names_among(self.covariates or (), covariates)
        if unknown := [name for name in known if name not in covariates]:
            there = (
                f"; the dataset has {', '.join(covariates)}"
                if covariates
                else (": the dataset has none (--covariates of a conversion stores them)")
            )
            raise UsageError(f"unknown covariate {shown(unknown[0])}{there}")
        in_order = tuple(name for name in covariates if name in known)
        return dataclasses.replace(
            self, modalities=chosen, covariates=in_order if covariates else None
        )

    def chosen(self, covariates: Sequence[Covariate]) -> tuple[Covariate, ...]:
        """Those of a dataset's covariates that the network gets, in its order."""
        known = {one.name: one for one in covariates}
        return tuple(known[name] for name in self.covariates or ())

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        data = dataclasses.asdict(self)
        data["modalities"] = None if self.modalities is None else list(self.modalities)
        if self.covariates is None:
            del data["covariates"]
        else:
            data["covariates"] = list(self.covariates)
        data["network"] = self.network.to_json()
        if isinstance(self.augment, AugmentConfig):
            data["augment"] = self.augment.to_json()
        # What versions before 0.7 lack stands there only where it was set, as in the network.
        for name, default in (("freeze", 0), ("loss", CROSS_ENTROPY)):
            if data[name] == default:
                del data[name]
        if self.optimizer.stage_decay == 1:
            del data["optimizer"]["stage_decay"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Reads `to_json`'s object, whole or in parts: what is not there keeps its default.

        `augment` may be the name of a preset or a function, `network` the name of a network.

        Raises:
          UsageError: a name that no field has, or a value of the wrong kind.
        """
        fields: dict[str, Any] = dict(data)
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := fields.keys() - known:
            raise UsageError(f"unknown setting {', '.join(sorted(unknown))}: {_listed(known)}")
        network, augment = fields.get("network", {}), fields.get("augment", {})
        optimizer = fields.get("optimizer", {})
        try:
            _require_given(data, _KINDS, where="")
            for name in ("modalities", "covariates"):
                if (names := data.get(name)) is not None:
                    listed = list(names) if isinstance(names, tuple) else names
                    require_kinds({name: listed}, {name: ListOf(str)})
            _require_given(optimizer, _OPTIMIZER_KINDS, where="optimizer.")
            if isinstance(network, dict):
                _require_given(network, _NETWORK_KINDS, where="network.")
            fields["network"] = (
                NetworkConfig(name=network)
                if isinstance(network, str)
                else NetworkConfig.from_json(network)
            )
            if not is_reference(augment):
                fields["augment"] = (
                    AugmentConfig.named(augment)
                    if isinstance(augment, str)
                    else AugmentConfig.from_json({**AugmentConfig().to_json(), **augment})
                )
            fields["optimizer"] = OptimizerConfig(**optimizer)
            return cls(**fields)
        except (ContractError, TypeError) as error:  # Python's: a part's field that does not exist
            raise UsageError(f"settings: {error}") from error


# What the JSON of a config may hold, by part; what values mean is checked where they are used.
_MOST = 2**31 - 1
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("fold", "outer_fold"), Within(int, 0, _MOST, null=True)),
    **dict.fromkeys(("repeats", "epochs", "batch_size"), int),
    "seed": Within(int, 0, _MOST),
    "freeze": Within(int, 0, MOST),
    "permute_labels": bool,
    "label_smoothing": float,
    **dict.fromkeys(("epoch_choice", "precision", "xla", "class_weights", "loss"), str),
    **dict.fromkeys(("network", "augment"), dict | str),
    "optimizer": dict,
}
_OPTIMIZER_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("learning_rate", "decay_rate", "weight_decay", "stage_decay"), float),
    **dict.fromkeys(("clip_norm", "ema"), Within(float, 0, null=True)),
    **{"schedule": str, "decay_steps": Within(int, 1, _MOST)},
    "warmup_epochs": Within(int, 0, _MOST),
}
_NETWORK_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("width", "depth"), float),
    "dropout": Within(float, 0, 1, null=True),
    **dict.fromkeys(("name", "pooling", "fusion", "head"), str),
    **dict.fromkeys(("encoder_weights", "encoder", "weights", "padding"), str | None),
    "options": dict,
}


def _require_given(data: Mapping[str, Any], kinds: Mapping[str, Kind], *, where: str) -> None:
    require_kinds(data, {name: kinds[name] for name in kinds if name in data}, where=where)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in their places; objects are merged, not replaced."""
    result = dict(base)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            result[name] = merged(below, value)
        else:
            result[name] = value
    return result


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"--{name} must be one of {', '.join(known)}: {shown(value)}")


def _listed(names: set[str]) -> str:
    return f"known are {', '.join(sorted(names))}"
