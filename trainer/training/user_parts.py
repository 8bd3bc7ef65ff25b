"""A user's own augmentation, loss and network: tried once on made-up patients, and called.

What would go wrong in the middle of a run, or without a word, is found before its first step: other
shapes, values that are not finite, random numbers that a resumed run would not draw again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.network import NetworkConfig
from trainer.config.user_code import accepted, load, reason
from trainer.networks.weights.encoder_weights import encoder_of

_PATIENTS = 2
_SURE = 30.0  # a logit whose probability is 1 in float32 but for 1e-13
_FAR = 5.0  # standard deviations
Vary = Callable[..., Any]
EachLoss = Callable[[Any, Any], Any]


def own_augmentation(
    reference: str,
    *,
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    top: float,
    seed: Callable[[], keras.random.SeedGenerator],
) -> Vary:
    """A user's function that varies training volumes.

    Args:
      reference: `module:function`. The function takes volumes, float32 (batch, row, column, slice,
        channel) in stored units with background 0, and the step's `keras.random.SeedGenerator`;
        where its signature has them also `voxel_mm` (row, column, slice) and `top`, the greatest
        stored value. It gives volumes of the same shape. A class is made without arguments.
      shape: (rows, columns, slices, channels).
      voxel_mm: size of a voxel along (row, column, slice).
      top: the greatest stored value.
      seed: gives a generator at the same place of its draws each time.

    Returns:
      (volume of any stored dtype, seed=) → float32 of the same shape.

    Raises:
      UsageError: it cannot be loaded, fails, or gives what cannot be trained on.
    """
    flag = f"--augment {reference}"
    function = _made(load(reference, flag="--augment"), flag)
    known = {"voxel_mm": tuple(voxel_mm), "top": top}
    wanted = {name: known[name] for name in accepted(function, known)}

    def vary(volume: Any, *, seed: keras.random.SeedGenerator) -> Any:
        found = function(keras.ops.cast(volume, "float32"), seed, **wanted)
        return keras.ops.cast(found, "float32")

    rng = np.random.default_rng(0)
    given = np.zeros((_PATIENTS, *shape), np.float32)
    given[0] = top * rng.uniform(0.1, 1, shape)  # the other is empty, as a missing modality is
    signature = tf.TensorSpec((None, *shape), tf.float32)

    def tried() -> npt.NDArray[Any]:
        # Traced anew each time: what Python and numpy draw is drawn while it is traced.
        graph = tf.function(lambda volume: vary(volume, seed=seed()), input_signature=[signature])
        return np.asarray(graph(given))

    found = _tried(tried, flag)
    if found.shape != given.shape:
        raise UsageError(f"{flag}: gives {_shape(found)} for {_shape(given)}, the same is needed")
    if not np.isfinite(found).all():
        raise UsageError(f"{flag}: gives values that are not finite")
    if found[1].any():
        raise UsageError(
            f"{flag}: makes something of a volume of zeros; background, and a missing modality, "
            "must stay 0"
        )
    if not np.allclose(found, _tried(tried, flag), atol=1e-3 * top):
        raise UsageError(
            f"{flag}: draws random numbers without the seed that it is given, so that a resumed "
            "run would be another; keras.random.uniform(..., seed=seed) draws with it"
        )
    return vary


def own_loss(reference: str, target: Target = PLAIN) -> EachLoss:
    """A user's loss.

    Args:
      reference: `module:function`, or a `keras.losses.Loss`, its class or an instance. The function
        takes labels and answers, float32 (rows, n) each, and gives float (rows,) or (rows, 1).
        Of a binary n is 1; of a multiclass labels are one hot, n classes; of a multilabel n is 1,
        and each known label of a patient is a row; of values n is 1, and both are standardised.
        Answers are logits but for values: what has a `from_logits` gets True.
      target: what labels say.

    Returns:
      (label, answer) → the loss of each row, (rows,) float32.

    Raises:
      UsageError: it cannot be loaded, fails, or gives what cannot be learnt from.
    """
    flag = f"--loss {reference}"
    function = load(reference, flag="--loss")
    values = target.task == "regression"
    if isinstance(function, type):
        function = _made(function, flag, from_logits=True)
    of_logits = hasattr(function, "from_logits")
    if isinstance(function, keras.losses.Loss):
        if not getattr(function, "from_logits", True):
            raise UsageError(f"{flag}: it gets logits: from_logits=True is needed")
        function = function.call  # before its reduction
    logits = {"from_logits": True} if accepted(function, ["from_logits"]) else {}
    if values and (of_logits or logits):
        raise UsageError(f"{flag}: it is one of logits, and labels are values")

    def each(label: Any, answer: Any) -> Any:
        return keras.ops.cast(function(label, answer, **logits), "float32")

    label, answer = (tf.constant(array, tf.float32) for array in _tried_answers(target))

    def learnt(label: Any, answer: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(answer)
            loss = each(label, answer)
        slope = tape.gradient(loss, answer)
        return loss, tf.zeros_like(answer) if slope is None else slope

    signature = [tf.TensorSpec((None, label.shape[1]), tf.float32)] * 2
    tried = tf.function(learnt, input_signature=signature)
    found, slope = _tried(lambda: [np.asarray(part) for part in tried(label, answer)], flag)
    if found.shape not in ((len(label),), (len(label), 1)):
        raise UsageError(
            f"{flag}: gives {_shape(found)} for {len(label)} patients; one value each is needed"
        )
    bad = ~(np.isfinite(found.ravel()) & np.isfinite(slope).all(axis=1))
    if bad.any():
        place = int(np.argmax(bad))
        name, told = ("value", "standardised values") if values else ("logit", "logits")
        raise UsageError(
            f"{flag}: loss {found.ravel()[place]:g}, slope {_row(slope[place])} at {name} "
            f"{_row(answer[place])}, label {_row(label[place])}; it gets {told}, not "
            f"{'those of the labels' if values else 'probabilities'}, and must be finite"
        )
    if not slope.any():
        raise UsageError(
            f"{flag}: does not depend on the {'value' if values else 'logit'}, so that nothing can "
            "be learnt"
        )
    return lambda label, answer: keras.ops.reshape(each(label, answer), (-1,))


def _tried_answers(target: Target) -> tuple[Any, Any]:
    """Labels and answers on which a loss is tried, (rows, n) each: undecided, sure, and wrong."""
    if target.task == "multiclass":
        every = np.eye(target.outputs)
        answers = [np.zeros_like(every), _SURE * every, _SURE * every[::-1]]
        return np.tile(every, (3, 1)), np.concatenate(answers)
    if target.task == "regression":
        return np.repeat([[-2.0], [0.0], [2.0]], 3, axis=0), np.tile(
            [[-_FAR], [0.1], [_FAR]], (3, 1)
        )
    return np.tile([[0.0], [1.0]], (3, 1)), np.repeat([[-_SURE], [0.0], [_SURE]], 2, axis=0)


def _row(values: Any) -> str:
    return ", ".join(f"{float(value):g}" for value in values)


def require_learnable(network: keras.Model, config: NetworkConfig, top: float) -> None:
    """Refuses a user's own network that no step could train, before the first: tries it out.

    Args:
      network: stored volumes (and covariates) → answers, on one device.
      config: of which it was made.
      top: the largest value that is stored.

    Raises:
      UsageError: it fails on two volumes of noise, or no gradient reaches its own weights.
    """
    volume = network.inputs[0]
    noise = np.random.default_rng(0).uniform(0, top, (2, *volume.shape[1:]))
    given = [tf.cast(noise, volume.dtype), *(tf.zeros((2, n.shape[1])) for n in network.inputs[1:])]
    shape = (2, network.output.shape[1])
    flag, part = f"--model {config.name}", network
    if config.encoder is not None:
        flag, part = f"--encoder {config.encoder}", encoder_of(network)
    every = part.trainable_variables  # a regression on voxels has the logit's alone
    ours = ("logit", "of_covariates")
    own = [v for v in every if not v.path.startswith(ours)] or every
    what = ""
    try:
        with tf.GradientTape() as tape:
            logit = network(given if given[1:] else given[0], training=False)
        gradients = tape.gradient(logit, [variable.value for variable in own])
    except (MemoryError, tf.errors.ResourceExhaustedError):  # a smaller batch may do
        raise
    except (Exception, SystemExit) as error:  # a user's code, in layers of its own
        what = f"fails on a batch of 2: {reason(error)}"
    else:
        if logit.shape != shape:
            what = f"gives {tuple(logit.shape)} for 2 volumes: {shape} is needed"
        elif not np.isfinite(logit).all():
            what = f"answers noise with {np.ravel(logit)[0]}"
        elif not any(gradient is not None for gradient in gradients):
            what = "no gradient reaches its weights: an operation on their way has none"
    if what:
        raise UsageError(f"{flag}: {what}")


def _made(found: Any, flag: str, **options: Any) -> Any:
    """What a class makes; anything else as it is."""
    if not isinstance(found, type):
        return found
    given = {name: options[name] for name in accepted(found, options)}
    return _tried(lambda: found(**given), flag)


def _tried(call: Callable[[], Any], flag: str) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise UsageError(f"{flag}: it fails: {reason(error)}") from error


def _shape(array: npt.NDArray[Any]) -> str:
    return "x".join(map(str, array.shape)) or "one number"
