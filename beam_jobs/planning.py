"""From patients found to ids, labels, folds and shards: one decision over the whole cohort."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping

from beam_jobs.core.cohort import patient_id_of
from beam_jobs.core.folds import assign_folds, assign_shards
from beam_jobs.core.ids import IdPolicy, normalised_id
from beam_jobs.core.labels import Labels
from beam_jobs.core.reasons import Reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one patient's record will say, and where it will stand."""

    patient_id: str
    label: int | None
    fold: int | None
    shard: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignments:
    """The whole cohort's assignment.

    Attributes:
      by_key: patient key to assignment.
      refused: patient key to the reason it has none.
      labels_without_patient: labelled ids, as the labels spell them, of no patient found.
      patients_without_label: ids of patients the labels do not speak of.
    """

    by_key: Mapping[str, Assignment]
    refused: Mapping[str, tuple[Reason, str]]
    labels_without_patient: tuple[str, ...]
    patients_without_label: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """What the assignment depends on besides the patients.

    Attributes:
      labels: None where none are given; then every patient is unlabelled.
      id_policy: how ids are written.
      folds: number of folds.
      seed: of folds and order.
      patients_per_shard: at most; None chooses by `patients_a_shard`.
      record_bytes: of one record.
    """

    labels: Labels | None
    id_policy: IdPolicy
    folds: int
    seed: int
    patients_per_shard: int | None
    record_bytes: int


# A shard is read in one go and written by one worker: large enough for fast reading, small enough
# that many workers have several each.
SHARD_BYTES = 128 << 20
_SHARDS_WANTED = 40


def patients_a_shard(patients: int, record_bytes: int) -> int:
    """How many patients to a shard, from the cohort alone: workers must not change the bytes.

    A large cohort gets shards of about `SHARD_BYTES`, a small one about 40 shards.
    """
    return max(1, min(-(-patients // _SHARDS_WANTED), SHARD_BYTES // max(record_bytes, 1)))


def assign_patients(found: Iterable[tuple[str, bool]], planner: Planner) -> Assignments:
    """Assigns every patient found, whatever the order they come in.

    Args:
      found: (patient key, whether any series was chosen) of each patient.
      planner: labels and parameters.

    Raises:
      UsageError: a patient's id is ambiguous in the labels.
    """
    by_id: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, tuple[Reason, str]] = {}
    for key, usable in sorted(found):
        if usable:
            by_id[normalised_id(patient_id_of(key))].append(key)
        else:
            refused[key] = (Reason.NO_USABLE_SERIES, "no series of a wanted modality can be used")
    for keys in by_id.values():
        if len(keys) > 1:
            for key in keys:
                refused[key] = (
                    Reason.AMBIGUOUS_PATIENT,
                    f"{len(keys)} directories of the input would get this patient's id",
                )
    labels = planner.labels
    ids: dict[str, str] = {}
    values: dict[str, int] = {}
    labelled: set[str] = set()
    for keys in by_id.values():
        key = keys[0]
        if key in refused:
            continue
        spelling = labels.spelling_of(patient_id_of(key)) if labels else None
        ids[key] = planner.id_policy.apply(spelling or patient_id_of(key))
        if labels is not None and spelling is not None:
            values[ids[key]] = labels.by_spelling[spelling]
            labelled.add(spelling)
    folds = assign_folds(values, planner.folds, planner.seed) if values else {}
    shards = assign_shards(
        {patient_id: folds.get(patient_id) for patient_id in ids.values()},
        planner.patients_per_shard or patients_a_shard(len(ids), planner.record_bytes),
        planner.seed,
    )
    return Assignments(
        by_key={
            key: Assignment(
                patient_id=patient_id,
                label=values.get(patient_id),
                fold=folds.get(patient_id),
                shard=shards[patient_id],
            )
            for key, patient_id in ids.items()
        },
        refused=refused,
        labels_without_patient=tuple(sorted(set(labels.by_spelling) - labelled) if labels else ()),
        patients_without_label=tuple(sorted(set(ids.values()) - set(values)) if labels else ()),
    )
