"""A dataset checked against its manifest: `python -m beam_jobs.verify DATASET`."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m beam_jobs.verify")

import argparse
import contextlib
import functools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from beam_jobs.common import cli, terminal
from beam_jobs.common.contract_json import ContractError, fingerprint
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.names import name_below
from beam_jobs.common.printable import printable
from beam_jobs.common.processes import in_processes
from beam_jobs.convert import second_decoder
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.layout import require_directories
from beam_jobs.core.dicom.headers import SliceHeader
from beam_jobs.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    read_manifest,
)
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import RecordSchema
from beam_jobs.core.tfrecord import inspect_shard

PROG = "python -m beam_jobs.verify"
EXAMPLES = """\
  # Hashes, counts, checksums, schema and finiteness of every shard.
  python -m beam_jobs.verify dataset

  # And 200 slices of what it was made of, decoded a second time, by DCMTK.
  python -m beam_jobs.verify dataset --against cohort/train
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
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="directory with a manifest.json")
    add("--workers", type=int, default=os.cpu_count() or 1, help="shards checked at a time")
    add("--against", metavar="DICOM", help="the input: decode slices of it a second time as well")
    add("--samples", type=int, default=200, help="slices of --against to decode, at most")
    add("--seed", type=int, default=0, help="of the choice of these slices")
    flags = parser.parse_args(argv)
    for name in ("workers", "samples"):
        if getattr(flags, name) < 1:
            raise cli.UsageError(f"--{name} must be at least 1")
    directory = files.trimmed(flags.dataset)
    manifest = read_manifest(directory)
    # First of all, for it may not load.
    decode = None if flags.against is None else second_decoder.load_decoder()
    faults = [
        *_stray_files(directory, manifest),
        *_shard_faults(directory, manifest, flags.workers),
    ]
    checked = f"{len(manifest.shards)} shards"
    rows = [("dataset", f"{checked}, {len(manifest.patients)} records in {directory}")]
    if decode is not None:
        compared = _compared(flags, manifest, decode)
        faults += _differences(flags.against, manifest, compared)
        checked += f" and {len(compared)} slices"
        counts = Counter(item.verdict for item in compared)
        found = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in counts)
        decoders = " and ".join(sorted({_decoder_of(item.header) for item in compared}))
        rows.append(("slices", f"{len(compared)} decoded again by {decoders}: {found}"))
    for fault in faults:
        print(printable(fault), file=sys.stderr)
    if faults:
        raise cli.CommandError(f"{directory}: {len(faults)} faults in {checked}")
    if decode is not None and not counts[second_decoder.Verdict.SAME]:
        raise cli.CommandError(
            f"--against {flags.against}: nothing was checked, {len(compared)} slices: {found}"
        )
    for name, text in rows:
        terminal.row(name, text)
    terminal.row("verdict", "all as the manifest says")
    return cli.EXIT_OK


def _compared(
    flags: argparse.Namespace, manifest: Manifest, decode: second_decoder.Decoder
) -> list[second_decoder.Compared]:
    """Slices of `--against`, chosen by the dataset's own recipe, decoded by both decoders."""
    root = files.trimmed(flags.against)
    require_directories(root, manifest.patient_from)
    try:
        spec = PreprocessSpec.from_json(manifest.spec)
    except ContractError as error:
        raise ContractError(f"--against {files.told(root)}: {error}") from error
    kept = manifest.id_policy == "keep"
    slices = second_decoder.sample_slices(
        root,
        spec,
        count=flags.samples,
        seed=flags.seed,
        patients={normalised_id(name) for name, _, _ in manifest.patients} if kept else None,
        patient_from=manifest.patient_from,
    )
    found = second_decoder.compare(slices, decode)
    return list(terminal.track(found, "decoding again", len(slices)))


def _differences(
    root: str, manifest: Manifest, compared: Sequence[second_decoder.Compared]
) -> Iterator[str]:
    """A line for each slice that two decoders disagree on; names may be people's."""
    private = manifest.id_policy != "keep"
    for header, verdict, pixels in compared:
        if verdict is second_decoder.Verdict.DIFFERS:
            name = "a file" if private else name_below(root, header.path)
            frame = f", frame {header.frame}" if header.frames else ""
            of = (header.rows or 0) * (header.columns or 0)
            second = _decoder_of(header)
            yield f"{name}{frame}: {pixels} of {of} pixels are others by {second}"


def _decoder_of(header: SliceHeader) -> str:
    return "nibabel" if header.is_nifti else "DCMTK"


def _shard_faults(directory: str, manifest: Manifest, workers: int) -> Iterator[str]:
    """The faults of all shards, several shards at a time."""
    shards = manifest.shards
    check = functools.partial(check_shard, directory, schema=manifest.schema)
    workers = min(workers, len(shards))
    with contextlib.ExitStack() as stack:
        checked: Iterable[list[str]] = map(check, shards)
        if workers > 1:
            checked = stack.enter_context(contextlib.closing(in_processes(check, shards, workers)))
        for found in terminal.track(checked, "checking shards", len(shards)):
            yield from found


def _stray_files(directory: str, manifest: Manifest) -> Iterator[str]:
    """Shards that the manifest does not list."""
    listed = {shard.name for shard in manifest.shards}
    for name in files.names(directory):
        if name.endswith(".tfrecord") and name not in listed:
            yield f"{name}: not in the manifest"
    if manifest.schema.spec_fingerprint != _fingerprint_of(manifest):
        yield f"{MANIFEST_NAME}: spec_fingerprint is not that of the spec"


def _fingerprint_of(manifest: Manifest) -> str:
    return fingerprint(manifest.spec)  # of whatever recipe, also an earlier version's


def check_shard(directory: str, shard: ShardEntry, schema: RecordSchema) -> list[str]:
    """The faults of one shard, a line each; none when it is as the manifest says.

    Args:
      directory: the dataset.
      shard: the shard's entry.
      schema: what its records must fit.
    """
    try:
        found = inspect_shard(directory, shard, schema)
        return [f"{shard.name}: {fault}" for fault in found if isinstance(fault, str)]
    except OSError as error:
        return [f"{shard.name}: {error.strerror or error}"]


if __name__ == "__main__":
    cli.run(main, PROG)
