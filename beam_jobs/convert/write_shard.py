"""A shard, start to end: prepare its patients, write under a temporary name, verify, rename."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from threadpoolctl import threadpool_limits

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.progress_files import Ticks, note, tick
from beam_jobs.convert.npz import explode_shard, shard_names
from beam_jobs.convert.planning import Assignment
from beam_jobs.convert.resume import ShardResult, StateStore, shard_inputs
from beam_jobs.convert.series_table import RejectRow, TableWriter
from beam_jobs.core.cohort.folds import hash_order
from beam_jobs.core.cohort.plan import PatientPlan, SeriesRow
from beam_jobs.core.example import encode_case
from beam_jobs.core.manifest import ShardEntry, ShardPatient
from beam_jobs.core.preprocess import PatientRejectedError, PreprocessSpec, prepare_case
from beam_jobs.core.reasons import Reason, Rejection, Verdict
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import Hashed, decoded, write_record

# M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h): more than what becomes free between volumes, and
# the most that glibc takes.
_MALLOC = {-1: 128 << 20, -3: 32 << 20}


def limit_blas_threads() -> None:
    """One BLAS thread in this process: an element is one core's work."""
    threadpool_limits(limits=1, user_api="blas")


def keep_freed_memory() -> None:
    """Lets the C library keep what a volume took for the next one: fresh pages cost as much time.

    By itself glibc gives memory back to the system whenever a volume is freed (mallopt(3)). Other
    C libraries have no such settings, or none that matters.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in _MALLOC.items():
            mallopt(setting, value)


def prepare_patient(
    plan: PatientPlan, assignment: Assignment, spec: PreprocessSpec, tables: TableWriter
) -> tuple[PreparedCase | None, list[SeriesRow], list[RejectRow]]:
    """One patient's case, final series rows and reject rows; no case when it is refused."""
    refusal: PatientRejectedError | None = None
    case: PreparedCase | None = None
    try:
        with files.fetched_ahead(_files_of(plan, spec), _SMALL_FILE):
            found = prepare_case(
                assignment.patient_id,
                plan.series,
                spec,
                label=assignment.label,
                fold=assignment.fold,
                covariates=assignment.covariates,
            )
        case, rejections, blank_slices = found.case, found.rejections, found.blank_slices
    except PatientRejectedError as error:
        refusal, rejections, blank_slices = error, error.rejections, error.blank_slices
    rows = _final_rows(plan.rows, rejections, blank_slices, refused=refusal is not None)
    rejects = tables.rejects_of(rows)
    if refusal is not None:
        rejects.append(tables.reject_patient(plan.key, refusal.reason, str(refusal)))
    return case, rows, rejects


# Files up to this size are one slice's or a few; larger ones are read frame by frame.
_SMALL_FILE = 4 << 20


def _files_of(plan: PatientPlan, spec: PreprocessSpec) -> list[files.Entry]:
    """The small files of a plan, in the order in which they will be read."""
    series = [plan.series[modality] for modality in spec.modalities if modality in plan.series]
    return [
        files.Entry(header.path, header.file_size, header.modified)
        for stack in series
        for header in stack.headers
        if header.file_size <= _SMALL_FILE and header.frame == 0
    ]


def _final_rows(
    rows: Sequence[SeriesRow],
    rejections: Sequence[Rejection],
    blank_slices: Mapping[str, int],
    *,
    refused: bool,
) -> list[SeriesRow]:
    """Planned rows with what the pixels showed: some chosen series turned out unusable."""
    by_path = {rejection.paths[0]: rejection for rejection in rejections}
    final = []
    for row in rows:
        if row.verdict == Verdict.USED.value:
            row = dataclasses.replace(row, blank_slices=blank_slices.get(row.modality))
            found = by_path.get(row.path)
            if found is not None:
                row = dataclasses.replace(
                    row,
                    verdict=found.verdict.value,
                    reason=found.reason.value,
                    detail=found.detail,
                )
            elif refused:
                row = dataclasses.replace(
                    row, verdict=Verdict.UNUSED.value, reason=Reason.PATIENT_REJECTED.value
                )
        final.append(row)
    return final


def refused_patient(
    plan: PatientPlan, refusal: tuple[Reason, str] | None, tables: TableWriter
) -> tuple[list[SeriesRow], list[RejectRow]]:
    """Final series rows and reject rows of a patient refused before its pixels were read.

    Args:
      plan: the patient's.
      refusal: why, None for stray files of a patient that is not refused, and for nobody's.
      tables: names for the rows.
    """
    rows = _final_rows(plan.rows, (), {}, refused=True)
    rejects = tables.rejects_of(rows)
    if refusal is not None:
        rejects.append(tables.reject_patient(plan.key, *refusal))
    return rows, rejects


def _accounts_for(result: ShardResult, patients: Sequence[tuple[PatientPlan, Assignment]]) -> bool:
    """Whether a state says of every patient of its shard what became of them.

    One that was edited or mixed up would let patients vanish.
    """
    written = () if result.entry is None else result.entry.patients
    known = {(one.patient_id, one.label, one.fold) for _, one in patients}
    fold = None if result.entry is None else result.entry.fold
    rejected = sum(row.scope == "patient" for row in result.rejects)
    found = {(each.patient_id, each.label, fold) for each in written}
    return found <= known and len(found) == len(written) == len(known) - rejected


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardWriter:
    """Writes shards of one dataset.

    Attributes:
      store: where shards and their states are kept.
      spec: the recipe.
      schema: what the records must fit.
      seed: of the order within a shard.
      tables: names for the rows.
      ticks: local files that progress is noted in.
      npz: write the records as npz files too.
    """

    store: StateStore
    spec: PreprocessSpec
    schema: RecordSchema
    seed: int
    tables: TableWriter
    ticks: Ticks
    npz: bool = False

    def write(
        self, name: str, patients: Sequence[tuple[PatientPlan, Assignment]]
    ) -> tuple[ShardResult, str]:
        """Prepares, writes, verifies and renames one shard, unless it lies there finished.

        The bytes depend on the patients and the recipe alone. One volume is in memory at a time.

        Returns:
          What became of it, and why it was converted: "kept" when it was not.

        Raises:
          LostOutputError: the output is another job's by now.
          ContractError: the shard reads back otherwise than it was written.
          OSError: the output cannot be written.
        """
        with self.store.owner.working():
            result, why = self._write(name, patients)
        note(self.ticks.shards, f"{name} {why}")
        return result, why

    def _write(
        self, name: str, patients: Sequence[tuple[PatientPlan, Assignment]]
    ) -> tuple[ShardResult, str]:
        ordered = sorted(
            patients,
            key=lambda item: (hash_order(item[1].patient_id, self.seed), item[1].patient_id),
        )
        inputs = shard_inputs(ordered, self.store.job, self.tables.id_policy, self.tables.root)
        result, why = self.store.finished(name, inputs, self.schema)
        if result is not None and not _accounts_for(result, ordered):
            result, why = None, "state unreadable"
        if result is not None:
            tick(self.ticks.patients, *(assignment.patient_id for _, assignment in ordered))
        else:
            result = self._convert(name, ordered)
            self.store.finish(name, inputs, result)
        if self.npz and result.entry is not None:
            output = self.store.output
            self.store.record_npz(name, shard_names(output, name, self.schema))
            explode_shard(output, name, self.schema, self.store.owner)
        return result, why

    def _convert(self, name: str, ordered: Sequence[tuple[PatientPlan, Assignment]]) -> ShardResult:
        target = files.join(self.store.output, name)
        temporary = f"{target}.{uuid.uuid4().hex[:12]}.part"
        series: list[dict[str, Any]] = []
        rejects: list[RejectRow] = []
        written: list[ShardPatient] = []
        try:
            with files.open_write(temporary) as stream:
                for plan, assignment in ordered:
                    self.store.owner.require()  # a patient takes long
                    case, rows, refused = prepare_patient(plan, assignment, self.spec, self.tables)
                    series += self.tables.series(rows)
                    rejects += refused
                    if case is not None:
                        write_record(stream, encode_case(case, self.schema))
                        written.append(ShardPatient(patient_id=case.patient_id, label=case.label))
                    tick(self.ticks.patients, assignment.patient_id)
            entry = None
            if written:
                entry = self._verified(name, temporary, ordered[0][1].fold, tuple(written))
            with self.store.owner.writing():
                if entry is not None:
                    files.replace(temporary, target)
                else:
                    files.delete([target])  # of an earlier run, whose patients are refused now
        finally:
            files.delete([temporary])
        return ShardResult(entry=entry, series=tuple(series), rejects=tuple(rejects))

    def _verified(
        self, name: str, path: str, fold: int | None, patients: tuple[ShardPatient, ...]
    ) -> ShardEntry:
        """Reads the shard back, once: checksums, schema, membership and hash."""
        size = files.size(path)
        with files.open_read(path) as stream:
            whole = Hashed(stream, size)
            found = tuple(
                ShardPatient(patient_id=case.patient_id, label=case.label)
                for case in decoded(whole, self.schema)
            )
            sha256 = whole.digest()
        if found != patients:
            raise ContractError(f"{name} reads back otherwise than it was written")
        return ShardEntry(name=name, fold=fold, bytes=size, sha256=sha256, patients=patients)
