"""A finished dataset's tables and manifest, and the sums that must come out even."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.convert.ours import REJECTS_NAME, SERIES_NAME
from beam_jobs.convert.planning import Assignments, Planner
from beam_jobs.convert.resume import ShardResult, StateStore
from beam_jobs.convert.series_table import REJECT_COLUMNS, SERIES_COLUMNS, RejectRow, to_csv
from beam_jobs.core.cohort.covariates import GivenCovariates
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest, ShardEntry
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.reasons import Reason, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetWriter:
    """Writes what stands beside the shards.

    Attributes:
      store: the dataset's directory and its state.
      spec: the recipe.
      planner: folds, seed and id policy.
    """

    store: StateStore
    spec: PreprocessSpec
    planner: Planner

    def finish(
        self,
        _: object,
        results: Iterable[ShardResult],
        file_rejects: Iterable[RejectRow],
        assignments: Assignments,
    ) -> Manifest:
        """Writes series.csv, rejects.csv and, last, manifest.json; removes leftovers.

        Without a single record there is no dataset: then the tables alone are written.

        Raises:
          LostOutputError: the output is another job's by now, or an earlier try finished it.
          ContractError: a shard in a store is not the one that was written, or a worker that did
            not see whose the output is wrote nothing.
        """
        with self.store.owner.working():
            return self._finish(list(results), file_rejects, assignments)

    def _finish(
        self,
        results: Sequence[ShardResult],
        file_rejects: Iterable[RejectRow],
        assignments: Assignments,
    ) -> Manifest:
        series = [row for result in results for row in result.series]
        rejects = [row for result in results for row in result.rejects] + list(file_rejects)
        entries = sorted(
            (result.entry for result in results if result.entry), key=lambda entry: entry.name
        )
        self._require_all(entries, rejects, assignments)
        manifest = Manifest(
            schema=self.planner.schema_of(self.spec),
            spec=self.spec.to_json(),
            folds=self.planner.folds,
            seed=self.planner.seed,
            id_policy=self.planner.id_policy.name,
            counts=self._counts(series, rejects, entries, assignments),
            shards=tuple(entries),
            fold_rule=self.planner.fold_rule,
            patient_from=self.planner.patient_from,
        )
        manifest.check()
        if entries:
            keep = {assignment.shard for assignment in assignments.by_key.values()}
            self.store.remove_npz(keep=keep)
            self.store.remove_leftovers(keep=keep)
        write = self.store.write
        write(SERIES_NAME, to_csv(SERIES_COLUMNS, series))
        write(REJECTS_NAME, to_csv(REJECT_COLUMNS, map(dataclasses.asdict, rejects)))
        if entries:
            self._require_whole(entries)
            write(MANIFEST_NAME, manifest.dumps())
        self.store.end()
        return manifest

    def _require_all(
        self,
        entries: Sequence[ShardEntry],
        rejects: Sequence[RejectRow],
        assignments: Assignments,
    ) -> None:
        """Holds records and rejects against the patients found.

        A worker that finds no token of its job passes on nothing, and its machine may show another
        disk, or for half a minute what was on it before.
        """
        refused = sum(refusal is not None for refusal in assignments.refused.values())
        wanted = len(assignments.by_key) + refused
        found = sum(entry.count for entry in entries)
        found += sum(row.scope == "patient" for row in rejects)
        if found != wanted:
            raise ContractError(
                f"{wanted - found} of {wanted} patients are neither converted nor rejected: "
                f"not all workers see {self.store.output} as it is"
            )

    def _require_whole(self, entries: Sequence[ShardEntry]) -> None:
        """One listing finds what a former job's request, under way at this one's begin, undid."""
        output = self.store.output
        if not files.is_remote(output):  # there it waits for that
            return
        sizes = {entry.path: entry.size for entry in files.entries(output)}
        for entry in entries:
            if sizes.get(files.join(output, entry.name)) != entry.bytes:
                raise ContractError(f"{entry.name} was replaced or deleted while the job ran")

    def _counts(
        self,
        series: Sequence[Mapping[str, Any]],
        rejects: Sequence[RejectRow],
        entries: Sequence[ShardEntry],
        assignments: Assignments,
    ) -> dict[str, Any]:
        used: Counter[str] = Counter()
        stacks: Counter[str] = Counter()
        for row in series:
            used[row["verdict"]] += row["files"]
            if row["reason"] != Reason.NOT_INPUT.value:  # no series, but in the sum of files
                stacks[row["verdict"]] += 1
        lone_files = sum(row.files for row in rejects if row.scope == "file")
        used[Verdict.REJECTED.value] += lone_files
        reasons = Counter(row.reason for row in rejects)
        reasons.update(row["reason"] for row in series if row["verdict"] == Verdict.UNUSED.value)
        verdicts = [verdict.value for verdict in Verdict]
        several = {}
        if self.planner.patient_from == "study":
            several["people_in_several_studies"] = assignments.people_in_several
        by_rule: dict[str, Any] = {}
        if self.planner.fold_rule != "patients":
            by_rule["folds"] = _fold_counts(entries, assignments)
        if self.planner.covariates is not None:
            by_rule["covariates_unknown"] = _unknown(self.planner.covariates, entries, assignments)
        return {
            **by_rule,
            "files": {verdict: used[verdict] for verdict in verdicts},
            "series": {verdict: stacks[verdict] for verdict in verdicts},
            "patients": {
                "converted": sum(entry.count for entry in entries),
                "rejected": sum(row.scope == "patient" for row in rejects),
                "without_label": len(assignments.patients_without_label),
                "labels_without_patient": len(assignments.labels_without_patient),
                **several,
            },
            "reasons": dict(sorted(reasons.items())),
        }


def _unknown(
    given: GivenCovariates, entries: Sequence[ShardEntry], assignments: Assignments
) -> dict[str, int]:
    """Of how many converted patients each covariate is not known."""
    converted = {patient.patient_id for entry in entries for patient in entry.patients}
    rows = [one.covariates for one in assignments.by_key.values() if one.patient_id in converted]
    return {
        covariate.name: sum(math.isnan(row[place]) for row in rows)
        for place, covariate in enumerate(given.covariates)
    }


def _fold_counts(entries: Sequence[ShardEntry], assignments: Assignments) -> dict[str, Any]:
    """Ids listed for no patient; by groups, how many stand in each fold, and the largest's size."""
    counts: dict[str, Any] = {"listed_without_patient": assignments.listed_without_patient}
    if assignments.groups:
        sizes: dict[str, Counter[int]] = {}
        for entry in entries:
            if entry.fold is not None:
                groups = (assignments.groups[patient.patient_id] for patient in entry.patients)
                sizes.setdefault(str(entry.fold), Counter()).update(groups)
        counts["groups"] = {fold: len(found) for fold, found in sizes.items()}
        counts["largest_group"] = max(max(found.values()) for found in sizes.values())
    return counts
