"""What an output directory knows of the work done in it: lock, job, and each shard's inputs.

    output/.state/lock                      held while a job runs
    output/.state/job.json                  recipe, folds, seed and id policy of what lies here
    output/.state/<shard>.json              inputs of a finished shard, and what became of them

A shard is finished when its file and its state are there; both are written under a temporary name
and renamed. A re-run converts only shards whose inputs are others than their state says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import canonical_json, fingerprint
from beam_jobs.common.files_before import filesystems
from beam_jobs.common.files_before.storage import is_remote
from beam_jobs.convert.planning import Assignment
from beam_jobs.convert.series_table import SERIES_COLUMNS, RejectRow
from beam_jobs.core.cohort.ids import IdPolicy
from beam_jobs.core.cohort.plan import PatientPlan
from beam_jobs.core.manifest import MANIFEST_NAME, ShardEntry, ShardPatient

STATE_NAME = ".state"
REPORT_NAME = "report.html"
TEMPORARY_SUFFIX = ".part"
# A shard, its state, or a temporary file of either.
_SHARD = re.compile(
    r"((?:fold-\d+|unlabelled)-\d{5}-of-\d{5}\.tfrecord)(?:\.json)?(?:(?:\.[0-9a-f]{12})?\.part)?$"
)
_OURS = re.compile(
    rf"{_SHARD.pattern}|(?:manifest\.json|series\.csv|rejects\.csv|report\.html)(?:\.part)?$"
)


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
    def from_json(cls, data: Mapping[str, Any]) -> ShardResult:
        """Reads `to_json`'s object.

        Raises:
          KeyError, TypeError, ValueError: it is none, or an earlier version's with other columns.
        """
        series = tuple(data["series"])
        if any(set(row) != set(SERIES_COLUMNS) for row in series):
            raise ValueError("series.csv has other columns now")
        entry = data["entry"]
        if entry is not None:
            patients = tuple(ShardPatient(**patient) for patient in entry["patients"])
            entry = ShardEntry(**{**entry, "patients": patients})
        return cls(
            entry=entry,
            series=series,
            rejects=tuple(RejectRow(**row) for row in data["rejects"]),
        )


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
    base = root.rstrip("/") + "/"
    told = [
        [
            dataclasses.astuple(assignment),
            [
                dataclasses.asdict(
                    dataclasses.replace(row, patient="", path=row.path.removeprefix(base))
                )
                for row in plan.rows
            ],
            {
                modality: [
                    (header.path.removeprefix(base), header.file_size, header.modified)
                    for header in series.headers
                ]
                for modality, series in sorted(plan.series.items())
            },
        ]
        for plan, assignment in patients
    ]
    text = canonical_json([dict(job), told])
    return id_policy.token(text) if id_policy.key else hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateStore:
    """The state of one output directory.

    Attributes:
      output: the dataset's directory.
      job: what every shard of it has in common, as JSON.
    """

    output: str
    job: Mapping[str, Any]

    @property
    def _directory(self) -> str:
        return filesystems.join(self.output, STATE_NAME)

    def _shard_path(self, shard: str) -> str:
        return filesystems.join(self._directory, f"{shard}.json")

    def finished(self, shard: str, inputs: str) -> tuple[ShardResult | None, str]:
        """(the finished shard's result, "kept"), or (None, why it has to be converted).

        The file is hashed: a shard that was damaged since is converted again.
        """
        path = self._shard_path(shard)
        if not filesystems.exists(path):
            return None, "new"
        try:
            state = json.loads(filesystems.read_text(path))
            result = ShardResult.from_json(state["result"])
            found = state["inputs"]
        except (KeyError, TypeError, ValueError):
            return None, "state unreadable"
        if found != inputs:
            return None, "inputs changed"
        if result.entry is not None:
            file = filesystems.join(self.output, shard)
            if not filesystems.exists(file):
                return None, "file missing"
            if digest(file) != (result.entry.bytes, result.entry.sha256):
                return None, "file damaged"
        return result, "kept"

    def finish(self, shard: str, inputs: str, result: ShardResult) -> None:
        """Says that a shard's file is in place."""
        state = {"inputs": inputs, "result": result.to_json()}
        filesystems.write_text(self._shard_path(shard), json.dumps(state, sort_keys=True) + "\n")

    def begin(self, *, overwrite: bool) -> None:
        """Takes the output for this job: refuses another job's, clears a killed run's leftovers.

        Raises:
          UsageError: the output holds another job's dataset, or a dataset without state, and
            `overwrite` is not given; the message names each differing field with both values.
        """
        path = filesystems.join(self._directory, "job.json")
        manifest = filesystems.join(self.output, MANIFEST_NAME)
        difference = ""
        if filesystems.exists(path):
            difference = self._difference(filesystems.read_text(path))
        elif filesystems.exists(manifest):
            difference = "it does not say how it was made"
        elif foreign := self._foreign():
            raise UsageError(
                f"--output {self.output} holds files that are no dataset: {foreign[0]}"
            )
        if difference and not overwrite:
            raise UsageError(
                f"--output {self.output} holds another dataset ({difference}); "
                "--overwrite replaces it"
            )
        if filesystems.exists(manifest):
            # The page tells of what is now going to change.
            page = filesystems.join(self.output, REPORT_NAME)
            filesystems.delete([manifest, page, f"{page}{TEMPORARY_SUFFIX}"])
        self.remove_leftovers(keep=None)
        filesystems.write_text(path, json.dumps(self.job, sort_keys=True, indent=1) + "\n")

    def _difference(self, text: str) -> str:
        """Each field of the job that lies here and of this one that differ, with both values."""
        try:
            there = dict(json.loads(text))
        except (TypeError, ValueError):
            return "its state is unreadable"
        return "; ".join(
            f"{name}: {there.get(name)!r} there, {self.job.get(name)!r} asked for"
            for name in sorted({*there, *self.job})
            if there.get(name) != self.job.get(name)
        )

    def _foreign(self) -> list[str]:
        """Files in the output that no conversion wrote."""
        return [name for name in filesystems.list_names(self.output) if not _OURS.match(name)]

    def remove_leftovers(self, *, keep: set[str] | None) -> None:
        """Deletes temporary files and, where `keep` is given, shards and states not among it.

        Only names that a conversion gives are touched.
        """
        leftovers = []
        for directory in (self.output, self._directory):
            for name in filesystems.list_names(directory):
                shard = _SHARD.match(name)
                if shard is None:
                    continue
                temporary = name.endswith(TEMPORARY_SUFFIX)
                if temporary or (keep is not None and shard[1] not in keep):
                    leftovers.append(filesystems.join(directory, name))
        filesystems.delete(leftovers)

    @contextlib.contextmanager
    def lock(self, *, break_lock: bool) -> Iterator[None]:
        """Holds the output: two jobs must not write one dataset.

        On a local disk the lock ends with the process, however it ends. In an object store a
        killed job leaves it behind, and `break_lock` says that its job is dead.

        Raises:
          CommandError: another job holds it; the message says who.
        """
        path = filesystems.join(self._directory, "lock")
        if is_remote(path):
            with self._remote_lock(path, break_lock=break_lock):
                yield
            return
        import fcntl

        os.makedirs(self._directory, exist_ok=True)
        with open(path, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                raise self._held(file.read()) from error
            file.seek(0)
            file.truncate()
            file.write(_owner())
            file.flush()
            try:
                yield
            finally:
                os.unlink(path)

    @contextlib.contextmanager
    def _remote_lock(self, path: str, *, break_lock: bool) -> Iterator[None]:
        owner = f"{_owner()}, {uuid.uuid4().hex[:8]}"
        if break_lock:
            filesystems.write_text(path, owner)
        elif not filesystems.write_new_text(path, owner):
            raise self._held(filesystems.read_text(path), hint="; --break_lock if it is dead")
        try:
            yield
        finally:
            # Another's, who broke this one, stays; so does one that nobody can look at now.
            with contextlib.suppress(CommandError, OSError):
                if filesystems.read_text(path) == owner:
                    filesystems.delete([path])

    def _held(self, owner: str, hint: str = "") -> CommandError:
        return CommandError(f"another job is writing {self.output} ({owner.strip()}){hint}")


def _owner() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} since {started} UTC"


def digest(path: str) -> tuple[int, str]:
    """(bytes, sha256 hex) of a file."""
    found, size = hashlib.sha256(), 0
    with filesystems.open_read(path) as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
            size += len(chunk)
    return size, found.hexdigest()


def job_identity(**fields: Any) -> dict[str, Any]:
    """The job's fields, JSON values, as they read back from a file."""
    return dict(json.loads(canonical_json(fields)))


def key_check(id_policy: IdPolicy) -> str:
    """Tells one hmac key from another without telling the key."""
    return "" if id_policy.key is None else id_policy.token(fingerprint("voxelbeam key check"))
