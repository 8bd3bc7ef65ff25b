"""Thin transforms of batch prediction: they name, count and call."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference

from beam_jobs import filesystems
from beam_jobs.core.ids import normalised_id
from beam_jobs.core.record import RecordSchema
from beam_jobs.state import digest
from serving.bundle import Bundle, Prediction, load_bundle
from serving.shards import read_cases, reject_row
from serving.submission import SHARD_DIFFERS


class ReadShards(beam.PTransform):
    """Shards -> `.examples` (patient_id, serialized Example) and `.rejects`, as `CasesFromDicom`.

    Only paths are shuffled; a shard's records flow on in the bundle that reads them.

    Args:
      paths: of the shards.
      schema: what their records must be.
      digests: path -> (bytes, sha256 hex) that a manifest lists. A shard that differs is told of
        by a reject; such of its records as are sound are answered all the same.
    """

    def __init__(
        self,
        paths: Sequence[str],
        schema: RecordSchema,
        digests: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        super().__init__()
        self._shards = [(path, (digests or {}).get(path)) for path in paths]
        self._schema = schema

    def expand(self, root: Any) -> Any:
        return (
            root
            | "Shards" >> beam.Create(self._shards)
            | "Read" >> beam.FlatMap(_read, self._schema).with_outputs("rejects", main="examples")
        )


class KeepAsked(beam.PTransform):
    """Drops the cases nobody asked for before they cost a prediction; None keeps all.

    Spellings are not told apart here: which of `5` and `00005` is meant is settled in the table.
    """

    def __init__(self, asked: Sequence[str] | None) -> None:
        super().__init__()
        self._asked = None if asked is None else frozenset(map(normalised_id, asked))

    def expand(self, examples: Any) -> Any:
        return examples | beam.Filter(_is_asked, self._asked)


class Predict(beam.PTransform):
    """(patient_id, serialized Example) -> `Prediction`."""

    def __init__(self, model: str, *, batch_size: int) -> None:
        super().__init__()
        self._handler = SavedModelHandler(model, batch_size=batch_size)

    def expand(self, examples: Any) -> Any:
        return examples | "Example" >> beam.Values() | "Infer" >> RunInference(self._handler)


class WriteRows(beam.PTransform):
    """(predictions, rejects) -> text files in `directory`, one JSON object a line.

    A prediction has `patient_id`, `probability` and `logit`; a reject is as it came. `read_rows`
    reads them.
    """

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._prefix = filesystems.join(directory, "rows")

    def expand(self, rows: Any) -> Any:
        predictions, rejects = rows
        lines = (
            predictions | "Prediction" >> beam.Map(_prediction_line),
            rejects | "Reject" >> beam.Map(json.dumps),
        )
        return lines | beam.Flatten() | "Write" >> beam.io.WriteToText(self._prefix)


def read_rows(directory: str) -> tuple[list[tuple[str, float]], list[dict[str, str]]]:
    """(patient_id, probability) and rejects, as `WriteRows` left them."""
    predictions, rejects = [], []
    for path in filesystems.list_files(directory):
        for line in filesystems.read_text(path).splitlines():
            row = json.loads(line)
            if "reason" in row:
                rejects.append(row)
            else:
                predictions.append((row["patient_id"], row["probability"]))
    return predictions, rejects


class SavedModelHandler(ModelHandler[bytes, Prediction, Bundle]):
    """Beam's view of a `Bundle`: loaded once a worker process, called with capped batches.

    Beam's own TFModelHandler wants tensorflow-hub and cannot load an exported SavedModel.
    """

    def __init__(self, model: str, *, batch_size: int) -> None:
        super().__init__()
        self._model = model
        self._batch_size = batch_size

    def load_model(self) -> Bundle:
        bundle = load_bundle(self._model)
        _fix_gpu_arithmetic()
        return bundle

    def run_inference(
        self,
        batch: Sequence[bytes],
        model: Bundle,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Prediction]:
        return model.predict(batch)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": self._batch_size}


def _read(element: tuple[str, tuple[int, str] | None], schema: RecordSchema) -> Iterator[Any]:
    path, listed = element
    shard = os.path.basename(path)
    try:
        if listed is not None and (found := digest(path)) != listed:
            told = "{}: {} bytes, sha256 {}; the manifest lists {} bytes, sha256 {}"
            yield beam.pvalue.TaggedOutput(
                "rejects",
                reject_row(
                    scope="shard",
                    subject=shard,
                    reason=SHARD_DIFFERS,
                    detail=told.format(shard, *found, *listed),
                ),
            )
        with filesystems.open_read(path) as stream:
            for item in read_cases(stream, shard, schema):
                yield beam.pvalue.TaggedOutput("rejects", item) if isinstance(item, dict) else item
    except OSError as error:
        detail = f"{shard}: {error}"
        yield beam.pvalue.TaggedOutput(
            "rejects",
            reject_row(scope="shard", subject=shard, reason="unreadable_shard", detail=detail),
        )


def _is_asked(case: tuple[str, bytes], asked: frozenset[str] | None) -> bool:
    return asked is None or normalised_id(case[0]) in asked


def _prediction_line(prediction: Prediction) -> str:
    return json.dumps(prediction._asdict())


def _fix_gpu_arithmetic() -> None:
    """On a GPU: full float32 and the same kernels every time, so that it agrees with the CPU."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()
