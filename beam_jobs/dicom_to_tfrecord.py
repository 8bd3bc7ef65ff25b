"""DICOM series to sharded 3D TFRecords: `python -m beam_jobs.dicom_to_tfrecord --help`."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files_before.storage import is_remote, list_local_files
from beam_jobs.common.terminal import row
from beam_jobs.core.cohort.ids import read_id_policy
from beam_jobs.core.cohort.labels import read_labels
from beam_jobs.core.cohort.plan import find_places
from beam_jobs.core.cohort.rules import known_modalities, read_rules_file
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from beam_jobs.core.preprocess import DEFAULT_MODALITIES, PreprocessSpec
from beam_jobs.core.record import DTYPES

if TYPE_CHECKING:
    from beam_jobs.common.progress_files import Ticks
    from beam_jobs.convert.planning import Planner
    from beam_jobs.core.cohort.labels import Labels

PROG = "python -m beam_jobs.dicom_to_tfrecord"
EXAMPLES = """\
  # The Kaggle layout: <root>/<patient>/<modality>/*.dcm and a CSV of labels.
  python -m beam_jobs.dicom_to_tfrecord --input cohort/train --output dataset \\
      --labels cohort/train_labels.csv

  # A heap of DICOM without labels; patients and series are told apart by their headers.
  python -m beam_jobs.dicom_to_tfrecord --input heap --output dataset --modalities T1wCE

  # Two processes; any option of Beam's (--runner, --project, ...) is passed on to it.
  python -m beam_jobs.dicom_to_tfrecord --input cohort/train --output dataset --processes 2
"""


def main(argv: Sequence[str]) -> int:
    """Flags to objects to one pipeline."""
    flags, beam_arguments = _parser().parse_known_args(argv)
    spec, paths = _spec(flags), _input_files(flags)
    _check_modalities(spec, flags, paths)
    id_policy = read_id_policy(flags.id_policy, flags.id_key)
    from beam_jobs.runners.options import (
        default_processes,
        make_pipeline,
        pipeline_options,
        runs_here,
    )

    options = pipeline_options(beam_arguments)
    _check_stores(flags, here=runs_here(options))
    import apache_beam as beam

    from beam_jobs.convert.finish import DatasetWriter
    from beam_jobs.convert.planning import Planner
    from beam_jobs.convert.resume import StateStore, job_identity, key_check
    from beam_jobs.convert.series_table import TableWriter
    from beam_jobs.convert.transforms import (
        AssignPatients,
        Input,
        PlanPatients,
        ReadHeaders,
        RefusedPatients,
        WriteShards,
    )
    from beam_jobs.convert.write_shard import ShardWriter
    from beam_jobs.runners.flink import job_server
    from beam_jobs.runners.watch import watch

    source = Input(root=flags.input, modalities=spec.modalities, rules=spec.series_rules)
    tables = TableWriter(root=flags.input, id_policy=id_policy)
    planner = Planner(
        labels=_labels(flags),
        id_policy=id_policy,
        folds=flags.folds,
        seed=flags.seed,
        patients_per_shard=flags.patients_per_shard,
        record_bytes=spec.schema.volume_bytes,
    )
    _print_plan(flags, planner, paths)
    if flags.dry_run:
        return cli.EXIT_OK
    job = job_identity(
        spec=spec, folds=flags.folds, seed=flags.seed, id_policy=id_policy.name,
        id_key=key_check(id_policy), patients_per_shard=flags.patients_per_shard,
    )  # fmt: skip
    store = StateStore(output=flags.output, job=job)
    npz = flags.format == "npz"
    dataset = DatasetWriter(store=store, spec=spec, planner=planner, npz=npz)
    processes = flags.processes or default_processes(len(paths))
    with (
        store.lock(break_lock=flags.break_lock),
        job_server(options),
        _ticks(runs_here(options)) as ticks,
    ):
        store.begin(overwrite=flags.overwrite)
        writer = ShardWriter(
            store=store, spec=spec, seed=flags.seed, tables=tables, ticks=ticks, npz=npz
        )
        pipeline = make_pipeline(options, processes)
        read = pipeline | "Headers" >> ReadHeaders(source, tables, ticks.files)
        plans = read.headers | "Plan" >> PlanPatients(source)
        assignments = plans | "Assign" >> AssignPatients(planner)
        shards = (plans, assignments) | "Shards" >> WriteShards(writer, ticks.planned)
        refused = (plans, assignments) | "Refused" >> RefusedPatients(tables)
        results = (shards, refused) | "Results" >> beam.Flatten()
        (
            pipeline
            | "Once" >> beam.Create([None])
            | "Finish"
            >> beam.Map(
                dataset.finish,
                beam.pvalue.AsList(results),
                beam.pvalue.AsList(read.rejects),
                beam.pvalue.AsSingleton(assignments),
            )
        )
        started = time.monotonic()
        watch(
            pipeline.run,
            ticks,
            files=len(paths) if paths else None,
            private=id_policy.key is not None,
        )
        _print_shards(ticks, time.monotonic() - started)
    code = _summary(flags)
    if not flags.no_report and "://" not in flags.output:
        _report(flags)
    return code


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog=PROG,
        description="Converts DICOM series into sharded 3D TFRecords, one record a patient, all "
        "of a patient's modalities on one grid.",
        examples=EXAMPLES,
        exit_codes={
            cli.EXIT_OK: "converted",
            cli.EXIT_REJECTED: "converted, but some input was rejected and --strict was given",
        },
    )
    add = parser.add_argument
    add("--input", required=True, help="directory of DICOM files, local, gs:// or s3://")
    add("--output", required=True, help="directory of the dataset to write")
    add("--labels", help="CSV of patient ids and labels 0 or 1; without it nobody is labelled")
    add("--id_column", default="BraTS21ID", help="the labels' column of patient ids")
    add("--label_column", default="MGMT_value", help="the labels' column of labels")
    add(
        "--modalities",
        **cli.LIST,
        default=",".join(DEFAULT_MODALITIES),
        help="channels in order; the first one a patient has centres the grid",
    )
    add(
        "--require_modalities",
        **cli.LIST,
        default="",
        help="reject patients without these; else an absent modality is a channel of zeros",
    )
    add("--series_rules", help="JSON file of rules that tell modalities by header (see README)")
    add("--shape", **cli.LIST, default="128,128,32", help="grid: rows, columns, slices")
    add(
        "--fov_mm",
        **cli.LIST,
        default="240,240,160",
        help="field of view in mm along posterior, left, superior",
    )
    add("--dtype", choices=DTYPES, default="uint8", help="stored voxel type")
    add(
        "--format",
        choices=("tfrecord", "npz"),
        default="tfrecord",
        help="npz writes <train|test>/<modality>/<id>.npz (arr_0) beside the records, for old code",
    )
    add("--folds", type=int, default=5, help="cross-validation folds, fixed in the dataset")
    add("--seed", type=int, default=0, help="of folds and of the order of patients")
    add(
        "--patients_per_shard",
        type=int,
        help="at most (default: about 40 shards, of at most 128 MiB)",
    )
    add(
        "--id_policy",
        choices=("keep", "hmac"),
        default="keep",
        help="hmac replaces patient ids and paths in all that is written by keyed hashes",
    )
    add("--id_key", help="file with the secret key of --id_policy hmac (16 bytes or more)")
    add(
        "--processes",
        type=int,
        help="local worker processes (default: one a core from 20,000 files on, else one)",
    )
    add("--overwrite", action="store_true", help="replace another dataset that is there already")
    add("--dry_run", action="store_true", help="print the plan and stop")
    add(
        "--break_lock",
        action="store_true",
        help="write although a job in an object store left its lock: it is dead",
    )
    add("--strict", action="store_true", help="exit with 8 when any input was rejected")
    add(
        "--no_report",
        action="store_true",
        help="leave out report.html, the dataset as a page (written to local outputs only)",
    )
    return parser


def _numbers(flag: str, value: str | list[str], kind: type[int] | type[float]) -> tuple[Any, ...]:
    items = cli.items(value)
    if len(items) == 1:
        items = tuple(items[0].split("x"))
    try:
        return tuple(kind(item) for item in items)
    except ValueError as error:
        raise cli.UsageError(f"{flag} {','.join(items)}: three numbers required") from error


def _spec(flags: argparse.Namespace) -> PreprocessSpec:
    if flags.folds < 2:
        raise cli.UsageError("--folds must be at least 2")
    for name in ("patients_per_shard", "processes"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise cli.UsageError(f"--{name} must be at least 1")
    try:
        return PreprocessSpec(
            modalities=cli.items(flags.modalities),
            shape=_numbers("--shape", flags.shape, int),
            fov_mm=_numbers("--fov_mm", flags.fov_mm, float),
            dtype=flags.dtype,
            require_modalities=cli.items(flags.require_modalities),
            series_rules=read_rules_file(flags.series_rules),
        )
    except ContractError as error:
        raise cli.UsageError(str(error)) from error


def _input_files(flags: argparse.Namespace) -> list[str]:
    """The files to read, none where listing them is the workers' work."""
    for name in ("input", "output"):
        if not getattr(flags, name):
            raise cli.UsageError(f"--{name} is empty")
        setattr(flags, name, getattr(flags, name).rstrip("/") or "/")
    if f"{flags.output}/".startswith(f"{flags.input}/"):
        raise cli.UsageError(f"--output {flags.output} lies inside --input {flags.input}")
    if is_remote(flags.input):
        return []
    if not os.path.isdir(flags.input):
        raise cli.UsageError(f"--input {flags.input} is not a directory")
    if f"{os.path.realpath(flags.output)}/".startswith(f"{os.path.realpath(flags.input)}/"):
        raise cli.UsageError(f"--output {flags.output} lies inside --input {flags.input}")
    if os.path.exists(flags.output) and not os.path.isdir(flags.output):
        raise cli.UsageError(f"--output {flags.output} is not a directory")
    paths = list_local_files(flags.input)
    if not paths:
        raise cli.UsageError(f"--input {flags.input} holds no file")
    return paths


def _check_stores(flags: argparse.Namespace, *, here: bool) -> None:
    """Finds out before the job what would stop it: no bucket, no permission, nothing there."""
    from beam_jobs.common.files_before import filesystems

    for name in ("input", "output"):
        if not here and not is_remote(getattr(flags, name)):
            raise cli.UsageError(
                f"--{name} {getattr(flags, name)} is on this machine, where Dataflow's workers "
                "cannot reach it: gs:// is needed"
            )
    if is_remote(flags.input) and not filesystems.holds_files(flags.input):
        raise cli.UsageError(f"--input {flags.input} holds no file")
    if is_remote(flags.output):
        filesystems.list_names(flags.output)


def _check_modalities(
    spec: PreprocessSpec, flags: argparse.Namespace, paths: Sequence[str]
) -> None:
    """Refuses a modality that neither a directory nor a rule could ever give."""
    if not paths:
        return
    places = find_places(paths, spec.modalities).values()
    told = {place.modality for place in places} | known_modalities(spec.series_rules)
    unknown = [name for name in spec.modalities if name not in told]
    if unknown:
        raise cli.UsageError(
            f"unknown modality {unknown[0]}: no directory of {flags.input} has that name, and no "
            f"rule gives it (known: {', '.join(sorted(told - {''}))})"
        )


def _labels(flags: argparse.Namespace) -> Labels | None:
    if flags.labels is None:
        return None
    from beam_jobs.common.files_before import filesystems

    try:
        with filesystems.open_read(flags.labels) as file:
            return read_labels(
                file,
                name=flags.labels,
                id_column=flags.id_column,
                label_column=flags.label_column,
            )
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise cli.UsageError(f"--labels {flags.labels}: {reason}") from error


def _print_plan(flags: argparse.Namespace, planner: Planner, paths: Sequence[str]) -> None:
    """What is going to be written, as far as names and not headers tell."""
    from beam_jobs.common.files_before import filesystems
    from beam_jobs.convert.planning import patients_a_shard, workers_for

    if not paths and flags.dry_run:  # else listing a store is the workers' work
        paths = filesystems.list_files(flags.input)
    megabytes = planner.record_bytes / 1e6
    places = find_places(paths, cli.items(flags.modalities)).values()
    patients = len({place.patient for place in places if place.modality})
    if not patients:
        row("plan", f"records of {megabytes:.1f} MB; headers will tell how many patients")
        return
    # Measured: 0.2 to 0.3 GB a worker, and 5.5 kB a file where plans are gathered.
    row(
        "plan",
        f"about 0.3 GB a process and {0.2 + 5.5e-6 * len(paths):.1f} GB where plans are "
        f"gathered; on Dataflow {workers_for(len(paths))} workers of two cores",
    )
    per_shard = flags.patients_per_shard or patients_a_shard(patients, planner.record_bytes)
    row(
        "plan",
        f"{len(paths)} files, {patients} patients; records of {megabytes:.1f} MB, "
        f"{patients * megabytes:.0f} MB in shards of up to {per_shard} patients "
        f"({per_shard * megabytes:.0f} MB)",
    )


def _print_shards(ticks: Ticks, seconds: float) -> None:
    """How fast it went; which shards were converted and why, where an earlier run's were kept."""
    from beam_jobs.common.progress_files import count, lines

    shards = sorted(line.split(" ", 1) for line in lines(ticks.shards))
    kept = sum(why == "kept" for _, why in shards)
    if not shards:
        return
    files = count(ticks.files)
    row("shards", f"{kept} kept, {len(shards) - kept} converted")
    row("time", f"{seconds:.1f} s, {files / seconds:.0f} files a second")
    told_of = [(name, why) for name, why in shards if why not in ("kept", "new")]
    for name, why in told_of[:20]:
        row("", f"{name}: {why}")


@contextlib.contextmanager
def _ticks(here: bool) -> Iterator[Any]:
    """Files that tell of progress, where the workers are on this machine."""
    from beam_jobs.common.progress_files import Ticks

    with tempfile.TemporaryDirectory(prefix="voxelbeam-") as directory:
        yield Ticks.below(directory) if here else Ticks()


def _summary(flags: argparse.Namespace) -> int:
    """Prints what became of the input; returns the exit code."""
    from beam_jobs.common.files_before import filesystems
    from beam_jobs.convert.finish import REJECTS_NAME

    path = filesystems.join(flags.output, MANIFEST_NAME)
    rejects = filesystems.join(flags.output, REJECTS_NAME)
    if not filesystems.exists(path):
        if not filesystems.exists(rejects):
            raise cli.CommandError(f"the job ended without a dataset in {flags.output}")
        raise cli.CommandError(
            f"no series of {', '.join(cli.items(flags.modalities))} in {flags.input} "
            f"could be converted; {rejects} says why"
        )
    manifest = Manifest.loads(filesystems.read_text(path))
    files, series = manifest.counts["files"], manifest.counts["series"]
    patients = manifest.counts["patients"]
    total = sum(files.values())
    row(
        "files",
        f"{total} = {files['used']} used + {files['unused']} unused by rule "
        f"+ {files['rejected']} rejected",
    )
    row(
        "series",
        f"{series['used']} used, {series['unused']} unused by rule, {series['rejected']} rejected",
    )
    row("patients", f"{patients['converted']} converted, {patients['rejected']} rejected")
    if flags.labels:
        row(
            "labels",
            f"{patients['without_label']} patients without a label, "
            f"{patients['labels_without_patient']} labels without a patient",
        )
    for fold, balance in manifest.label_balance.items():
        if fold == "unlabelled":
            row(fold, str(balance["none"]))
        else:
            told = ", ".join(f"{count} of label {label}" for label, count in balance.items())
            row(f"fold {fold}", told)
    if manifest.counts["reasons"]:
        reasons = ", ".join(f"{code} {n}" for code, n in manifest.counts["reasons"].items())
        row("reasons", f"{reasons}; see series.csv and rejects.csv")
    size = sum(shard.bytes for shard in manifest.shards)
    row("dataset", f"{len(manifest.shards)} shards, {size / 1e6:.1f} MB in {flags.output}")
    if flags.strict and (files["rejected"] or patients["rejected"]):
        return cli.EXIT_REJECTED
    return cli.EXIT_OK


def _report(flags: argparse.Namespace) -> None:
    """Writes the page about the dataset into it."""
    from beam_jobs.report.make import make_report

    report = make_report(flags.output, workers=os.cpu_count() or 1)
    row("report", f"{report.path} ({report.bytes / 1e6:.1f} MB)")


if __name__ == "__main__":
    cli.run(main, PROG)
