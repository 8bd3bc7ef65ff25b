"""The functions of the SavedModel: members, ensemble and calibration in one graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.core.cohort.target import Target
from serving.model.answers import OUTPUTS
from serving.model.calibration import Calibration
from serving.model.contract import Contract
from serving.model.temperatures import Temperatures

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def in_float32(model: keras.Model, precision: str) -> keras.Model:
    """A member that computes in float32, whatever the policy it was trained under."""
    if precision == "float32":
        return model
    import keras

    def clone(layer: keras.Layer) -> keras.Layer:
        return layer.__class__.from_config({**layer.get_config(), "dtype": "float32"})

    inputs: Any = [keras.Input(one.shape[1:], dtype=one.dtype) for one in model.inputs]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def serving_module(
    members: Sequence[keras.Model], contract: Contract
) -> tuple[tf.Module, dict[str, Any]]:
    """The variables and the two functions of the SavedModel; see `serving.export`."""
    import tensorflow as tf

    schema, places = contract.schema, contract.covariate_places
    stored = tf.as_dtype(schema.dtype)
    all_channels = contract.channels == tuple(range(len(schema.modalities)))
    answer_of, outputs = _answering(contract, len(members))
    shape = [] if contract.target.outputs == 1 else [contract.target.outputs]

    def answer(inputs: Any) -> Any:
        volume = inputs[0] if places else inputs
        chosen = volume if all_channels else tf.gather(volume, contract.channels, axis=-1)

        def of(member: keras.Model) -> tf.Tensor:
            given = [chosen[None], inputs[1][None]] if places else chosen[None]
            return tf.reshape(tf.cast(member(given, training=False), tf.float32), shape)

        return answer_of(tf.stack([of(member) for member in members]))

    def answers(inputs: Any) -> dict[str, tf.Tensor]:
        # One volume at a time: kernels split a batch by its size, and so round differently (1e-8
        # measured). A patient's answer must not hang on who else is in the batch; on a CPU this
        # is no slower, a volume keeps all cores busy.
        found = tf.map_fn(
            answer, inputs, fn_output_signature=tuple(outputs.values()), parallel_iterations=1
        )
        return dict(zip(outputs, found, strict=True))

    def named(found: dict[str, tf.Tensor], first: tf.Tensor) -> dict[str, tf.Tensor]:
        """With the names of the columns, in each row: a server's rows have all outputs."""
        if contract.target.outputs == 1:
            return found
        names = tf.constant([contract.target.names])
        return {**found, "classes": tf.tile(names, [tf.shape(first)[0], 1])}

    def from_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        one = tf.io.FixedLenFeature([], tf.string)
        features = {"volume": one, "patient_id": one, "spec_fingerprint": one}
        if places:
            count = len(schema.covariates)
            features["covariates"] = tf.io.FixedLenFeature([count], tf.float32)
        parsed = tf.io.parse_example(examples, features)
        tf.debugging.assert_equal(
            parsed["spec_fingerprint"],
            tf.constant(schema.spec_fingerprint),
            message="records do not fit: spec_fingerprint differs from the model's",
        )
        raw = tf.io.decode_raw(parsed["volume"], stored)
        inputs = tf.reshape(raw, (-1, *schema.volume_shape))
        if places:
            inputs = (inputs, tf.gather(parsed["covariates"], places, axis=1))
        found = answers(inputs)
        chosen = {name: found[name] for name in found if not name.startswith("member_")}
        return {"patient_id": parsed["patient_id"], **named(chosen, parsed["patient_id"])}

    def from_volumes(volumes: tf.Tensor) -> dict[str, tf.Tensor]:
        return named(answers(volumes), volumes)

    def from_volumes_and_covariates(
        volumes: tf.Tensor, covariates: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return named(answers((volumes, covariates)), volumes)

    module = tf.Module()
    # The weights alone: nothing of Keras is needed to load them, and no `variables`, of which the
    # seeds of dropout are drawn anew by every process that loads a network.
    module.weights = [weight.value for member in members for weight in member.weights]
    examples = tf.TensorSpec([None], tf.string, name="examples")
    volumes = [tf.TensorSpec([None, *schema.volume_shape], stored, name="volumes")]
    if places:
        volumes.append(tf.TensorSpec([None, len(places)], tf.float32, name="covariates"))
    function = from_volumes_and_covariates if places else from_volumes
    return module, {
        "serving_default": tf.function(from_examples, input_signature=[examples]),
        "volumes": tf.function(function, input_signature=volumes),
    }


def _answering(contract: Contract, members: int) -> tuple[Callable[[Any], Any], dict[str, Any]]:
    """What makes the outputs of members' answers, [members(, outputs)], and the outputs' specs."""
    import tensorflow as tf

    target, ensemble, calibration = contract.target, contract.ensemble, contract.calibration

    def of_binary(logits: tf.Tensor) -> tuple[tf.Tensor, ...]:
        assert isinstance(calibration, Calibration)
        logit = calibrated(ensembled(logits, ensemble), calibration)
        return tf.sigmoid(logit), logit, tf.sigmoid(calibrated(logits, calibration))

    def of_values(values: tf.Tensor) -> tuple[tf.Tensor, ...]:
        assert contract.interval is not None
        half = contract.interval.half_width
        value = tf.reduce_mean(values)
        width = tf.constant(math.nan if half is None else half, tf.float32)
        return value, value - width, value + width, values

    def of_several(logits: tf.Tensor) -> tuple[tf.Tensor, ...]:
        assert isinstance(calibration, Temperatures)
        logit = cooled(ensembled_several(logits, ensemble, target), calibration)
        squashed = tf.nn.softmax if target.task == "multiclass" else tf.sigmoid
        return squashed(logit), logit, squashed(cooled(logits, calibration))

    made: Callable[[Any], Any] = of_binary
    row: list[int] = []
    if target.task == "regression":
        made = of_values
    elif target.task != "binary":
        made, row = of_several, [target.outputs]
    *names, of_members = OUTPUTS[target.task]
    specs = {name: tf.TensorSpec(row, tf.float32) for name in names}
    return made, {**specs, of_members: tf.TensorSpec([members, *row], tf.float32)}


def ensembled(logits: tf.Tensor, ensemble: str) -> tf.Tensor:
    """Members' logits, [members] float32, as one; see `out_of_fold.combine`."""
    import tensorflow as tf

    if ensemble == "logits":
        return tf.reduce_mean(logits)
    up, down = -tf.math.softplus(-logits), -tf.math.softplus(logits)
    return tf.reduce_logsumexp(up) - tf.reduce_logsumexp(down)


def ensembled_several(logits: tf.Tensor, ensemble: str, target: Target) -> tf.Tensor:
    """Members' logits, [members, outputs] float32, as one row; see `out_of_fold.combine`."""
    import tensorflow as tf

    if ensemble == "logits":
        return tf.reduce_mean(logits, axis=0)
    if target.task == "multiclass":
        logs = tf.reduce_logsumexp(tf.nn.log_softmax(logits), axis=0)
        return logs - math.log(logits.shape[0])
    up, down = -tf.math.softplus(-logits), -tf.math.softplus(logits)
    return tf.reduce_logsumexp(up, axis=0) - tf.reduce_logsumexp(down, axis=0)


def cooled(logits: tf.Tensor, calibration: Temperatures) -> tf.Tensor:
    """Logits [..., outputs], mapped as `Temperatures.apply` does; float32."""
    import tensorflow as tf

    if not calibration.temperatures:
        return logits
    return logits / tf.constant(calibration.temperatures, tf.float32)


def calibrated(logits: tf.Tensor, calibration: Calibration) -> tf.Tensor:
    """Logits of any shape, mapped as `Calibration.apply` does; float32."""
    import tensorflow as tf

    if not calibration.knots:
        return logits / calibration.temperature
    # float64: a steep piece makes much of a rounding.
    x, y = (tf.constant(axis, tf.float64) for axis in zip(*calibration.knots, strict=True))
    values = tf.cast(logits, tf.float64)
    inside = tf.clip_by_value(values, x[0], x[-1])
    if len(calibration.knots) == 1:
        mapped = y[0] + 0 * inside
    else:
        flat = tf.reshape(inside, [-1])
        piece = tf.clip_by_value(
            tf.searchsorted(x, flat, side="right") - 1, 0, len(calibration.knots) - 2
        )
        left, right = tf.gather(x, piece), tf.gather(x, piece + 1)
        low, high = tf.gather(y, piece), tf.gather(y, piece + 1)
        mapped = low + (flat - left) * (high - low) / (right - left)
        mapped = tf.reshape(mapped, tf.shape(inside))
    return tf.cast(mapped + values - inside, tf.float32)
