"""Thin transforms of batch prediction: they name, count and call.

    records   shard -> its cases -> batches -> answers -> its rows
    DICOM     plans by part -> its cases, prepared -> batches -> answers -> its rows

A shard, or a part, is one element from its bytes to its rows: voxels and answers are not shuffled.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.utils.shared import Shared

from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import lasting, quiet_tensorflow
from beam_jobs.convert.cases import PlanParts, Recipe
from beam_jobs.convert.planning import Assignment
from beam_jobs.convert.transforms import Setup
from beam_jobs.core import drift
from beam_jobs.core.manifest import ShardEntry
from beam_jobs.core.record import RecordSchema
from beam_jobs.core.tfrecord import Hashed
from serving.model.loaded_model import LoadedModel, load_model
from serving.predict.damaged_records import Reject, reject_row, surviving_cases
from serving.predict.images import images_of
from serving.predict.part import PartPredictor
from serving.predict.reasons import Unpredicted
from serving.predict.spool import Rows, to_line

_PARTS = 8  # of the rejects that no shard has, written at the same time


class ModelInWorker:
    """A model by its path: loaded once a worker process, fetched once a machine.

    Args:
      path: of the model.
      sha256: of the model; no worker loads another one.
    """

    def __init__(self, path: str, sha256: str) -> None:
        self._path = path
        self._sha256 = sha256
        self._shared = Shared()

    def get(self) -> LoadedModel:
        """The model; whoever keeps it keeps it loaded."""
        loaded: LoadedModel = self._shared.acquire(self._load)
        return loaded

    def _load(self) -> LoadedModel:
        directory = files.fetched_once(self._path, self._sha256)
        quiet_tensorflow()
        with lasting("tensorflow"):  # which this imports; the model stays as long as the worker
            loaded = load_model(directory, name=self._path, sha256=self._sha256)
        _fix_gpu_arithmetic()
        return loaded


class PredictShards(beam.PTransform):
    """Pipeline root -> rows of every shard.

    Args:
      paths: of the shards.
      listed: path -> its place in a manifest. A shard that differs from it is reported by a
        reject; such of its records as are sound are answered all the same.
      model: that predicts.
      predictor: of the job.
    """

    def __init__(
        self,
        paths: Sequence[str],
        listed: Mapping[str, ShardEntry],
        model: ModelInWorker,
        predictor: PartPredictor,
    ) -> None:
        super().__init__()
        # Shards by pattern may have one name in several directories: their number names the rows.
        self._shards = [
            (f"{number:05d}", path, listed.get(path)) for number, path in enumerate(paths)
        ]
        self._worker = _PredictShard(model, predictor)

    def expand(self, root: Any) -> Any:
        return root | "Shards" >> beam.Create(self._shards) | "Predict" >> beam.ParDo(self._worker)


class PredictDicom(beam.PTransform):
    """Pipeline root -> rows of every patient of DICOM, and of what was refused on the way.

    Args:
      recipe: from DICOM to cases.
      model: that predicts.
      predictor: of the job.
    """

    def __init__(self, recipe: Recipe, model: ModelInWorker, predictor: PartPredictor) -> None:
        super().__init__()
        self._recipe = recipe
        self._model = model
        self._predictor = predictor

    def expand(self, root: Any) -> Any:
        parts = root | "Plan" >> PlanParts(self._recipe, self._predictor.schema)
        worker = _PredictPart(self._recipe, self._model, self._predictor)
        return (
            parts.patients | "Predict" >> beam.ParDo(worker),
            parts.rejects | "Write rejects" >> WriteRejects(self._predictor.rows),
        )


class WriteRejects(beam.PTransform):
    """Rejects -> files of rows, dealt by their content: work done twice writes them again."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self._rows = rows

    def expand(self, rejects: Any) -> Any:
        return (
            rejects
            | "Part of" >> beam.Map(_with_part).with_output_types(tuple[int, Any])
            | "By part" >> beam.GroupByKey()
            | "Write" >> beam.Map(_write_rejects, self._rows)
        )


class _Predict(Setup):
    def __init__(self, model: ModelInWorker, predictor: PartPredictor) -> None:
        super().__init__()
        self._source = model
        self._predictor = predictor
        self._model: LoadedModel | None = None

    def setup(self) -> None:
        super().setup()
        self._model = self._source.get()

    def _write(self, part: str, found: Iterable[Any]) -> None:
        assert self._model is not None, "Beam calls setup first"
        self._predictor.write(part, found, self._model.answer)


class _PredictShard(_Predict):
    def process(self, element: tuple[str, str, ShardEntry | None]) -> None:
        part, path, listed = element
        self._write(part, read_shard(path, listed, self._predictor.schema))


class _PredictPart(_Predict):
    def __init__(self, recipe: Recipe, model: ModelInWorker, predictor: PartPredictor) -> None:
        super().__init__(model, predictor)
        self._recipe = recipe

    def process(self, element: tuple[str, Iterable[tuple[bytes, Assignment]]]) -> None:
        part, patients = element
        self._write(part, self._found(patients))

    def _found(self, patients: Iterable[tuple[bytes, Assignment]]) -> Iterator[Any]:
        counted, schema = self._predictor.counted, self._predictor.schema
        for case, series, rejects, used in self._recipe.prepared(patients):
            yield from rejects
            if case is not None:
                yield case
                if not self._predictor.is_requested(case.patient_id):
                    continue
                if counted:
                    yield drift.of_series(series, schema.modalities)
                if self._predictor.looked_at:
                    yield images_of(case.patient_id, used, self._predictor.looked_at)


def read_shard(path: str, listed: ShardEntry | None, schema: RecordSchema) -> Iterator[Any]:
    """A shard's cases, and what is refused of it; of one that cannot be read, why.

    Args:
      path: of the shard.
      listed: its place in the manifest; None without one.
      schema: what its records must be.
    """
    shard = os.path.basename(path)

    def reject(reason: Unpredicted, detail: str) -> Reject:
        return reject_row(scope="shard", subject=shard, reason=reason, detail=f"{shard}: {detail}")

    try:
        with files.open_read(path) as stream:
            if listed is None:
                yield from surviving_cases(stream, shard, schema)
                return
            size = stream.seek(0, os.SEEK_END)
            whole = Hashed(stream, size)  # read once: in a store each time is a download
            yield from surviving_cases(whole, shard, schema)
            if difference := listed.difference(size, whole.digest()):
                yield reject(Unpredicted.OTHER_SHARD, difference)
    except OSError as error:
        yield reject(Unpredicted.UNREADABLE_SHARD, str(error))


def _with_part(row: Reject) -> tuple[int, Reject]:
    return zlib.crc32(to_line(row).encode()) % _PARTS, row


def _write_rejects(element: tuple[int, Iterable[Reject]], rows: Rows) -> None:
    part, rejects = element
    rows.write(f"rejects-{part}", rejects)


def _fix_gpu_arithmetic() -> None:
    """On a GPU: full float32 and the same kernels every time, so that it agrees with the CPU."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()
