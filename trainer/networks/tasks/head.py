"""The end of a network: features and covariates joined, and what a user's own network ends in."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import layers

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.network import NetworkConfig

_SQUASHED = ("sigmoid", "softmax")
# What is answered, as a network of another end is told; a binary has a line of its own.
_NEEDED = {
    "multiclass": "{} classes are needed, as logits or behind a softmax",
    "multilabel": "{} labels are needed, as logits or behind a sigmoid each",
    "regression": "one value is needed, without an activation: values have no bounds",
}


def joined(features: Any, known: Any) -> Any:
    """Features (batch, n) with the columns of covariates beside them; alone where there are none.

    Args:
      features: of a volume.
      known: (batch, columns) of the layer `Covariates`, or None.
    """
    if known is None:
        return features
    return layers.Concatenate(dtype="float32", name="joined")([features, known])


def logit(features: Any, known: Any, outputs: int) -> Any:
    """The logits (batch, outputs) of features and covariates."""
    return layers.Dense(outputs, dtype="float32", name="logit")(joined(features, known))


def own_logit_of(found: Any, known: Any) -> Any:
    """Logits (batch, outputs) that a network ends in itself, as ours; covariates add theirs."""
    if known is None:
        return layers.Activation("linear", dtype="float32", name="logit")(found)
    theirs = layers.Dense(found.shape[-1], use_bias=False, dtype="float32", name="of_covariates")
    return layers.Add(dtype="float32", name="logit")([found, theirs(known)])


class End(NamedTuple):
    """What a user's own network ends in.

    Attributes:
      features: (batch, n), what the last Dense layer is given; or what the network gives.
      last: the Dense layer, without its activation, that the head is to be like; None without one.
      classes: how many outputs the head has: 2 of a binary's two classes.
      is_logit: whether `features` are the logits already.
    """

    features: Any
    last: layers.Dense | None
    classes: int
    is_logit: bool


def taken_apart(found: Any, config: NetworkConfig, target: Target = PLAIN) -> End:
    """What a network's (batch, n) are made of; a sigmoid or a softmax at its end is taken off.

    Raises:
      UsageError: it ends in other classes than are asked for, or in an activation that answers of
        this target cannot have.
    """
    operation, x = _source(found)
    activation = "linear"
    if isinstance(operation, layers.Activation):
        activation = operation.activation.__name__
    elif type(operation).__name__ in ("Sigmoid", "Softmax"):  # layers or operations
        activation = type(operation).__name__.lower()
    before = found
    if activation in _SQUASHED:
        before = x
        operation, x = _source(before)
    outputs = target.outputs
    classes, squashed, own = found.shape[-1], activation in _SQUASHED, "linear"
    if type(operation) is layers.Dense:
        own = operation.activation.__name__
        squashed = squashed or own in _SQUASHED
        if squashed and own in _SQUASHED and (own == "softmax" or target.task != "binary"):
            activation = own
        pair = target.task == "binary" and activation == "softmax"
        fits = classes == (2 if pair else outputs)
        if fits and own in ("linear", *_SQUASHED) and _may_end_in(activation, target):
            return End(x, operation, classes, False)
    if target.task == "binary":
        if squashed and (classes > 1 or activation == "softmax"):
            refuse(config, f"ends in {classes} classes: 1, or 2 with a softmax, is needed")
        return End(before, None, 1, classes == 1)
    curved = own != "linear" or activation != "linear"
    name = activation if activation != "linear" else own
    fits = classes == outputs and _may_end_in(name, target)
    if not fits and (squashed or (classes == 1 and (curved or outputs > 1))):
        end = f"{classes} output{'s' if classes > 1 else ''}{f' behind a {name}' if curved else ''}"
        refuse(config, f"ends in {end}: {_NEEDED[target.task].format(outputs)}")
    return End(before, None, outputs, classes == outputs and (squashed or not curved))


def _may_end_in(activation: str, target: Target) -> bool:
    """Whether answers may lie behind an activation, which is taken off."""
    if target.task == "regression":
        return activation == "linear"
    return activation != "softmax" or target.task != "multilabel"


def _source(tensor: Any) -> tuple[Any, Any]:
    """The operation that made a tensor of a graph, and what it was made of."""
    operation, index, _ = tensor._keras_history
    inputs = operation._inbound_nodes[index].input_tensors
    return operation, inputs[0] if inputs else None


def refuse(config: NetworkConfig, what: str, cause: BaseException | None = None) -> Any:
    """Raises a UsageError of a user's own network."""
    raise UsageError(f"--model {config.name}: {what}") from cause
