"""A warm-up request for TensorFlow Serving, in a SavedModel's `assets.extra`.

The server replays `tf_serving_warmup_requests`, a TFRecord of PredictionLog messages, before it
takes requests, so that no first caller waits for the graph to be made ready. The messages are put
together by hand: their package wants another TensorFlow than ours. The field numbers are those of
tensorflow/serving's prediction_log.proto, predict.proto and model.proto.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from beam_jobs.core.example import encode_case, field_head
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import write_record

WARMUP_NAME = "assets.extra/tf_serving_warmup_requests"


def warmup_requests(schema: RecordSchema, *, covariates: int = 0) -> bytes:
    """The file's bytes: one request of one blank volume to each signature.

    Args:
      schema: of the records that the model takes.
      covariates: how many it takes beside a volume; none of them is known.
    """
    import tensorflow as tf

    blank = PreparedCase(
        patient_id="warm-up",
        volume=np.zeros(schema.volume_shape, schema.dtype),
        affine=np.eye(4),
        present=(True,) * len(schema.modalities),
        covariates=(math.nan,) * len(schema.covariates),
    )
    example = tf.make_tensor_proto([encode_case(blank, schema)], tf.string)
    inputs = {"volumes": tf.make_tensor_proto(0, schema.dtype, shape=(1, *schema.volume_shape))}
    if covariates:
        inputs["covariates"] = tf.make_tensor_proto(math.nan, tf.float32, shape=(1, covariates))
    stream = io.BytesIO()
    write_record(stream, _prediction_log("serving_default", {"examples": example}))
    write_record(stream, _prediction_log("volumes", inputs))
    return stream.getvalue()


def _prediction_log(signature: str, inputs: Mapping[str, Any]) -> bytes:
    """PredictionLog.predict_log (6) .request (1): model_spec (1) and each of inputs (2)."""
    # The server replays on the model it loads, whatever the name.
    spec = _field(1, b"default") + _field(3, signature.encode())
    entries = b""
    for name, tensor in inputs.items():
        serialized = tensor.SerializeToString(deterministic=True)
        entries += _field(2, _field(1, name.encode()) + _field(2, serialized))
    return _field(6, _field(1, _field(1, spec) + entries))


def _field(number: int, data: bytes) -> bytes:
    return field_head(number, len(data)) + data
