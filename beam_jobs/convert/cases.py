"""What is to be predicted of DICOM: prepared as a conversion prepares it, and not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from beam_jobs.convert import write_shard
from beam_jobs.convert.planning import Assignments, Planner
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.convert.transforms import (
    AssignPatients,
    Input,
    PackedPlan,
    PlanPatients,
    ReadHeaders,
    Setup,
    unpack,
)
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.plan import PatientPlan
from beam_jobs.core.example import encode_case
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import RecordSchema


class CasesFromDicom(beam.PTransform):
    """Pipeline root -> `.examples`: (patient id, serialized Example), `.rejects` and `.series`.

    Rejects are rows of rejects.csv, series those of series.csv that belong to the examples.

    The same headers, plans and recipe as the conversion, without labels and without shards: what
    a model predicts is prepared as what it was trained on.
    """

    def __init__(
        self,
        *,
        root: str,
        spec: PreprocessSpec,
        schema: RecordSchema,
        id_policy: IdPolicy,
        patient_from: str = "",
    ) -> None:
        super().__init__()
        spec.schema.require_equal(schema, ours="the recipe", theirs="the model's schema")
        self._source = Input(
            root=root,
            modalities=spec.modalities,
            rules=spec.series_rules,
            patient_from=patient_from,
        )
        self._spec = spec
        self._tables = TableWriter(root=root, id_policy=id_policy)

    def expand(self, root: Any) -> Any:
        read = root | "Read headers" >> ReadHeaders(self._source, self._tables)
        plans = read.headers | "Plan patients" >> PlanPatients(self._source)
        planner = Planner.for_prediction(self._tables.id_policy, self._spec.schema.volume_bytes)
        assignments = plans | "Assign ids" >> AssignPatients(planner)
        prepared = (
            plans
            | "Spread patients" >> beam.Reshuffle()
            | "Prepare"
            >> beam.ParDo(
                _Prepare(self._spec, self._tables), beam.pvalue.AsSingleton(assignments)
            ).with_outputs("rejects", "series", main="examples")
        )
        rejects = (
            (read.rejects | "File rows" >> beam.Map(dataclasses.asdict)),
            prepared.rejects,
        ) | "Rejects" >> beam.Flatten()
        return Cases(examples=prepared.examples, rejects=rejects, series=(prepared.series,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cases:
    """What is to be predicted; `series` holds the rows of DICOM, and nothing of records."""

    examples: Any
    rejects: Any
    series: tuple[Any, ...] = ()


class _Prepare(Setup):
    def __init__(self, spec: PreprocessSpec, tables: TableWriter) -> None:
        super().__init__()
        self._spec = spec
        self._tables = tables

    def process(self, packed: PackedPlan, assignments: Assignments) -> Iterator[Any]:
        plan: PatientPlan = unpack(packed[2])
        assignment = assignments.by_key.get(plan.key)
        case = None
        if assignment is None:
            refusal = assignments.refused[plan.key]
            rows, rejects = write_shard.refused_patient(plan, refusal, self._tables)
        else:
            case, rows, rejects = write_shard.prepare_patient(
                plan, assignment, self._spec, self._tables
            )
        for row in rejects:
            yield beam.pvalue.TaggedOutput("rejects", dataclasses.asdict(row))
        if case is not None:
            for series in self._tables.series(rows):
                yield beam.pvalue.TaggedOutput("series", series)
            yield case.patient_id, encode_case(case, self._spec.schema)
