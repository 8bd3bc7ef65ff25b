"""From patients found to ids, labels, folds and shards: one decision over the whole cohort."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import fingerprint
from beam_jobs.core.cohort.balance import lacking, strata_of, too_few
from beam_jobs.core.cohort.covariates import GivenCovariates
from beam_jobs.core.cohort.folds import (
    assign_folds,
    assign_grouped_folds,
    assign_shards,
    patients_a_shard,
)
from beam_jobs.core.cohort.ids import IdPolicy, normalised_id, require_apart
from beam_jobs.core.cohort.labels import Labels
from beam_jobs.core.cohort.layout import patient_id_of
from beam_jobs.core.cohort.patient_column import PatientColumn
from beam_jobs.core.cohort.target import PLAIN, Label, Target
from beam_jobs.core.manifest import TEST, Place
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import Reason
from beam_jobs.core.record import RecordSchema

Value = TypeVar("Value")
Refusal = tuple[Reason, str] | None  # why nothing is made of a patient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one patient's record will say, and where it will stand."""

    patient_id: str
    label: Label | None
    fold: int | None
    shard: str
    covariates: tuple[float, ...] = ()

    @property
    def said(self) -> tuple[Any, ...]:
        """What a shard's digest has of it: as it was before there were covariates, then those."""
        *before, covariates = dataclasses.astuple(self)
        return (*before, list(map(str, covariates))) if covariates else tuple(before)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignments:
    """The whole cohort's assignment.

    Attributes:
      by_key: patient key to assignment.
      refused: patient key to the reason it has none; to None where the files are strays of a
        patient that has one, or nobody's.
      labels_without_patient: labelled ids, as the labels spell them, of no patient found.
      patients_without_label: ids of patients the labels do not have.
      groups: patient id to a number that stands for its group; empty without groups.
      listed_without_patient: ids of groups or given folds of no patient found.
      people_in_several: how many PatientIDs stand in several patients' studies.
    """

    by_key: Mapping[str, Assignment]
    refused: Mapping[str, Refusal]
    labels_without_patient: tuple[str, ...]
    patients_without_label: tuple[str, ...]
    groups: Mapping[str, int] = dataclasses.field(default_factory=dict)
    listed_without_patient: int = 0
    people_in_several: int = 0


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
      groups: which never stand on both sides; None where every patient stands alone.
      given: folds as they shall be; None where they are dealt here.
      covariates: what else is known of patients; None where nothing is given.
      patient_from: who is a patient (`ids.PATIENT_FROM`, or "").
    """

    labels: Labels | None
    id_policy: IdPolicy
    folds: int
    seed: int
    patients_per_shard: int | None
    record_bytes: int
    groups: PatientColumn[str] | None = None
    given: PatientColumn[Place] | None = None
    covariates: GivenCovariates | None = None
    patient_from: str = ""

    @property
    def target(self) -> Target:
        """What the labels say."""
        return PLAIN if self.labels is None else self.labels.target

    def schema_of(self, spec: PreprocessSpec) -> RecordSchema:
        """The contract of the records: the recipe's, with what labels and covariates say."""
        covariates = () if self.covariates is None else self.covariates.covariates
        return dataclasses.replace(spec.schema, target=self.target, covariates=covariates)

    @property
    def identity(self) -> dict[str, Any]:
        """What labels, covariates, groups, given folds and a choice of patients tell a job by.

        It names no group. Nothing for a job without any, and of labels 0 and 1: its identity is
        what it was before there were any.
        """
        said: dict[str, Any] = {}
        if not self.target.is_plain:
            said["target"] = {name: one for name, one in self.target.to_json().items() if one}
        if self.covariates is not None:
            known = self.covariates.covariates
            said["covariates"] = {
                "names": [one.name for one in known],
                "categories": {one.name: list(one.categories) for one in known},
            }
        if self.patient_from:
            said["patient_from"] = self.patient_from
        if (column := self.groups or self.given) is not None:
            rows = sorted(
                (normalised_id(key), str(cell)) for key, cell in column.by_spelling.items()
            )
            said[self.fold_rule] = self.id_policy.token(fingerprint({"rows": rows}))[:16]
        return said

    @property
    def fold_rule(self) -> str:
        """One of the manifest's `FOLD_RULES`."""
        if self.groups is not None:
            return "groups"
        return "patients" if self.given is None else "given"

    @classmethod
    def for_prediction(cls, id_policy: IdPolicy, record_bytes: int) -> Planner:
        """Of patients who are given ids and no labels; their shards are parts of the work."""
        return cls(
            labels=None,
            id_policy=id_policy,
            folds=2,
            seed=0,
            patients_per_shard=None,
            record_bytes=record_bytes,
        )


def _spelling(key: str, column: PatientColumn[Any] | None, id_policy: IdPolicy) -> str | None:
    """A file's spelling of a patient; under `hmac` an error names no patient."""
    if column is None:
        return None
    try:
        return column.spelling_of(patient_id_of(key))
    except UsageError:
        if id_policy.key is None:
            raise
        message = f"{column.source} have one patient under several spellings"
        raise UsageError(message) from None


def _of_labelled(
    column: PatientColumn[Value], keys: Mapping[str, str], planner: Planner, hint: str
) -> dict[str, Value]:
    """What a file says of every labelled patient.

    Args:
      column: the file.
      keys: written id of each labelled patient to its key.
      planner: whose id policy says whether a patient may be named.
      hint: what the file should have said.

    Raises:
      UsageError: it does not list one of them.
    """
    spellings = {name: _spelling(key, column, planner.id_policy) for name, key in keys.items()}
    missing = sorted(name for name, spelling in spellings.items() if spelling is None)
    if missing:
        named = "" if planner.id_policy.key else f" ({', '.join(missing[:5])})"
        raise UsageError(
            f"{column.source} do not list {len(missing)} of {len(keys)} labelled patients found"
            f"{named}; {hint}"
        )
    return {
        name: column.by_spelling[spelling]
        for name, spelling in spellings.items()
        if spelling is not None
    }


def _places(
    labels: Mapping[str, Label], keys: Mapping[str, str], planner: Planner
) -> tuple[dict[str, Place], dict[str, int]]:
    """As `_dealt`, which also refuses a class that is in fewer patients than folds, or in no
    patient of a fold."""
    target = planner.target
    if labels and (why := too_few(target, labels.values(), planner.folds)):
        raise UsageError(f"of the labelled patients found: {why}")
    places, groups = _dealt(labels, keys, planner)
    if labels and not target.is_plain:
        folds = [
            [label for name, label in labels.items() if places[name] == fold]
            for fold in range(planner.folds)
        ]
        if lack := lacking(target, folds):
            column = planner.groups or planner.given
            source = f"{column.source}: " if column else ""
            instead = "other ones" if column else "another --seed"
            raise UsageError(f"{source}{lack}, and could not be scored: fewer folds, or {instead}")
    return places, groups


def _dealt(
    labels: Mapping[str, Label], keys: Mapping[str, str], planner: Planner
) -> tuple[dict[str, Place], dict[str, int]]:
    """Where every patient stands who has a label or is a given test patient, and groups' numbers.

    Args:
      labels: written id of each labelled patient to its label.
      keys: written id of each patient to its key.
      planner: the rule.

    Raises:
      UsageError: groups or given folds do not fit the labelled patients.
    """
    if not labels:
        return {}, {}
    strata = strata_of(planner.target, labels, planner.folds)
    labelled = {name: keys[name] for name in labels}
    if planner.groups is not None:
        cells = _of_labelled(planner.groups, labelled, planner, "an empty cell: no group")
        # A patient without a group is one; no group's name is empty or begins with a tab.
        groups = {name: cell or f"\t{name}" for name, cell in cells.items()}
        try:
            dealt = assign_grouped_folds(strata, groups, planner.folds, planner.seed)
        except ValueError as error:
            raise UsageError(f"{planner.groups.source}: {error}") from error
        numbers = {group: number for number, group in enumerate(sorted(set(groups.values())))}
        return dict(dealt), {name: numbers[group] for name, group in groups.items()}
    if planner.given is None:
        return dict(assign_folds(strata, planner.folds, planner.seed)), {}
    places = _of_labelled(planner.given, labelled, planner, f"a fold or {TEST} for each")
    if gone := set(range(planner.folds)) - set(places.values()):
        raise UsageError(
            f"{planner.given.source}: no labelled patient found is of fold {min(gone)}"
        )
    for name in keys.keys() - labels.keys():
        spelling = _spelling(keys[name], planner.given, planner.id_policy)
        if spelling is not None and planner.given.by_spelling[spelling] == TEST:
            places[name] = TEST
    return places, {}


def _no_match(ids: Iterable[str], column: PatientColumn[Any], id_policy: IdPolicy) -> str:
    """Labels that belong to no patient found are a mistake worth stopping at."""
    message = f"none of {column.source} is of a patient found"
    if id_policy.key is not None:
        return message
    return f"{message}: {column.source} have {min(column.by_spelling)!r}, the input {min(ids)!r}"


def _require_different(given: GivenCovariates, found: Iterable[tuple[float, ...]]) -> None:
    """Refuses covariates that are unknown, or the same, in all patients found."""
    columns = zip(*found, strict=True)
    for covariate, column in zip(given.covariates, columns, strict=True):
        different = {value for value in column if not math.isnan(value)}
        if len(different) < 2:
            why = "the same in" if different else "known of none of"
            raise UsageError(
                f"{given.source}: column {covariate.name} is {why} the patients found: leave it out"
            )


# Two processes at 49 ms a file, waiting for a store included, end in a quarter of an hour.
_FILES_A_WORKER = 20_000


def workers_for(files: int) -> int:
    """How many two-core workers convert so many files of a store in about a quarter of an hour."""
    return -(-files // _FILES_A_WORKER)


def refusals(found: Iterable[tuple[str, Refusal]]) -> dict[str, Refusal]:
    """Who of a cohort gets no record, and why: as `Assignments.refused`.

    Args:
      found: (patient key, why nothing can be made of it or None) of each patient.
    """
    by_id: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, Refusal] = {}
    for key, refusal in sorted(found):
        if refusal is None:
            by_id[normalised_id(patient_id_of(key))].append(key)
        else:
            refused[key] = refusal
    for key, refusal in refused.items():
        why = refusal and refusal[0]
        if why is Reason.NO_PATIENT_ID:
            refused[key] = None  # its series say why
        elif why is Reason.NO_USABLE_SERIES and normalised_id(patient_id_of(key)) in by_id:
            refused[key] = None  # stray files of a patient who is found elsewhere
    for keys in by_id.values():
        if len(keys) > 1:
            detail = f"{len(keys)} patients of the input would get this id"
            refused |= dict.fromkeys(keys, (Reason.AMBIGUOUS_PATIENT, detail))
    return refused


def assign_patients(found: Iterable[tuple[str, Refusal]], planner: Planner) -> Assignments:
    """Assigns every patient found, whatever the order they come in.

    Args:
      found: (patient key, why nothing can be made of it or None) of each patient.
      planner: labels and parameters.

    Raises:
      UsageError: a patient's id is ambiguous in the labels, no label or no covariates are of any
        patient, or groups, folds or covariates do not fit the labelled patients.
    """
    found = sorted(found)
    refused = refusals(found)
    labels = planner.labels
    ids: dict[str, str] = {}
    values: dict[str, Label] = {}
    known: dict[str, tuple[float, ...]] = {}
    labelled: set[str] = set()
    listed = 0
    for key, _ in found:
        if key in refused:
            continue
        spelling = _spelling(key, labels, planner.id_policy)
        ids[key] = planner.id_policy.apply(spelling or patient_id_of(key))
        if labels is not None and spelling is not None:
            values[ids[key]] = labels.by_spelling[spelling]
            labelled.add(spelling)
        if (given := planner.covariates) is not None:
            spelling = _spelling(key, given, planner.id_policy)
            listed += spelling is not None
            known[ids[key]] = given.unknown if spelling is None else given.by_spelling[spelling]
    require_apart(ids.values())
    if labels is not None and ids and not values:
        raise UsageError(_no_match(ids.values(), labels, planner.id_policy))
    if (given := planner.covariates) is not None and ids:
        if not listed:
            raise UsageError(_no_match(ids.values(), given, planner.id_policy))
        if labels is not None:
            _require_different(given, known.values())
    places, groups = _places(values, {name: key for key, name in ids.items()}, planner)
    shards = assign_shards(
        {patient_id: places.get(patient_id) for patient_id in ids.values()},
        planner.patients_per_shard or patients_a_shard(len(ids), planner.record_bytes),
        planner.seed,
    )
    decided = planner.groups or planner.given
    found_in = [_spelling(key, decided, planner.id_policy) is not None for key in ids]
    return Assignments(
        by_key={
            key: Assignment(
                patient_id=patient_id,
                label=values.get(patient_id),
                fold=None if (place := places.get(patient_id)) == TEST else place,
                shard=shards[patient_id],
                covariates=known.get(patient_id, ()),
            )
            for key, patient_id in ids.items()
        },
        refused=refused,
        labels_without_patient=tuple(sorted(set(labels.by_spelling) - labelled) if labels else ()),
        patients_without_label=tuple(sorted(set(ids.values()) - set(values)) if labels else ()),
        groups=groups,
        listed_without_patient=len(decided or ()) - sum(found_in),
    )


def assign_people(found: Iterable[tuple[str, Refusal, str]], planner: Planner) -> Assignments:
    """`assign_patients`, and how many people are several of the patients that got an id.

    Args:
      found: (patient key, refusal, `PatientPlan.person`) of each patient.
      planner: labels and parameters.

    Raises:
      UsageError: as `assign_patients`.
    """
    found = list(found)
    made = assign_patients([(key, refusal) for key, refusal, _ in found], planner)
    people = Counter(person for key, _, person in found if person and key in made.by_key)
    several = sum(studies > 1 for studies in people.values())
    return dataclasses.replace(made, people_in_several=several)
