"""A dataset checked against its manifest: `python -m beam_jobs.verify DATASET`."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from beam_jobs.common import cli, terminal
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.convert.resume import digest
from beam_jobs.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    ShardPatient,
    read_manifest,
)
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import RecordSchema
from beam_jobs.core.tfrecord import decode_case, read_records

PROG = "python -m beam_jobs.verify"
EXAMPLES = """\
  # Hashes, counts, checksums, schema and finiteness of every shard.
  python -m beam_jobs.verify dataset
"""


def main(argv: Sequence[str]) -> int:
    """Flags to faults to a verdict."""
    parser = cli.Parser(
        prog=PROG,
        description="Re-checks a dataset against its manifest: every shard's size, sha256, "
        "checksums, records, ids, labels, folds, schema and finiteness, several at a time.",
        examples=EXAMPLES,
        exit_codes={cli.EXIT_OK: "sound", cli.EXIT_FAILURE: "not sound: a line for each fault"},
    )
    parser.add_argument("dataset", metavar="DATASET", help="directory with a manifest.json")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="shards checked at a time"
    )
    flags = parser.parse_args(argv)
    if flags.workers < 1:
        raise cli.UsageError("--workers must be at least 1")
    directory = flags.dataset.rstrip("/") or "/"
    manifest = read_manifest(directory)
    faults = list(_stray_files(directory, manifest))
    shards = manifest.shards
    check = functools.partial(check_shard, directory, schema=manifest.schema)
    workers = min(flags.workers, len(shards))
    with contextlib.ExitStack() as stack:
        checked: Iterable[list[str]] = map(check, shards)
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            checked = stack.enter_context(pool).map(check, shards)
        for found in terminal.track(checked, "checking shards", len(shards)):
            faults += found
    for fault in faults:
        print(fault, file=sys.stderr)
    records = sum(shard.count for shard in manifest.shards)
    if faults:
        raise cli.CommandError(f"{directory}: {len(faults)} faults in {len(shards)} shards")
    terminal.row("dataset", f"{len(shards)} shards, {records} records in {directory}")
    terminal.row("verdict", "all as the manifest says")
    return cli.EXIT_OK


def _stray_files(directory: str, manifest: Manifest) -> Iterator[str]:
    """Shards that the manifest does not list."""
    listed = {shard.name for shard in manifest.shards}
    for name in files.names(directory):
        if name.endswith(".tfrecord") and name not in listed:
            yield f"{name}: not in the manifest"
    if manifest.schema.spec_fingerprint != _fingerprint_of(manifest):
        yield f"{MANIFEST_NAME}: spec_fingerprint is not that of the spec"


def _fingerprint_of(manifest: Manifest) -> str:
    return PreprocessSpec.from_json(manifest.spec).fingerprint


def check_shard(directory: str, shard: ShardEntry, schema: RecordSchema) -> list[str]:
    """The faults of one shard, a line each; none when it is as the manifest says.

    Args:
      directory: the dataset.
      shard: the shard's entry.
      schema: what its records must fit.
    """
    path = files.join(directory, shard.name)
    try:
        if not files.exists(path):
            return [f"{shard.name}: missing"]
        size, sha256 = digest(path)
        faults = []
        if size != shard.bytes:
            faults.append(f"{shard.name}: {size} bytes, manifest says {shard.bytes}")
        if sha256 != shard.sha256:
            faults.append(f"{shard.name}: sha256 is not the manifest's")
        with files.open_read(path) as stream:
            cases = [
                (ShardPatient(patient_id=case.patient_id, label=case.label), case.fold)
                for case in (decode_case(data, schema) for data in read_records(stream))
            ]
    except ContractError as error:
        return [*faults, f"{shard.name}: {error}"]
    except OSError as error:
        return [f"{shard.name}: {error.strerror or error}"]
    if [patient for patient, _ in cases] != list(shard.patients):
        faults.append(
            f"{shard.name}: {len(cases)} records, not the {shard.count} patients and labels of "
            "the manifest in their order"
        )
    if {fold for _, fold in cases} - {shard.fold}:
        faults.append(f"{shard.name}: a record is of another fold than {shard.fold}")
    return faults


if __name__ == "__main__":
    cli.run(main, PROG)
