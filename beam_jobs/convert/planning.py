"""From patients found to ids, labels, folds and shards: one decision over the whole cohort."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping

from beam_jobs.common.cli import UsageError
from beam_jobs.core.cohort.folds import assign_folds, assign_shards
from beam_jobs.core.cohort.ids import IdPolicy, normalised_id
from beam_jobs.core.cohort.labels import Labels
from beam_jobs.core.cohort.layout import patient_id_of
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
      refused: patient key to the reason it has none; to None where the files are strays of a
        patient that has one.
      labels_without_patient: labelled ids, as the labels spell them, of no patient found.
      patients_without_label: ids of patients the labels do not have.
    """

    by_key: Mapping[str, Assignment]
    refused: Mapping[str, tuple[Reason, str] | None]
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

    @classmethod
    def for_prediction(cls, id_policy: IdPolicy, record_bytes: int) -> Planner:
        """Of patients who are given ids, and neither labels nor shards."""
        return cls(
            labels=None,
            id_policy=id_policy,
            folds=2,
            seed=0,
            patients_per_shard=1,
            record_bytes=record_bytes,
        )


def _spelling(key: str, planner: Planner) -> str | None:
    """The labels' spelling of a patient; under `hmac` an error names no patient."""
    if planner.labels is None:
        return None
    try:
        return planner.labels.spelling_of(patient_id_of(key))
    except UsageError:
        if planner.id_policy.key is None:
            raise
        raise UsageError("the labels have one patient under several spellings") from None


def _no_match(ids: Iterable[str], labels: Labels, id_policy: IdPolicy) -> str:
    """Labels that belong to no patient found are a mistake worth stopping at."""
    message = "none of the labels is of a patient found"
    if id_policy.key is not None:
        return message
    return f"{message}: the labels have {min(labels.by_spelling)!r}, the input {min(ids)!r}"


# A shard is read in one go and written by one worker: large enough for fast reading, small enough
# that many workers have several each.
SHARD_BYTES = 128 << 20
_SHARDS_WANTED = 40


def patients_a_shard(patients: int, record_bytes: int) -> int:
    """How many patients to a shard, from the cohort alone: workers must not change the bytes.

    A large cohort gets shards of about `SHARD_BYTES`, a small one about 40 shards.
    """
    return max(1, min(-(-patients // _SHARDS_WANTED), SHARD_BYTES // max(record_bytes, 1)))


# Two processes at 49 ms a file, waiting for a store included, end in a quarter of an hour.
_FILES_A_WORKER = 20_000


def workers_for(files: int) -> int:
    """How many two-core workers convert so many files of a store in about a quarter of an hour."""
    return -(-files // _FILES_A_WORKER)


def assign_patients(
    found: Iterable[tuple[str, tuple[Reason, str] | None]], planner: Planner
) -> Assignments:
    """Assigns every patient found, whatever the order they come in.

    Args:
      found: (patient key, why nothing can be made of it or None) of each patient.
      planner: labels and parameters.

    Raises:
      UsageError: a patient's id is ambiguous in the labels, or no label is of any patient.
    """
    by_id: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, tuple[Reason, str] | None] = {}
    for key, refusal in sorted(found):
        if refusal is None:
            by_id[normalised_id(patient_id_of(key))].append(key)
        else:
            refused[key] = refusal
    for key, refusal in refused.items():
        useless = refusal is not None and refusal[0] is Reason.NO_USABLE_SERIES
        if useless and normalised_id(patient_id_of(key)) in by_id:
            refused[key] = None  # stray files of a patient who is found elsewhere
    for keys in by_id.values():
        if len(keys) > 1:
            for key in keys:
                refused[key] = (
                    Reason.AMBIGUOUS_PATIENT,
                    f"{len(keys)} patients of the input would get this id",
                )
    labels = planner.labels
    ids: dict[str, str] = {}
    values: dict[str, int] = {}
    labelled: set[str] = set()
    for keys in by_id.values():
        key = keys[0]
        if key in refused:
            continue
        spelling = _spelling(key, planner)
        ids[key] = planner.id_policy.apply(spelling or patient_id_of(key))
        if labels is not None and spelling is not None:
            values[ids[key]] = labels.by_spelling[spelling]
            labelled.add(spelling)
    if labels is not None and ids and not values:
        raise UsageError(_no_match(ids.values(), labels, planner.id_policy))
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
