"""The conversion as one Beam pipeline, from its lock to its manifest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from beam_jobs.common.files import interface as files
from beam_jobs.common.owner import LostOutputError
from beam_jobs.common.progress_files import Ticks
from beam_jobs.convert.finish import DatasetWriter
from beam_jobs.convert.flags import Conversion
from beam_jobs.convert.npz import require_names
from beam_jobs.convert.resume import StateStore
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.convert.summary import print_shards
from beam_jobs.convert.transforms import (
    AssignPatients,
    Input,
    PlanPatients,
    ReadHeaders,
    RefusedPatients,
    WriteShards,
    log_lost,
)
from beam_jobs.convert.write_shard import ShardWriter
from beam_jobs.runners.engines import name_job
from beam_jobs.runners.job_server import job_server
from beam_jobs.runners.options import default_processes, make_pipeline
from beam_jobs.runners.watch import conversion_progress, watch

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


@contextlib.contextmanager
def converted(conversion: Conversion, options: PipelineOptions) -> Iterator[None]:
    """Runs a conversion to its end; for the block, too, the output's lock is held.

    Args:
      conversion: what is converted.
      options: Beam's.

    Raises:
      UsageError: the output holds something else; or a worker found that labels do not fit.
      CommandError: another job is writing the output, or took it; or the job failed.
    """
    store = conversion.state
    name_job(options, "convert", conversion.output)
    store.require_ours()  # before a lock is put beside what is not ours
    with store.lock(break_lock=conversion.break_lock):
        _convert(conversion, store, options)
        yield


def _convert(conversion: Conversion, store: StateStore, options: PipelineOptions) -> None:
    count = len(conversion.files)
    with job_server(options) as engine, files.scratch("convert") as scratch:
        store.begin(overwrite=conversion.overwrite)
        ticks = Ticks.below(str(scratch)) if engine.workers_here else Ticks()
        pipeline = make_pipeline(options, conversion.processes or default_processes(count))
        build(pipeline, conversion, store, ticks)
        started = time.monotonic()
        progress = conversion_progress(ticks, count or None)
        private = conversion.planner.id_policy.key is not None
        watch(
            pipeline.run,
            progress,
            engine=engine,
            private=private,
            resumes=True,
            mark=store.keep_locked,
        )
        store.require_finished()
        print_shards(ticks, time.monotonic() - started)


def build(pipeline: Any, conversion: Conversion, store: StateStore, ticks: Ticks) -> None:
    """Headers → plans → assignment → shards → tables and manifest.

    Args:
      pipeline: an empty one of Beam's.
      conversion: what is converted.
      store: the output, as this job's.
      ticks: where workers note their progress.
    """
    spec, planner = conversion.spec, conversion.planner
    source = Input(
        root=conversion.input,
        modalities=spec.modalities,
        rules=spec.series_rules,
        patient_from=planner.patient_from,
    )
    tables = TableWriter(root=conversion.input, id_policy=planner.id_policy)
    dataset = DatasetWriter(store=store, spec=spec, planner=planner)
    writer = ShardWriter(
        store=store,
        spec=spec,
        schema=planner.schema_of(spec),
        seed=planner.seed,
        tables=tables,
        ticks=ticks,
        npz=conversion.npz,
    )
    read = pipeline | "Headers" >> ReadHeaders(source, tables, ticks.files)
    plans = read.headers | "Plan" >> PlanPatients(source)
    assignments = plans | "Assign" >> AssignPatients(planner)
    if conversion.npz:
        assignments |= "Names" >> beam.Map(require_names)
    shards = (plans, assignments) | "Shards" >> WriteShards(writer, ticks.planned)
    refused = (plans, assignments) | "Refused" >> RefusedPatients(tables)
    results = (shards, refused, read.left_out) | "Results" >> beam.Flatten()
    finish = beam.Map(
        _finish,
        dataset,
        beam.pvalue.AsList(results),
        beam.pvalue.AsList(read.rejects),
        beam.pvalue.AsSingleton(assignments),
    )
    pipeline | "Once" >> beam.Create([None]) | "Finish" >> finish


def _finish(once: None, dataset: DatasetWriter, *gathered: Any) -> None:
    """`DatasetWriter.finish`, which a runner may try again although it was done."""
    try:
        dataset.finish(once, *gathered)
    except LostOutputError as error:
        log_lost(error)
