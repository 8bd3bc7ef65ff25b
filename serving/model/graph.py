"""The functions of the SavedModel: members, ensemble and calibration in one graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serving.model.calibration import Calibration
from serving.model.contract import Contract

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

    inputs = keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype)
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def serving_module(
    members: Sequence[keras.Model], contract: Contract
) -> tuple[tf.Module, dict[str, Any]]:
    """The variables and the two functions of the SavedModel; see `serving.export`."""
    import tensorflow as tf

    schema = contract.schema
    stored = tf.as_dtype(schema.dtype)
    all_channels = contract.channels == tuple(range(len(schema.modalities)))

    def answer(volume: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        chosen = volume if all_channels else tf.gather(volume, contract.channels, axis=-1)
        logits = tf.stack(
            [
                tf.reshape(tf.cast(member(chosen[None], training=False), tf.float32), [])
                for member in members
            ]
        )
        logit = calibrated(ensembled(logits, contract.ensemble), contract.calibration)
        return tf.sigmoid(logit), logit, tf.sigmoid(calibrated(logits, contract.calibration))

    def answers(volumes: tf.Tensor) -> dict[str, tf.Tensor]:
        # One volume at a time: kernels split a batch by its size, and so round differently (1e-8
        # measured). A patient's answer must not hang on who else is in the batch; on a CPU this
        # is no slower, a volume keeps all cores busy.
        scalar = tf.TensorSpec([], tf.float32)
        probability, logit, of_members = tf.map_fn(
            answer,
            volumes,
            fn_output_signature=(scalar, scalar, tf.TensorSpec([len(members)], tf.float32)),
            parallel_iterations=1,
        )
        return {"probability": probability, "logit": logit, "member_probability": of_members}

    def from_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        one = tf.io.FixedLenFeature([], tf.string)
        parsed = tf.io.parse_example(
            examples, {"volume": one, "patient_id": one, "spec_fingerprint": one}
        )
        tf.debugging.assert_equal(
            parsed["spec_fingerprint"],
            tf.constant(schema.spec_fingerprint),
            message="records do not fit: spec_fingerprint differs from the model's",
        )
        raw = tf.io.decode_raw(parsed["volume"], stored)
        found = answers(tf.reshape(raw, (-1, *schema.volume_shape)))
        return {
            "patient_id": parsed["patient_id"],
            **{name: found[name] for name in ("probability", "logit")},
        }

    def from_volumes(volumes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answers(volumes)

    module = tf.Module()
    # The weights alone: nothing of Keras is needed to load them, and no `variables`, of which the
    # seeds of dropout are drawn anew by every process that loads a network.
    module.weights = [weight.value for member in members for weight in member.weights]
    examples = tf.TensorSpec([None], tf.string, name="examples")
    volumes = tf.TensorSpec([None, *schema.volume_shape], stored, name="volumes")
    return module, {
        "serving_default": tf.function(from_examples, input_signature=[examples]),
        "volumes": tf.function(from_volumes, input_signature=[volumes]),
    }


def ensembled(logits: tf.Tensor, ensemble: str) -> tf.Tensor:
    """Members' logits, [members] float32, as one; see `calibration.combine`."""
    import tensorflow as tf

    if ensemble == "logits":
        return tf.reduce_mean(logits)
    up, down = -tf.math.softplus(-logits), -tf.math.softplus(logits)
    return tf.reduce_logsumexp(up) - tf.reduce_logsumexp(down)


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
