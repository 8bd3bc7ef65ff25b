"""Thin transforms: each names, counts and calls a function of the core.

ReadHeaders -> PlanPatients -> AssignPatients -> WriteShards (conversion)
                                 -> ByShard -> `cases.PlanParts` (prediction)
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import pickle
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import zstandard
from apache_beam.metrics import Metrics

from beam_jobs.common.files import interface as files
from beam_jobs.common.owner import LostOutputError
from beam_jobs.common.progress_files import tick
from beam_jobs.convert import write_shard
from beam_jobs.convert.planning import Assignment, Assignments, Planner, Refusal, assign_people
from beam_jobs.convert.resume import ShardResult
from beam_jobs.convert.series_table import TableWriter, left_out_row
from beam_jobs.core.cohort.by_name.sidecars import listing
from beam_jobs.core.cohort.layout import (
    DirectoryOwner,
    find_owners,
    only_patient,
    patient_of,
    series_owners,
)
from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.dicom.headers import SliceHeader, index_files
from beam_jobs.runners.options import use_workers_store_options

_FILES_AT_ONCE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """What is read.

    Attributes:
      root: a directory tree.
      modalities: those wanted of it.
      rules: by which they are recognised.
      patient_from: who is a patient (`ids.PATIENT_FROM`, or "").
    """

    root: str
    modalities: tuple[str, ...]
    rules: tuple[ModalityRule, ...] = ()
    patient_from: str = ""


class Setup(beam.DoFn):
    """What every worker process needs once: where stores are, one BLAS thread, kept memory."""

    def setup(self) -> None:
        use_workers_store_options()
        write_shard.limit_blas_threads()
        write_shard.keep_freed_memory()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """What an input holds.

    Attributes:
      headers: (patient key, packed headers).
      rejects: `RejectRow` of files.
      left_out: a `ShardResult` without a shard that counts the files which are never read.
    """

    headers: Any
    rejects: Any
    left_out: Any


class ReadHeaders(beam.PTransform):
    """Pipeline root -> `Read`.

    Files are listed by the workers, in chunks of one directory's (a DICOMweb series is one).
    """

    def __init__(self, source: Input, tables: TableWriter, ticks: str = "") -> None:
        super().__init__()
        self._source = source
        self._tables = tables
        self._ticks = ticks

    def expand(self, root: Any) -> Any:
        listed = (
            root
            | "Root" >> beam.Create([self._source])
            | "List" >> beam.FlatMap(_chunks).with_outputs("left_out", main="chunks")
        )
        read = (
            listed.chunks
            | "Spread" >> beam.Reshuffle()
            | "Headers"
            >> beam.ParDo(
                _ReadHeaders(self._tables, self._ticks, self._source.patient_from)
            ).with_outputs("rejects", "series", main="headers")
        )
        adopted = (
            read.series
            | "Keyed" >> beam.Map(_same).with_output_types(tuple[str, str])
            | "By series" >> beam.GroupByKey()
            | "Partly nobody's" >> beam.FlatMap(_adopted)
        )
        headers = read.headers | "Adopt" >> beam.Map(_adopt, beam.pvalue.AsDict(adopted))
        left_out = listed.left_out | "Left out" >> beam.Map(_left_out, self._tables)
        return Read(headers=headers, rejects=read.rejects, left_out=left_out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some files of one directory.

    Attributes:
      number: its place among all chunks of the input.
      files: the files; of a store's, what its listing says of them too.
      owner: what the directory says of them, None when it is left to the headers.
    """

    number: int
    files: tuple[files.Entry, ...]
    owner: DirectoryOwner | None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": tuple(zip(*self.files, strict=True))}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        entries = tuple(map(files.Entry._make, zip(*state["files"], strict=True)))
        self.__dict__.update(state, files=entries)


def _chunks(source: Input) -> Iterator[Any]:
    found, left_out = listing(source.root)
    if left_out:
        yield beam.pvalue.TaggedOutput("left_out", left_out)
    owners = find_owners(
        [file.path for file in found],
        source.modalities,
        root=source.root,
        patient_from=source.patient_from,
    )
    numbers = itertools.count()
    most = len(found) if files.is_dicomweb(source.root) else _FILES_AT_ONCE
    for directory, group in itertools.groupby(found, key=lambda file: os.path.dirname(file.path)):
        batch = tuple(group)
        for chosen in (batch[start : start + most] for start in range(0, len(batch), most)):
            yield _pack(Chunk(number=next(numbers), files=chosen, owner=owners.get(directory)))


def _adopted(element: tuple[str, Iterable[str]]) -> Iterator[tuple[str, str]]:
    series, keys = element
    if patient := only_patient(keys):
        yield series, patient


def _adopt(element: tuple[str, bytes], adopted: Mapping[str, str]) -> tuple[str, bytes]:
    key, headers = element
    return adopted.get(key, key), headers


def _left_out(counts: Mapping[str, int], tables: TableWriter) -> ShardResult:
    row = left_out_row(tables.root, counts)
    return ShardResult(entry=None, series=tuple(tables.series([row])), rejects=())


class _ReadHeaders(Setup):
    def __init__(self, tables: TableWriter, ticks: str, patient_from: str) -> None:
        super().__init__()
        self._tables = tables
        self._ticks = ticks
        self._patient_from = patient_from
        self._files = Metrics.counter("voxelbeam", "files")

    def process(self, packed: bytes) -> Iterator[Any]:
        chunk: Chunk = unpack(packed)
        with files.fetched_ahead(chunk.files, files.HEAD_BYTES):
            headers, rejections = index_files(file.path for file in chunk.files)
        self._files.inc(len(chunk.files))
        tick(self._ticks, str(chunk.number), count=len(chunk.files))
        by_patient: dict[str, list[SliceHeader]] = {}
        for header in headers:
            key = patient_of(header, chunk.owner, self._patient_from)
            by_patient.setdefault(key, []).append(header)
        for key, found in by_patient.items():
            yield key, _pack((chunk.owner, tuple(zip(*found, strict=True))))
            for pair in {pair for header in found for pair in series_owners(header, key)}:
                yield beam.pvalue.TaggedOutput("series", pair)
        for rejection in rejections:
            row = self._tables.reject_file(rejection, chunk.owner)
            Metrics.counter("voxelbeam.files", row.reason).inc()
            yield beam.pvalue.TaggedOutput("rejects", row)


class _Zstd(threading.local):
    """What packs and unpacks in one thread; making it takes as long as packing a hundred files."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


# Beam pickles an element anew wherever it goes, and some more to guess its size; headers are many.
# So they travel as bytes, pickled once, with what is looked at on the way beside them. What waits
# for a grouping is held in one process, of every file at once: a header is 350 bytes, packed 50.
# Files and headers are pickled field by field: one by one each would be a call, and values that all
# of a series have are written once.
def _pack(value: object) -> bytes:
    return _zstd.compressor.compress(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


def unpack(packed: bytes) -> Any:
    """What travelled packed, as in `PackedPlan`."""
    return pickle.loads(_zstd.decompressor.decompress(packed))


# (patient key, why nothing can be made of the patient or None, the packed `PatientPlan`, `person`).
PackedPlan = tuple[str, Refusal, bytes, str]


class PlanPatients(beam.PTransform):
    """(patient key, packed headers) -> PackedPlan, one a patient."""

    def __init__(self, source: Input) -> None:
        super().__init__()
        self._source = source

    def expand(self, headers: Any) -> Any:
        return (
            headers
            | "Keyed" >> beam.Map(_same).with_output_types(tuple[str, bytes])
            | "By patient" >> beam.GroupByKey()
            | "Plan" >> beam.Map(_plan, self._source)
        )


def _same(element: tuple[str, Any]) -> tuple[str, Any]:
    return element


def _plan(element: tuple[str, Iterable[bytes]], source: Input) -> PackedPlan:
    key, groups = element
    headers: list[SliceHeader] = []
    owners: dict[str, DirectoryOwner] = {}
    for owner, fields in map(unpack, groups):
        found = list(map(SliceHeader._make, zip(*fields, strict=True)))
        headers += found
        if owner is not None:  # all are of one chunk, and so of one directory
            owners[os.path.dirname(found[0].path)] = owner
    plan = plan_patient(
        key,
        headers,
        source.modalities,
        owners=owners,
        rules=source.rules,
        patient_from=source.patient_from,
    )
    return key, plan.refusal, _pack(plan), plan.person


class AssignPatients(beam.PTransform):
    """PackedPlan -> one `Assignments` for all of them: ids, labels, folds and shards.

    Only keys are gathered, a few bytes a patient.
    """

    def __init__(self, planner: Planner) -> None:
        super().__init__()
        self._planner = planner

    def expand(self, plans: Any) -> Any:
        return (
            plans
            | "Key" >> beam.Map(_key)
            | "Gather" >> beam.combiners.ToList()
            | "Assign" >> beam.Map(assign_people, self._planner)
        )


def _key(plan: PackedPlan) -> tuple[str, Refusal, str]:
    key, refusal, _, person = plan
    return key, refusal, person


class RefusedPatients(beam.PTransform):
    """(PackedPlan, Assignments) -> ShardResult without a shard, of patients without a record."""

    def __init__(self, tables: TableWriter) -> None:
        super().__init__()
        self._tables = tables

    def expand(self, inputs: Any) -> Any:
        plans, assignments = inputs
        return plans | "Refuse" >> beam.FlatMap(
            _refuse, beam.pvalue.AsSingleton(assignments), self._tables
        )


def _refuse(
    packed: PackedPlan, assignments: Assignments, tables: TableWriter
) -> Iterator[ShardResult]:
    key, _, plan, _ = packed
    if key in assignments.refused:
        refusal = assignments.refused[key]
        rows, rejects = write_shard.refused_patient(unpack(plan), refusal, tables)
        for row in rejects:
            Metrics.counter(f"voxelbeam.{row.scope}", row.reason).inc()
        yield ShardResult(entry=None, series=tuple(tables.series(rows)), rejects=tuple(rejects))


class ByShard(beam.PTransform):
    """(PackedPlan, Assignments) -> (shard, its patients' packed plans and assignments)."""

    def __init__(self, ticks: str = "") -> None:
        super().__init__()
        self._ticks = ticks

    def expand(self, inputs: Any) -> Any:
        plans, assignments = inputs
        return (
            plans
            | "Shard of"
            >> beam.FlatMap(_with_shard, beam.pvalue.AsSingleton(assignments), self._ticks)
            | "By shard" >> beam.GroupByKey()
        )


class WriteShards(beam.PTransform):
    """(PackedPlan, Assignments) -> ShardResult: a shard is one element, start to end."""

    def __init__(self, writer: write_shard.ShardWriter, ticks: str = "") -> None:
        super().__init__()
        self._writer = writer
        self._ticks = ticks

    def expand(self, inputs: Any) -> Any:
        return (
            inputs
            | "Patients" >> ByShard(self._ticks)
            | "Write" >> beam.ParDo(_WriteShard(self._writer))
        )


def _with_shard(
    packed: PackedPlan, assignments: Assignments, ticks: str
) -> Iterator[tuple[str, tuple[bytes, Assignment]]]:
    key, _, plan, _ = packed
    assignment = assignments.by_key.get(key)
    if assignment is not None:
        tick(ticks, assignment.patient_id)
        yield assignment.shard, (plan, assignment)


def log_lost(error: LostOutputError) -> None:
    """A job whose output is another's ends, having written no more.

    As an error it would be tried again, by some engines for ever. The job's own command, if that is
    still there, looks at whose the output is (`StateStore.require_finished`).
    """
    logging.getLogger(__name__).warning("%s", error)


class _WriteShard(Setup):
    def __init__(self, writer: write_shard.ShardWriter) -> None:
        super().__init__()
        self._writer = writer

    def process(
        self, element: tuple[str, Iterable[tuple[bytes, Assignment]]]
    ) -> Iterator[ShardResult]:
        name, packed = element
        patients = [(unpack(plan), assignment) for plan, assignment in packed]
        try:
            result, why = self._writer.write(name, patients)
        except LostOutputError as error:
            log_lost(error)
            return
        Metrics.counter("voxelbeam.shards", why).inc()
        Metrics.counter("voxelbeam", "patients").inc(0 if not result.entry else result.entry.count)
        for row in result.rejects:
            Metrics.counter(f"voxelbeam.{row.scope}", row.reason).inc()
        yield result
