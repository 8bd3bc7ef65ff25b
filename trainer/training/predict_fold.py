"""A network's answers to records, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.records import Records


def inference(model: keras.Model) -> Any:
    """The model as a graph function of `inputs_of` a batch → answers (batch, outputs).

    Weights stay live. One trace serves every batch size, unlike `predict_on_batch`; less overhead
    than `predict`.
    """
    signature = [tf.TensorSpec(one.shape, one.dtype) for one in model.inputs]

    def answer(*inputs: tf.Tensor) -> tf.Tensor:
        return model(inputs[0] if len(inputs) == 1 else list(inputs), training=False)

    infer = tf.function(answer, input_signature=signature)
    infer.get_concrete_function()  # traced here, where a network is new, not by some call
    return infer


def inputs_of(batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """What a network gets of a batch: the volumes, and the covariates where there are any."""
    return tuple(batch[name] for name in ("volume", "covariates") if name in batch)


def predict(
    infer: Any, records: Records, *, batch_size: int
) -> tuple[tuple[str, ...], npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Patient ids, truth and answers of every record, in shard order.

    Truth is as `data.targets.truth_of` has it (of a binary -1: none). Answers are logits or values,
    (n,) of a binary or a regression, (n, outputs) of others.
    """
    ids: list[str] = []
    labels, answers = [], []
    for batch in records.evaluation_batches(batch_size=batch_size):
        ids += [patient_id.decode() for patient_id in batch["patient_id"].numpy()]
        labels.append(batch["label"].numpy())
        answers.append(infer(*inputs_of(batch)).numpy().astype(np.float64))
    found = np.concatenate(answers)
    single = records.schema.target.task in ("binary", "regression")
    return tuple(ids), np.concatenate(labels), found[:, 0] if single else found
