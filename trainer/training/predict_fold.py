"""A network's answers to records, one after the other."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.records import Records


def inference(model: keras.Model) -> Any:
    """The model as a graph function, stored volumes → logits (batch, 1); weights stay live.

    One trace serves every batch size, unlike `predict_on_batch`; less overhead than `predict`.
    """
    signature = [tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)]
    infer = tf.function(lambda volume: model(volume, training=False), input_signature=signature)
    infer.get_concrete_function()  # traced here, where a network is new, not by some call
    return infer


def predict(
    infer: Any, records: Records, *, batch_size: int
) -> tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Patient ids, labels (-1: none) and logits of every record, in shard order."""
    ids: list[str] = []
    labels, logits = [], []
    for batch in records.evaluation_batches(batch_size=batch_size):
        ids += [patient_id.decode() for patient_id in batch["patient_id"].numpy()]
        labels.append(batch["label"].numpy())
        logits.append(infer(batch["volume"]).numpy().astype(np.float64)[:, 0])
    return tuple(ids), np.concatenate(labels), np.concatenate(logits)
