"""Networks of a user's own code, `module:function`: called, checked and made a part of ours.

Three forms, told apart by the parameters:

    function(volume, config)               standardised volume → feature map, features or logit
    function(input_shape=..., classes=1)   → keras.Model; a class of models is such a function too
    build(hp)                              → keras.Model: KerasTuner's, or its HyperModel

`volume` is a float32 tensor (batch, row, column, slice, channel), `config` the `NetworkConfig`. The
second form is told only what it has a parameter for: `classes` or `num_classes`, how many numbers
are answered; no activation of the classifier, no weights, no rescaling; width, depth and dropout
where they were set. A class of Keras layers or models without `input_shape` is made, then called on
the volume. The config's `options` are keyword arguments of these forms, and values of the third
one's hyperparameters (`trainer.networks.hypermodel`).

What comes out is joined to ours as one flat graph, nested models too, so that gradients, memory and
stages are those of single layers. Only a model or layer with a `call` of its own stays whole. The
last layer becomes the logits: its sigmoid or softmax is taken off; of a binary whose network has
two classes the logit is the difference of theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
from keras import layers

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.network import NetworkConfig
from trainer.config.user_code import load, reason, undisturbed
from trainer.networks.blocks import MOMENTUM, Parts
from trainer.networks.hypermodel import build, is_hypermodel
from trainer.networks.layers import (
    BatchToSequence,
    ChannelsToBatch,
    has_gpu,
    precision_kept,
    under_policy,
)
from trainer.networks.tasks.head import joined, own_logit_of, refuse, taken_apart

# Names of layers around it.
_OURS = (
    *("volume", "standardise", "modalities", "fused", "logit", "slices", "encoder"),
    *("covariates", "known", "joined", "of_covariates", "value"),
)
_VOLUME, _SLICE = ("row", "column", "slice", "channel"), ("row", "column", "channel")
_KERAS_MOMENTUM = 0.99  # BatchNormalization's default
_FUNCTIONAL_CALL = type(keras.Model((_x := keras.Input((1,))), _x)).call
# Layers of earlier builds: one that comes twice would carry its weights from fold to fold.
_built: weakref.WeakSet[keras.Layer] = weakref.WeakSet()


def own_logit(
    volume: Any, parts: Parts, *, target: Target = PLAIN, known: Any = None
) -> tuple[Any, keras.Model]:
    """The logits of a user's own network, under the current precision policy, and that network.

    Without a GPU its layers compute in float32 in every precision: TensorFlow's convolutions and
    poolings in 16 bits are slow, missing or wrong there (see `trainer.networks.layers`).

    Args:
      volume: standardised, (batch, row, column, slice, channel), of our graph.
      parts: the config, and whether batch statistics are taken over all replicas.
      target: what is answered.
      known: columns of covariates (batch, n), or None.

    Returns:
      (batch, outputs) float32, and what the user's function gave.

    Raises:
      UsageError: no such function, one that fails, or a network that does not fit; the message
        says what was found.
    """
    config, channels = parts.config, volume.shape[-1]
    late = config.fusion == "late"
    x = ChannelsToBatch(name="modalities")(volume) if late else volume
    found, network = _called_on(x, config, synchronized=parts.synchronized, target=target)
    features, last, classes, is_logit = taken_apart(_pooled(found, parts), config, target)
    if late:
        features = layers.Flatten(name="fused")(BatchToSequence(channels)(features))
        last, classes = None, target.outputs
        is_logit = is_logit and channels == 1
    if config.dropout is not None and not _takes_dropout(config, network):
        if is_logit:
            refuse(config, "--dropout: its logit is not a Dense layer's")
        features = layers.Dropout(config.dropout)(features) if config.dropout else features
    if is_logit and not late:
        return own_logit_of(features, known), network
    features = joined(features, known)
    settings = {} if last is None else last.get_config()
    settings |= {"units": classes, "activation": None, "dtype": "float32"}
    if classes == target.outputs:
        return layers.Dense.from_config({**settings, "name": "logit"})(features), network
    both = layers.Dense.from_config({**settings, "name": "logits"})(features)
    logit = layers.Subtract(dtype="float32", name="logit")([both[:, 1:], both[:, :1]])
    return logit, network


def own_encoder(slices: Any, parts: Parts) -> Any:
    """Features of slices by a user's own 2D encoder, in place of a slice network's.

    It has the forms of a network, without the top where it can be left out; what a last Dense layer
    to one or two classes would be given are features too.

    Args:
      slices: standardised, (batch × slice, row, column, channel), of our graph.
      parts: as of `own_logit`.

    Returns:
      (batch × slice, n) float32.

    Raises:
      UsageError: as `own_logit`.
    """
    own: Any = {"name": parts.config.encoder, "head": "mean"}
    config = dataclasses.replace(parts.config, **own, encoder=None, encoder_weights=None)
    try:
        found, _ = _called_on(slices, config, synchronized=parts.synchronized, prefix="encoder_")
        if len(found.shape) == 4:
            return layers.GlobalAveragePooling2D(dtype="float32", name="encoder")(found)
        if len(found.shape) != 2:
            refuse(config, f"gives {tuple(found.shape)}: (batch, n), or a map, is needed")
        features = taken_apart(found, config).features
    except UsageError as error:
        raise UsageError(str(error).replace("--model", "--encoder", 1)) from error
    return layers.Activation("linear", dtype="float32", name="encoder")(features)


def _called_on(
    x: Any,
    config: NetworkConfig,
    *,
    synchronized: bool,
    prefix: str = "",
    target: Target = PLAIN,
) -> tuple[Any, keras.Model]:
    """What a user's network makes of a tensor of our graph, and that network.

    Args:
      x: the tensor.
      config: whose name is the user's function.
      synchronized: batch statistics over all replicas.
      prefix: of its layers' names, where more than a logit of ours follows.
      target: what it is to answer.
    """
    with under_policy("float32" if not has_gpu() else keras.config.dtype_policy().name):
        network = own_network(config, x.shape[1:], target)
        with _told(config, x.shape[1:]):
            found = _joined(network, x, prefix, scales=_takes_tensor(config))
    _require_own_layers(network, config)
    for layer in network._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.synchronized = synchronized
            if layer.momentum == _KERAS_MOMENTUM:  # which nobody chose; see `blocks.MOMENTUM`
                layer.momentum = MOMENTUM
    if not isinstance(found, keras.KerasTensor):
        refuse(config, f"gives a {type(found).__name__} of {len(found)}: one tensor is needed")
    return found, network


def own_network(
    config: NetworkConfig, shape: tuple[int, ...], target: Target = PLAIN
) -> keras.Model:
    """What the user's function gives for standardised volumes (row, column, slice, channel).

    Raises:
      UsageError: as `own_logit`.
    """
    function = load(config.name, flag="--model")
    known = _parameters(function)
    of_kerastuner = is_hypermodel(function) and len(shape) == len(_VOLUME)
    if not (of_kerastuner or _takes_any(known)) and (unknown := config.options.keys() - known):
        names = ", ".join(sorted(unknown))
        refuse(config, f"no parameter {names}; it has {', '.join(known) or 'none'}")
    with _told(config, shape):
        if of_kerastuner:
            _settings({}, config, 1)  # refuses what it cannot be told
            found = build(f"--model {config.name}", function, config.options, shape, target)
        else:
            with warnings.catch_warnings():  # keras.applications', of 4 channels
                warnings.filterwarnings("ignore", "This model usually expects 1 or 3")
                found = _called(function, known, config, tuple(shape), target.outputs)
    if not isinstance(found, keras.Model):
        refuse(config, f"gives {type(found).__name__}: {_forms(shape)}")
    if inputs := getattr(found, "inputs", None):
        if len(inputs) > 1:
            refuse(config, f"takes {len(inputs)} inputs: one volume is what there is")
        taken = tuple(inputs[0].shape)
        if len(taken) != len(shape) + 1 or any(
            there not in (None, here) for there, here in zip(taken[1:], shape, strict=True)
        ):
            axes = _VOLUME if len(shape) == len(_VOLUME) else _SLICE
            refuse(config, f"takes {taken[1:]}: ({', '.join(axes)}) is {shape}")
    return found


def _forms(shape: tuple[int, ...]) -> str:
    if len(shape) < len(_VOLUME):
        return "function(slices, config) or function(input_shape) is needed"
    return "function(volume, config), function(input_shape, classes) or build(hp) is needed"


def _called(
    function: Callable[..., Any],
    known: Mapping[str, inspect.Parameter],
    config: NetworkConfig,
    shape: tuple[int, ...],
    outputs: int,
) -> Any:
    """The user's function, called as its parameters ask for."""
    is_layer = inspect.isclass(function) and issubclass(function, keras.Layer)
    given = keras.Input(shape)
    if "input_shape" in known or is_layer:
        settings = _settings(known, config, outputs)
        if len(shape) < len(_VOLUME) and "include_top" in known:
            settings["include_top"] = False
        if "input_shape" in known:
            found = function(**{"input_shape": shape, **settings, **config.options})
        else:
            found = function(**{**settings, **config.options})(given)
    else:
        places = [p for p in known.values() if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
        if len(places) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in places):
            refuse(config, f"takes ({', '.join(known)}): {_forms(shape)}")
        found = function(given, config, **config.options)
    if isinstance(found, keras.KerasTensor):
        return keras.Model(given, found)
    if isinstance(found, (list, tuple, dict)):
        refuse(config, f"gives a {type(found).__name__} of {len(found)}: one tensor is needed")
    return found


def _settings(
    known: Mapping[str, inspect.Parameter], config: NetworkConfig, outputs: int
) -> dict[str, Any]:
    """What a function that makes a model is told, as far as it has parameters for it."""
    settings: dict[str, Any] = {
        **dict.fromkeys(("classes", "num_classes"), outputs),
        **dict.fromkeys(("classifier_activation", "weights"), None),
        **dict.fromkeys(("include_rescaling", "include_preprocessing"), False),
        # Its own top is the published one; another pooling than its own needs the feature map.
        "include_top": config.pooling == "avg" and bool({"classes", "num_classes"} & set(known)),
    }
    if config.pooling != "avg":
        settings["pooling"] = None
    for name, default in (("width", 1.0), ("depth", 1.0), ("dropout", None)):
        value = getattr(config, name)
        if value == default:
            continue
        settings[name] = value
        if name not in known and name != "dropout":
            refuse(config, f"--{name} {value}: it has no parameter of that name")
    return {name: value for name, value in settings.items() if name in known}


def _takes_tensor(config: NetworkConfig) -> bool:
    """Whether the function is of the form (volume, config), which knows what it is given."""
    function = load(config.name, flag="--model")
    return not ("input_shape" in _parameters(function) or is_hypermodel(function))


def _takes_dropout(config: NetworkConfig, network: keras.Model) -> bool:
    """Whether the rate is the network's own matter."""
    function = load(config.name, flag="--model")
    known = _parameters(function)
    if is_hypermodel(function):
        return False
    if "input_shape" in known or "dropout" in known:
        return "dropout" in known
    return any(isinstance(layer, layers.Dropout) for layer in network._flatten_layers())


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters by name; those of a class's parents too, to which it passes on what it is given.

    Empty for what has no signature.
    """
    found: dict[str, inspect.Parameter] = {}
    sources = [function]
    if inspect.isclass(function):
        keras_or_python = ("keras", "builtins")
        own_classes = [
            c for c in function.__mro__ if c.__module__.partition(".")[0] not in keras_or_python
        ]
        sources = [vars(c)["__init__"] for c in own_classes if "__init__" in vars(c)]
    for source in sources:
        with contextlib.suppress(ValueError, TypeError):
            own = dict(inspect.signature(source).parameters)
            own.pop("self", None)
            found = {**own, **found}
            if not _takes_any(own):
                break
    return found


def _takes_any(known: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in known.values())


def _joined(network: keras.Model, x: Any, prefix: str, *, scales: bool) -> Any:
    """The network's layers, called one by one on a tensor of our graph.

    Without `scales`, a rescaling of the input is left out: it is one of stored values.
    """
    names: dict[str, Any] = dict.fromkeys(_OURS)

    def callable_of(operation: Any) -> Callable[..., Any]:
        if isinstance(operation, keras.Sequential):
            return lambda x, **_: _in_turn(operation, x, callable_of)
        if isinstance(operation, keras.Function) and type(operation).call is _FUNCTIONAL_CALL:
            return lambda x, *_, **__: operation._run_through_graph(x, callable_of)
        # Two nested models may each have a layer of one name; a graph may not.
        if prefix and not operation.name.startswith(prefix):
            operation.name = prefix + operation.name
        name, count = operation.name, 0
        while names.setdefault(operation.name, operation) is not operation:
            count += 1
            operation.name = f"{name}_{count}"
        # keras.applications' bring both.
        if isinstance(operation, (layers.Rescaling, layers.Normalization)) and not scales:
            return lambda given: given if given is x else operation(given)
        called: Callable[..., Any] = operation
        return called

    return callable_of(network)(x)


def _in_turn(network: keras.Sequential, x: Any, callable_of: Callable[[Any], Any]) -> Any:
    for layer in network.layers:
        x = callable_of(layer)(x)
    return x


def _pooled(found: Any, parts: Parts) -> Any:
    """What a network gave, as (batch, n)."""
    config = parts.config
    shape = tuple(found.shape)
    if not 2 <= len(shape) <= 5 or shape[0] is not None or None in shape[1:]:
        refuse(config, f"gives {shape}: (batch, n), or a map (batch, ..., n), is needed")
    if len(shape) == 2:
        if config.pooling != "avg":
            refuse(config, f"--pooling {config.pooling}: gives {shape}, no map to be pooled")
        return found
    return parts.pool(found)


def _require_own_layers(network: keras.Model, config: NetworkConfig) -> None:
    """Refuses a network without weights, and one whose layers are another network's too."""
    if not network.trainable_weights:
        refuse(config, "gives a network without weights to train")
    for layer in network._flatten_layers():
        if layer.weights and layer in _built:
            refuse(config, f"gives the same layer {layer.name} again: it must make new ones")
    _built.update(network._flatten_layers())


@contextlib.contextmanager
def _told(config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[None]:
    """Whatever a user's code raises becomes a line with the place of it.

    What it prints is no part of a command's output, and it moves no relative path of ours.
    """
    try:
        with undisturbed(), precision_kept(f"--model {config.name}:"):
            yield
    except (Exception, SystemExit) as error:
        full = type(error).__name__ == "ResourceExhaustedError"  # TensorFlow's
        if full or isinstance(error, UsageError | MemoryError):  # a smaller batch may do
            raise
        size = "x".join(map(str, shape))
        kind = "volumes" if len(shape) == len(_VOLUME) else "slices"
        refuse(config, f"fails on {kind} {size}: {reason(error)}", error)
