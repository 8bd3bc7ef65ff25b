"""A warm-up request for TensorFlow Serving, in a SavedModel's `assets.extra`.

The server replays `tf_serving_warmup_requests`, a TFRecord of PredictionLog messages, before it
takes requests, so that no first caller waits for the graph to be made ready. The messages are put
together by hand: their package wants another TensorFlow than ours. The field numbers are those of
tensorflow/serving's prediction_log.proto, predict.proto and model.proto.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from beam_jobs.core.example import encode_case, field_head
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import write_record

WARMUP_NAME = "assets.extra/tf_serving_warmup_requests"


def warmup_requests(schema: RecordSchema) -> bytes:
    """The file's bytes: one request of one blank volume to each signature."""
    import tensorflow as tf

    blank = PreparedCase(
        patient_id="warm-up",
        volume=np.zeros(schema.volume_shape, schema.dtype),
        affine=np.eye(4),
        present=(True,) * len(schema.modalities),
    )
    example = tf.make_tensor_proto([encode_case(blank, schema)], tf.string)
    volumes = tf.make_tensor_proto(0, schema.dtype, shape=(1, *schema.volume_shape))
    stream = io.BytesIO()
    write_record(stream, _prediction_log("serving_default", "examples", example))
    write_record(stream, _prediction_log("volumes", "volumes", volumes))
    return stream.getvalue()


def _prediction_log(signature: str, name: str, tensor: Any) -> bytes:
    """PredictionLog.predict_log (6) .request (1): model_spec (1) and one of inputs (2)."""
    # The server replays on the model it loads, whatever the name.
    spec = _field(1, b"default") + _field(3, signature.encode())
    entry = _field(1, name.encode()) + _field(2, tensor.SerializeToString(deterministic=True))
    return _field(6, _field(1, _field(1, spec) + _field(2, entry)))


def _field(number: int, data: bytes) -> bytes:
    return field_head(number, len(data)) + data
