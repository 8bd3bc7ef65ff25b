"""A cohort's patients planned and prepared in this process: what the job does, without Beam.

For surveys, for notebooks, for a model that is asked about a few patients. Headers of all files are
held; voxels of one patient at a time.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence

from beam_jobs.common import terminal
from beam_jobs.common.files import interface as files
from beam_jobs.convert.planning import Planner, assign_patients
from beam_jobs.convert.series_table import RejectRow, TableWriter
from beam_jobs.convert.write_shard import prepare_patient, refused_patient
from beam_jobs.core.cohort.layout import DirectoryOwner, find_owners, patient_of, unowned
from beam_jobs.core.cohort.plan import PatientPlan, plan_patient
from beam_jobs.core.cohort.rules import ModalityRule
from beam_jobs.core.dicom.headers import SliceHeader, group_paths, index_files
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import Rejection
from beam_jobs.core.record import PreparedCase

_FILES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plans:
    """What a cohort's headers say.

    Attributes:
      patients: a plan for each patient, in the order of their keys.
      rejections: of files that are no image or nobody's, each with what its directory says.
    """

    patients: tuple[PatientPlan, ...]
    rejections: tuple[tuple[Rejection, DirectoryOwner | None], ...]


def plan_cohort(
    found: Sequence[files.Entry], modalities: Sequence[str], rules: Sequence[ModalityRule] = ()
) -> Plans:
    """Reads the headers of files and plans every patient; pixels are not looked at.

    Args:
      found: the files, as `files.entries` lists them.
      modalities: the wanted ones.
      rules: tried before the built-in ones.
    """
    owners = find_owners([entry.path for entry in found], modalities)

    def owner_of(path: str) -> DirectoryOwner | None:
        return owners.get(posixpath.dirname(path))

    chunks = [found[n : n + _FILES_AT_ONCE] for n in range(0, len(found), _FILES_AT_ONCE)]
    headers: dict[str, list[SliceHeader]] = defaultdict(list)
    rejections: list[Rejection] = []
    for chunk in terminal.track(chunks, "reading headers", len(chunks)):
        with files.fetched_ahead(chunk, files.HEAD_BYTES):
            indexed, refused = index_files(entry.path for entry in chunk)
        for header in indexed:
            headers[patient_of(header, owner_of(header.path))].append(header)
        rejections += refused
    rejections += map(unowned, group_paths(headers.pop("", [])))
    return Plans(
        patients=tuple(
            plan_patient(key, headers[key], modalities, owners=owners, rules=rules)
            for key in sorted(headers)
        ),
        rejections=tuple((rejection, owner_of(rejection.paths[0])) for rejection in rejections),
    )


def prepare_cohort(
    plans: Plans, spec: PreprocessSpec, tables: TableWriter
) -> Iterator[tuple[PreparedCase | None, list[RejectRow]]]:
    """Every patient's case, one at a time, and the rows of what was refused on the way.

    Ids, refusals and voxels are those of the conversion. The first element has no case: it holds
    the rows of files that are nobody's.

    Args:
      plans: of `plan_cohort`, for the spec's modalities and rules.
      spec: the recipe.
      tables: names patients and files in the rows.
    """
    yield None, [tables.reject_file(rejection, owner) for rejection, owner in plans.rejections]
    planner = Planner(
        labels=None,
        id_policy=tables.id_policy,
        folds=2,
        seed=0,
        patients_per_shard=1,
        record_bytes=spec.schema.volume_bytes,
    )
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
