"""What is to be predicted of DICOM: prepared as a conversion prepares it, and not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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
from beam_jobs.core.record import PreparedCase, RecordSchema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a cohort of DICOM holds, before any pixel is read.

    Attributes:
      patients: (name of a part, its patients as `Recipe.prepared` takes them).
      rejects: rows of rejects.csv, of files and of patients that no part has.
    """

    patients: Any
    rejects: Any


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

    def prepared(
        self, patients: Iterable[tuple[bytes, Assignment]]
    ) -> Iterator[tuple[PreparedCase | None, list[dict[str, Any]], list[dict[str, str]]]]:
        """Each patient's case, the rows of series.csv it is made of, and rows of rejects.csv.

        There is no case, and no row of a series, of a patient that is refused.
        """
        tables = self.tables
        for packed, assignment in patients:
            case, rows, rejects = write_shard.prepare_patient(
                unpack(packed), assignment, self.spec, tables
            )
            series: list[dict[str, Any]] = []
            if case is not None:
                case.check(self.spec.schema)
                series = list(tables.series(rows))
            yield case, series, list(map(dataclasses.asdict, rejects))


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
