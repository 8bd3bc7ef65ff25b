"""A cohort's patients prepared in this process, one at a time: what the job does, without Beam."""

from __future__ import annotations

from collections.abc import Iterator

from beam_jobs.convert.patient_plans import Plans
from beam_jobs.convert.planning import Planner, assign_patients
from beam_jobs.convert.series_table import RejectRow, TableWriter
from beam_jobs.convert.write_shard import prepare_patient, refused_patient
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import PreparedCase


def prepare_cohort(
    plans: Plans, spec: PreprocessSpec, tables: TableWriter
) -> Iterator[tuple[PreparedCase | None, list[RejectRow]]]:
    """Every patient's case, one at a time, and the rows of what was refused on the way.

    Ids, refusals and voxels are those of the conversion. The first element has no case: it holds
    the rows of files that are no image.

    Args:
      plans: of `plan_patients`, for the spec's modalities and rules.
      spec: the recipe.
      tables: names patients and files in the rows.
    """
    yield None, [tables.reject_file(rejection, owner) for rejection, owner in plans.rejections]
    planner = Planner.for_prediction(tables.id_policy, spec.schema.volume_bytes)
    found = ((plan.key, plan.refusal) for plan in plans.patients)
    assignments = assign_patients(found, planner)
    for plan in plans.patients:
        assignment = assignments.by_key.get(plan.key)
        if assignment is None:
            _, rejects = refused_patient(plan, assignments.refused[plan.key], tables)
            yield None, rejects
        else:
            case, _, rejects = prepare_patient(plan, assignment, spec, tables)
            yield case, rejects
