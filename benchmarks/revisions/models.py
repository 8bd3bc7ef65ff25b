"""What SavedModels hold and answer, as arrays: their files alone do not say whether they are equal.

    python models.py OUTPUT.npz RECORDS MODEL [MODEL ...]

Of each model: every variable, the signatures with their types and shapes, and what these answer for
volumes drawn at random from a fixed seed and for the records. The states of Keras's seed generators
(integers of shape (2,)) are left out: the export draws dropout layers' seeds anew, and no answer
depends on them.
"""

from __future__ import annotations

import glob
import sys
from typing import Any

import numpy as np
import tensorflow as tf

VOLUMES = 4


def held_and_answered(model: str, records: list[bytes]) -> dict[str, Any]:
    """{place: array} of one SavedModel."""
    found: dict[str, Any] = {}
    checkpoint = tf.train.load_checkpoint(f"{model}/variables/variables")
    for name in sorted(checkpoint.get_variable_to_shape_map()):
        value = checkpoint.get_tensor(name)
        if isinstance(value, bytes):  # the graph of Python objects, which names no values
            continue
        if not (value.dtype.kind in "iu" and value.shape == (2,)):
            found[f"variables/{name}"] = value
    loaded = tf.saved_model.load(model)
    for name, signature in sorted(loaded.signatures.items()):
        inputs = signature.structured_input_signature[1]
        found[f"{name}/signature"] = np.array(f"{inputs} -> {signature.structured_outputs}")
        answers = signature(**{key: _input(spec, records) for key, spec in inputs.items()})
        for key, answer in sorted(answers.items()):
            value = answer.numpy()
            found[f"{name}/{key}"] = value.astype("S") if value.dtype == object else value
    return found


def _input(spec: Any, records: list[bytes]) -> Any:
    if spec.dtype == tf.string:
        return tf.constant(records)
    shape = (VOLUMES, *spec.shape[1:])
    drawn = np.random.default_rng(0).integers(0, 256, shape)
    return tf.constant(drawn.astype(spec.dtype.as_numpy_dtype))


def main() -> None:
    output, pattern, *models = sys.argv[1:]
    records = [r.numpy() for r in tf.data.TFRecordDataset(sorted(glob.glob(pattern)))]
    found = {
        f"{model}/{place}": value
        for model in models
        for place, value in held_and_answered(model, records).items()
    }
    # A member's name may not be an absolute path or hold "..", these are neither.
    np.savez(output, **found)


if __name__ == "__main__":
    main()
