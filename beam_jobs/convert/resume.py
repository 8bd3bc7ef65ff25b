"""What an output directory knows of the work done in it: lock, job, and each shard's inputs.

    output/.state/lock                      held while a job's command runs
    output/.state/owner.json                whose the output is while the job's workers write
    output/.state/running.json              a job that may still run: it could not be cancelled
    output/.state/job.json                  recipe, folds, seed and id policy of what lies here
    output/.state/<shard>.json              inputs of a finished shard, and what became of them

A shard is finished when its file and its state are there; both are written under a temporary name
and renamed. A re-run converts only shards whose inputs are others than their state says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import (
    ContractError,
    Kind,
    ListOf,
    Within,
    canonical_json,
    differing,
    fingerprint,
    json_object,
    require_kinds,
    shown,
)
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.names import name_below
from beam_jobs.common.json_file import write_json
from beam_jobs.common.owner import LostOutputError, Owner, new_token
from beam_jobs.convert.ours import (
    JOB,
    LOCK,
    OWNER,
    REPORT_NAME,
    RUNNING,
    SERIES_NAME,
    STATE_NAME,
    TABLES,
    holds_npz,
    npz_of,
    read_states,
    require_ours,
    shard_of,
    stale_npz,
    target_of,
)
from beam_jobs.convert.planning import Assignment
from beam_jobs.convert.series_table import SERIES_COLUMNS, RejectRow
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.plan import PatientPlan
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.manifest import MANIFEST_NAME, ShardEntry, ShardPatient
from beam_jobs.core.record import RecordSchema
from beam_jobs.core.tfrecord import inspect_shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What became of one shard.

    Attributes:
      entry: its place in the manifest, None when no patient of it could be used.
      series: rows of series.csv.
      rejects: rows of rejects.csv.
    """

    entry: ShardEntry | None
    series: tuple[dict[str, Any], ...]
    rejects: tuple[RejectRow, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` takes it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], target: Target) -> ShardResult:
        """Reads `to_json`'s object of a dataset with such labels.

        Raises:
          KeyError, TypeError, ValueError: it is none, or an earlier version's with other columns.
        """
        require_kinds(data, {"series": ListOf(dict), "rejects": ListOf(dict), "entry": dict | None})
        series = tuple(data["series"])
        if any(set(row) != set(SERIES_COLUMNS) for row in series):
            raise ValueError("series.csv has other columns now")
        for row in (*series, *data["rejects"]):
            require_kinds(
                row, {name: _KINDS.get(name, str) for name in row if row[name] is not None}
            )
        entry = data["entry"]
        if entry is not None:
            require_kinds(entry, _ENTRY)
            for one in entry["patients"]:
                require_kinds(one, {"patient_id": str})
                one["label"] = target.label_of_json(one["label"])
            patients = tuple(ShardPatient(**one) for one in entry["patients"])
            entry = ShardEntry(**{**entry, "patients": patients})
        return cls(
            entry=entry,
            series=series,
            rejects=tuple(RejectRow(**row) for row in data["rejects"]),
        )


_COUNT = Within(int, 0, 2**53)
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("files", "rows", "columns", "slices", "blank_slices"), _COUNT),
    **dict.fromkeys(("obliquity", "row_spacing", "column_spacing", "slice_step"), float),
    **dict.fromkeys(("thickness", "field_strength"), float),
    **dict.fromkeys(("even_steps", "geometry_known"), bool),
    "frame_of_reference": _COUNT,
}  # the others are texts
_ENTRY: dict[str, Kind] = {
    **{"name": str, "fold": int | None, "bytes": _COUNT, "sha256": str},
    "patients": ListOf(dict, least=1),
}


def shard_inputs(
    patients: Sequence[tuple[PatientPlan, Assignment]],
    job: Mapping[str, Any],
    id_policy: IdPolicy,
    root: str,
) -> str:
    """A digest of all that decides a shard's bytes and rows.

    Names are relative to the input, so that a moved input is the same input; sizes and times of
    change stand for content. Under `hmac` the digest is keyed, for names may be people's.
    """
    made_of = [
        [
            assignment.said,
            [
                dataclasses.asdict(
                    dataclasses.replace(row, patient="", path=name_below(root, row.path))
                )
                for row in plan.rows
            ],
            {
                modality: [
                    (name_below(root, header.path), header.file_size, header.modified)
                    for header in series.headers
                ]
                for modality, series in sorted(plan.series.items())
            },
        ]
        for plan, assignment in patients
    ]
    text = canonical_json([dict(job), made_of])
    return id_policy.token(text) if id_policy.key else hashlib.sha256(text.encode()).hexdigest()


# What is deleted between two looks at whose the output is.
_DELETED_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateStore:
    """The state of one output directory, and one job's right to write there.

    Attributes:
      output: the dataset's directory.
      job: what every shard of it has in common, as JSON.
      token: of this very job, which its workers bring along.
    """

    output: str
    job: Mapping[str, Any]
    token: str = dataclasses.field(default_factory=new_token)

    @property
    def owner(self) -> Owner:
        """What this job may write for: all that is replaced or deleted, a short block at a time."""
        path = files.join(self.output, OWNER)
        return Owner(path=path, output=self.output, token=self.token)

    def _shard_path(self, shard: str) -> str:
        return files.join(self.output, STATE_NAME, f"{shard}.json")

    def finished(
        self, shard: str, inputs: str, schema: RecordSchema
    ) -> tuple[ShardResult | None, str]:
        """(the finished shard's result, "kept"), or (None, why it has to be converted).

        The file is read: a shard that was damaged since, or whose records are not those that its
        state lists, is converted again.
        """
        try:
            state = json_object(files.read(self._shard_path(shard)))
            result = ShardResult.from_json(state["result"], schema.target)
            made_of = state["inputs"]
            # Earlier versions' have none.
            if state.get("sha256", whole := fingerprint(state["result"])) != whole:
                raise ValueError("damaged")
            if result.entry is not None and result.entry.name != shard:
                raise ValueError("another shard's state")
        except FileNotFoundError:
            return None, "new"
        except (KeyError, TypeError, ValueError, RecursionError):
            return None, "state unreadable"
        if made_of != inputs:
            return None, "inputs changed"
        if result.entry is not None:
            if not files.exists(files.join(self.output, shard)):
                return None, "file missing"
            found = inspect_shard(self.output, result.entry, schema)
            if any(isinstance(fault, str) for fault in found):
                return None, "file damaged"
        return result, "kept"

    def finish(self, shard: str, inputs: str, result: ShardResult) -> None:
        """Records that a shard's file is in place; npz files of it are of what was there before."""
        said = result.to_json()
        state = {"inputs": inputs, "result": said, "sha256": fingerprint(said), "npz": []}
        self._write(shard, {**state, "npz_before": sorted(npz_of(self._state(shard), ()))})

    def record_npz(self, shard: str, names: Iterable[str]) -> None:
        """Records the npz files of a finished shard, before the first of them is written."""
        state, now = self._state(shard), sorted(names)
        if state.get("npz") != now:
            before = npz_of(state, ()) - set(now)
            self._write(shard, {**state, "npz": now, "npz_before": sorted(before)})

    def _state(self, shard: str) -> dict[str, Any]:
        """A shard's state; empty where there is none, or an unreadable one."""
        name = f"{STATE_NAME}/{shard}.json"
        return read_states(self.output, [name]).get(shard, {})

    def _write(self, shard: str, state: Mapping[str, Any]) -> None:
        said = {name: value for name, value in state.items() if name != "npz_before" or value}
        self.write(f"{STATE_NAME}/{shard}.json", json.dumps(said, sort_keys=True) + "\n")

    def write(self, name: str, text: str) -> None:
        """Writes a file below the output, if that is still this job's."""
        with self.owner.writing():
            files.write_text(files.join(self.output, name), text)

    def _delete(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), _DELETED_AT_ONCE):
            paths = [files.join(self.output, name) for name in names[start:][:_DELETED_AT_ONCE]]
            with self.owner.writing():
                files.delete(paths)

    def remove_npz(self, *, keep: set[str]) -> None:
        """Deletes the npz files of shards that are not among `keep`, or were converted again."""
        there = files.tree(self.output)
        if not holds_npz(there):
            return
        states = read_states(self.output, there)
        kept = {
            shard: state if shard in keep else {"npz": [], "npz_before": sorted(npz_of(state, ()))}
            for shard, state in states.items()
        }
        self._delete(stale_npz(kept, there))
        for shard in keep & states.keys():
            if states[shard].get("npz_before"):
                self._write(shard, {**states[shard], "npz_before": []})

    def require_ours(self) -> None:
        """Refuses an output with a file in it that no conversion made. Writes nothing.

        Raises:
          UsageError: there is one, or a link to a directory; the message names it.
        """
        require_ours(self.output)

    def begin(self, *, overwrite: bool) -> None:
        """Takes the output for this job: refuses another job's, clears a killed run's leftovers.

        Raises:
          UsageError: the output holds another job's dataset, or a dataset without state, and
            `overwrite` is not given; the message names each differing field with both values.
        """
        path, manifest = (files.join(self.output, name) for name in (JOB, MANIFEST_NAME))
        difference = ""
        if files.exists(path):
            difference = self._difference(files.read(path))
        elif files.exists(manifest):
            difference = "it does not say how it was made"
        if difference and not overwrite:
            raise UsageError(
                f"--output {self.output} holds another dataset ({difference}); "
                "--overwrite replaces it"
            )
        self.owner.take()
        there = files.tree(self.output)
        states = read_states(self.output, there) if holds_npz(there) else {}
        for shard, state in states.items():
            if "npz" not in state:  # an earlier version's
                self._write(shard, {**state, "npz": sorted(npz_of(state, there))})
        # They show what is now going to change; series.csv is there again at the end.
        self._delete([one for one in (*TABLES, RUNNING) if one in there])
        self.remove_leftovers(keep=None)
        self.write(JOB, json.dumps(self.job, sort_keys=True, indent=1) + "\n")

    def require_finished(self) -> None:
        """Finds out whether a job that ended finished what lies here.

        Raises:
          LostOutputError: another job took the output meanwhile.
          CommandError: its workers did not find the output to be this job's.
        """
        table, job = (files.join(self.output, name) for name in (SERIES_NAME, JOB))
        with files.claimed(files.join(self.output, OWNER)) as said:
            if said or not files.exists(table) or self._difference(files.read(job)):
                self.owner.require()
                why = "do its workers see it as it is here?"
                raise CommandError(f"the job ended, and {self.output} is not finished; {why}")

    def _difference(self, state: bytes) -> str:
        """Each field of the job that lies here and of this one that differ, with both values."""
        try:
            there = json_object(state)
        except ContractError as error:
            return f"its state is unreadable: {JOB}: {error}"

        def said(value: object) -> str:
            return "nothing" if value is None else shown(value)

        return "; ".join(
            f"{name}: {said(old)} there, {said(new)} requested"
            for name, old, new in differing(there, self.job)
        )

    def remove_leftovers(self, *, keep: set[str] | None) -> None:
        """Deletes temporary files and, where `keep` is given, shards and states not among it.

        Only names that a conversion gives are touched; npz files are `remove_npz`'s. A page there,
        where `keep` is given, is of what was there before.
        """
        leftovers = []
        for name in files.tree(self.output):
            shard = shard_of(target := target_of(name))
            temporary = name != target and (shard or target in (*TABLES, JOB, RUNNING))
            unwanted = keep is not None and (name == REPORT_NAME or (shard and shard not in keep))
            if temporary or unwanted:
                leftovers.append(name)
        self._delete(leftovers)

    @contextmanager
    def lock(self, *, break_lock: bool) -> Iterator[files.Lock]:
        """Holds the output: two jobs must not write one dataset.

        On a local disk the lock ends with the process, however it ends. In an object store a
        killed job leaves it behind, and `break_lock` says that its job is dead.

        Raises:
          CommandError: another job holds it, or `keep_locked` says that one may still run; the
            message says which.
        """
        with files.lock(
            files.join(self.output, LOCK),
            f"another job is writing {self.output}",
            break_lock=break_lock,
            hint="; --break_lock if it is dead",
        ) as lock:
            running = files.join(self.output, RUNNING)
            if not break_lock and files.exists(running):
                raise CommandError(
                    f"a job may still be writing {self.output}: {_kept(files.read(running))}; "
                    "--break_lock if it has ended"
                )
            yield lock

    def keep_locked(self, message: str) -> None:
        """Refuses the next job although this one's command ends, until `--break_lock` is given.

        To be called before one waits for a job's end: a second Ctrl-C ends the process at once.

        Args:
          message: which job may still run, where, and how to cancel it; "" once it has ended.
        """
        running = files.join(self.output, RUNNING)
        # Of an output that is finished, or another's, there is nothing to keep.
        with suppress(LostOutputError), self.owner.writing():
            if message:
                write_json(running, {"message": message})
            else:
                files.delete([running])

    def end(self) -> None:
        """What this job had to write is written; a worker of it that lives on writes no more."""
        self._delete([RUNNING])
        self.owner.leave()


def _kept(said: bytes) -> str:
    try:
        return str(json_object(said)["message"])
    except (ContractError, KeyError):
        return f"{RUNNING} is unreadable"
