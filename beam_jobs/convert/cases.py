"""What is to be predicted of DICOM: prepared as a conversion prepares it, and not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam

from beam_jobs.convert import write_shard
from beam_jobs.convert.planning import Assignment, Planner
from beam_jobs.convert.resume import ShardResult
from beam_jobs.convert.series_table import TableWriter
from beam_jobs.convert.transforms import (
    AssignPatients,
    ByShard,
    Input,
    PlanPatients,
    ReadHeaders,
    RefusedPatients,
    unpack,
)
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import Verdict
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.series import Series


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a cohort of DICOM holds, before any pixel is read.

    Attributes:
      patients: (name of a part, its patients as `Recipe.prepared` takes them).
      rejects: rows of rejects.csv, of files and of patients that no part has.
    """

    patients: Any
    rejects: Any


class Prepared(NamedTuple):
    """What became of one patient.

    Attributes:
      case: None of one that is refused.
      series: rows of series.csv that the case is made of.
      rejects: rows of rejects.csv.
      used: modality -> the images that its channel is made of.
    """

    case: PreparedCase | None
    series: list[dict[str, Any]]
    rejects: list[dict[str, str]]
    used: Mapping[str, Series]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How DICOM becomes cases.

    Attributes:
      root: the directory or archive.
      spec: the preprocessing.
      id_policy: how ids are written.
      patient_from: who is a patient (`ids.PATIENT_FROM`, or "").
    """

    root: str
    spec: PreprocessSpec
    id_policy: IdPolicy
    patient_from: str = ""

    @property
    def tables(self) -> TableWriter:
        """Names patients and files in rows."""
        return TableWriter(root=self.root, id_policy=self.id_policy)

    def prepared(self, patients: Iterable[tuple[bytes, Assignment]]) -> Iterator[Prepared]:
        """What becomes of each patient; one that is refused has no series."""
        tables = self.tables
        for packed, assignment in patients:
            plan = unpack(packed)
            case, rows, rejects = write_shard.prepare_patient(plan, assignment, self.spec, tables)
            series: list[dict[str, Any]] = []
            used: dict[str, Series] = {}
            if case is not None:
                case.check(self.spec.schema)
                series = list(tables.series(rows))
                found = {row.modality for row in rows if row.verdict == Verdict.USED.value}
                used = {name: one for name, one in plan.series.items() if name in found}
            yield Prepared(case, series, list(map(dataclasses.asdict, rejects)), used)


class PlanParts(beam.PTransform):
    """Pipeline root -> `Parts`.

    The same headers and plans as the conversion's, without labels: what a model predicts is
    prepared as what it was trained on. A part is what would be a shard.
    """

    def __init__(self, recipe: Recipe, schema: RecordSchema) -> None:
        super().__init__()
        recipe.spec.schema.require_equal(schema, ours="the recipe", theirs="the model's schema")
        self._recipe = recipe

    def expand(self, root: Any) -> Any:
        spec, tables = self._recipe.spec, self._recipe.tables
        source = Input(
            root=self._recipe.root,
            modalities=spec.modalities,
            rules=spec.series_rules,
            patient_from=self._recipe.patient_from,
        )
        read = root | "Read headers" >> ReadHeaders(source, tables)
        plans = read.headers | "Plan patients" >> PlanPatients(source)
        planner = Planner.for_prediction(tables.id_policy, spec.schema.volume_bytes)
        assignments = plans | "Assign ids" >> AssignPatients(planner)
        refused = (plans, assignments) | "Refused" >> RefusedPatients(tables)
        rejects = (
            read.rejects | "File rows" >> beam.Map(dataclasses.asdict),
            refused | "Patient rows" >> beam.FlatMap(_rows_of),
        ) | "Rejects" >> beam.Flatten()
        return Parts(patients=(plans, assignments) | "Parts" >> ByShard(), rejects=rejects)


def _rows_of(refused: ShardResult) -> Iterator[Mapping[str, str]]:
    yield from map(dataclasses.asdict, refused.rejects)
