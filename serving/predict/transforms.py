"""Thin transforms of batch prediction: they name, count and call."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference

from beam_jobs.common.files import interface as files
from beam_jobs.common.progress_files import tick
from beam_jobs.convert.cases import Cases
from beam_jobs.core import drift
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.drift import Statistics
from beam_jobs.core.example import decode_case
from beam_jobs.core.manifest import ShardEntry
from beam_jobs.core.record import RecordSchema
from serving.model.loaded_model import LoadedModel, Prediction, load_model
from serving.predict import spool
from serving.predict.damaged_records import reject_row, surviving_cases
from serving.predict.reasons import Unpredicted

_PARTS = 8  # of the rows, written at the same time


class ReadShards(beam.PTransform):
    """Shards -> `Cases`: `.examples` (patient_id, serialized Example) and `.rejects`.

    Only paths are shuffled; a shard's records flow on in the bundle that reads them.

    Args:
      paths: of the shards.
      schema: what their records must be.
      listed: path -> its place in a manifest. A shard that differs from it is reported by a
        reject; such of its records as are sound are answered all the same.
    """

    def __init__(
        self, paths: Sequence[str], schema: RecordSchema, listed: Mapping[str, ShardEntry]
    ) -> None:
        super().__init__()
        self._shards = [(path, listed.get(path)) for path in paths]
        self._schema = schema

    def expand(self, root: Any) -> Any:
        read = (
            root
            | "Shards" >> beam.Create(self._shards)
            | "Read" >> beam.FlatMap(_read, self._schema).with_outputs("rejects", main="examples")
        )
        return Cases(examples=read.examples, rejects=read.rejects)


class KeepRequested(beam.PTransform):
    """Drops the cases that were not requested before they cost a prediction; None keeps all.

    Spellings are not distinguished here: which of `5` and `00005` is meant is settled in the table.
    """

    def __init__(self, requested: Sequence[str] | None) -> None:
        super().__init__()
        self._requested = None if requested is None else frozenset(map(normalised_id, requested))

    def expand(self, examples: Any) -> Any:
        return examples | beam.Filter(_is_requested, 0, self._requested)


class Predict(beam.PTransform):
    """(patient_id, serialized Example) -> `Prediction`.

    Args:
      model: the model's path.
      sha256: of the model; no worker loads another one.
      batch_size: most patients a call of the model gets.
      ticks: a local file that patients done are noted in (`progress_files`); "" for none.
    """

    def __init__(self, model: str, *, sha256: str, batch_size: int, ticks: str = "") -> None:
        super().__init__()
        self._handler = SavedModelHandler(model, sha256=sha256, batch_size=batch_size, ticks=ticks)

    def expand(self, examples: Any) -> Any:
        return examples | "Example" >> beam.Values() | "Infer" >> RunInference(self._handler)


class Summarise(beam.PTransform):
    """(cases, and series rows where there are any) -> `Statistics` that add up to all of them.

    Summed where the cases are: what is shuffled is a few hundred numbers a bundle.

    Args:
      schema: of the cases.
      requested: patients whose series count, as the input has them; None counts all.
    """

    def __init__(self, schema: RecordSchema, requested: Sequence[str] | None) -> None:
        super().__init__()
        self._schema = schema
        self._requested = None if requested is None else frozenset(map(normalised_id, requested))

    def expand(self, inputs: Any) -> Any:
        examples, *series = inputs
        parts = [
            examples
            | "Example" >> beam.Values()
            | "Of volume" >> beam.Map(_of_example, self._schema)
            | "Sum volumes" >> beam.CombineGlobally(_total)
        ]
        parts += [
            rows
            | "Rows requested" >> beam.Filter(_is_requested, "patient", self._requested)
            | "Of series" >> beam.Map(_of_row, self._schema.modalities)
            | "Sum series" >> beam.CombineGlobally(_total)
            for rows in series
        ]
        return parts | beam.Flatten()


def _total(parts: Iterable[Statistics]) -> Statistics:
    return sum(parts, drift.NONE)


class WriteRows(beam.PTransform):
    """(predictions, rejects, statistics if any) -> files in `directory` that `read_rows` reads.

    Rows are dealt to parts by their content: work done twice writes the same files again.
    """

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    def expand(self, rows: Any) -> Any:
        return (
            rows
            | "Rows" >> beam.Flatten()
            | "Part of" >> beam.Map(_with_part).with_output_types(tuple[int, str])
            | "By part" >> beam.GroupByKey()
            | "Write" >> beam.MapTuple(functools.partial(spool.write_rows, self._directory))
        )


class SavedModelHandler(ModelHandler[bytes, Prediction, LoadedModel]):
    """Beam's view of a `LoadedModel`: loaded once a worker process, called with capped batches.

    Beam's own TFModelHandler wants tensorflow-hub and cannot load an exported SavedModel.
    """

    def __init__(self, model: str, *, sha256: str, batch_size: int, ticks: str = "") -> None:
        super().__init__()
        self._model = model
        self._sha256 = sha256
        self._batch_size = batch_size
        self._ticks = ticks

    def load_model(self) -> LoadedModel:
        with files.fetched(self._model) as directory:
            loaded = load_model(directory, name=self._model, sha256=self._sha256)
        _fix_gpu_arithmetic()
        return loaded

    def run_inference(
        self,
        batch: Sequence[bytes],
        model: LoadedModel,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[Prediction]:
        answers = model.predict(batch)
        tick(self._ticks, *(answer.patient_id for answer in answers))
        return answers

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": self._batch_size}


def _read(element: tuple[str, ShardEntry | None], schema: RecordSchema) -> Iterator[Any]:
    path, listed = element
    shard = os.path.basename(path)
    try:
        if listed is not None and (difference := listed.difference(path)):
            yield _reject(shard, Unpredicted.OTHER_SHARD, difference)
        with files.open_read(path) as stream:
            for item in surviving_cases(stream, shard, schema):
                yield beam.pvalue.TaggedOutput("rejects", item) if isinstance(item, dict) else item
    except OSError as error:
        yield _reject(shard, Unpredicted.UNREADABLE_SHARD, str(error))


def _reject(shard: str, reason: Unpredicted, detail: str) -> Any:
    row = reject_row(scope="shard", subject=shard, reason=reason, detail=f"{shard}: {detail}")
    return beam.pvalue.TaggedOutput("rejects", row)


def _is_requested(item: Any, key: int | str, requested: frozenset[str] | None) -> bool:
    """Whether what has a patient's id at `key` is of a requested patient."""
    return requested is None or normalised_id(item[key]) in requested


def _with_part(row: spool.JobRow) -> tuple[int, str]:
    line = spool.to_line(row)
    return zlib.crc32(line.encode()) % _PARTS, line


def _of_example(example: bytes, schema: RecordSchema) -> Statistics:
    return drift.of_case(decode_case(example, schema), schema)


def _of_row(row: Mapping[str, Any], modalities: Sequence[str]) -> Statistics:
    return drift.of_series([row], modalities)


def _fix_gpu_arithmetic() -> None:
    """On a GPU: full float32 and the same kernels every time, so that it agrees with the CPU."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()
