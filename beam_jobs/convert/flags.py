"""The conversion's command line, and what it requests as one value, checked before any pixel."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from beam_jobs.common import cli
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.named_file import read_named
from beam_jobs.convert.patient_plans import entries_of
from beam_jobs.convert.planning import Planner
from beam_jobs.convert.resume import StateStore, job_identity, key_check
from beam_jobs.core.cohort.ids import read_id_policy
from beam_jobs.core.cohort.labels import read_labels
from beam_jobs.core.cohort.layout import find_owners
from beam_jobs.core.cohort.rules import known_modalities, read_rules_file
from beam_jobs.core.preprocess import DEFAULT_MODALITIES, PreprocessSpec
from beam_jobs.core.record import DTYPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is converted, how, and where to.

    Attributes:
      input: directory of DICOM files.
      files: those below it, none where listing them is the workers' work.
      output: directory of the dataset.
      spec: the recipe.
      planner: labels, ids, folds and shards.
      npz: whether npz files are written beside the shards.
      processes: local worker processes, None for a number that fits the input.
      overwrite: replace another dataset that lies in `output`.
      break_lock: write although another job's lock lies in `output`.
    """

    input: str
    files: tuple[str, ...]
    output: str
    spec: PreprocessSpec
    planner: Planner
    npz: bool = False
    processes: int | None = None
    overwrite: bool = False
    break_lock: bool = False

    @property
    def state(self) -> StateStore:
        """The output's state under this job."""
        planner = self.planner
        job = job_identity(
            spec=self.spec.to_json(),
            folds=planner.folds,
            seed=planner.seed,
            id_policy=planner.id_policy.name,
            id_key=key_check(planner.id_policy),
            patients_per_shard=planner.patients_per_shard,
        )
        return StateStore(output=self.output, job=job)

    def require_reachable(self, *, here: bool) -> None:
        """Finds out before the job what would stop it: no bucket, no permission, nothing there.

        Args:
          here: whether the workers share this machine's disk.

        Raises:
          UsageError: the workers cannot reach a local path, or the input holds no file.
          CommandError: a store refuses.
        """
        for name, path in (("input", self.input), ("output", self.output)):
            if not here and not files.is_remote(path):
                raise cli.UsageError(
                    f"--{name} {path} is on this machine, where Dataflow's workers cannot reach "
                    "it: gs:// is needed"
                )
        if files.is_remote(self.input) and not files.holds_files(self.input):
            raise cli.UsageError(f"--input {self.input} holds no file")
        if files.is_remote(self.output):
            files.names(self.output)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The conversion's own options; Beam's are not among them."""
    add = parser.add_argument
    add(
        "--input",
        required=True,
        help="directory or archive (.zip, .tar, .tar.gz) of DICOM files, local, gs://, s3:// or az://",
    )
    add("--output", required=True, help="directory of the dataset to write")
    add("--labels", help="CSV of patient ids and labels 0 or 1; without it no patient is labelled")
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
    add(
        "--series_rules",
        help="JSON file of rules that give modalities by header (docs/how-to/own-data.md)",
    )
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
        help="leave out report.html, the dataset as a page (a cluster writes none to a store)",
    )


def conversion_of(flags: argparse.Namespace) -> Conversion:
    """Flags as a checked conversion, its labels not yet read; nothing of a store is looked at.

    Raises:
      UsageError: a flag's value makes no sense, or a file that it names cannot be used.
    """
    spec = _spec(flags)
    source, output = _directories(flags)
    paths = _files_of(source)
    _check_modalities(spec, source, paths)
    planner = Planner(
        id_policy=read_id_policy(flags.id_policy, flags.id_key),
        labels=None,
        folds=flags.folds,
        seed=flags.seed,
        patients_per_shard=flags.patients_per_shard,
        record_bytes=spec.schema.volume_bytes,
    )
    return Conversion(
        input=source,
        files=paths,
        output=output,
        spec=spec,
        planner=planner,
        npz=flags.format == "npz",
        processes=flags.processes,
        overwrite=flags.overwrite,
        break_lock=flags.break_lock,
    )


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


def _directories(flags: argparse.Namespace) -> tuple[str, str]:
    """Input and output, the output not inside the input."""
    for name in ("input", "output"):
        if not getattr(flags, name):
            raise cli.UsageError(f"--{name} is empty")
    source, output = map(files.trimmed, (flags.input, flags.output))
    files.require_writable(output)
    if files.is_remote(source) or files.is_remote(output):
        within = f"{output}/".startswith(f"{source}/")
    else:
        if os.path.exists(output) and not os.path.isdir(output):
            raise cli.UsageError(f"--output {output} is not a directory")
        within = f"{os.path.realpath(output)}/".startswith(f"{os.path.realpath(source)}/")
    if within:
        raise cli.UsageError(f"--output {output} lies inside --input {source}")
    return source, output


def _files_of(source: str) -> tuple[str, ...]:
    """The files to read, none where listing them is the workers' work."""
    if files.is_remote(source):
        return ()
    return tuple(entry.path for entry in entries_of(source, name=f"--input {source}"))


def _check_modalities(spec: PreprocessSpec, source: str, paths: Sequence[str]) -> None:
    """Refuses a modality that neither a directory nor a rule could ever give."""
    if not paths:
        return
    owners = find_owners(paths, spec.modalities).values()
    known = {owner.modality for owner in owners} | known_modalities(spec.series_rules)
    unknown = [name for name in spec.modalities if name not in known]
    if unknown:
        raise cli.UsageError(
            f"unknown modality {unknown[0]}: no directory of {source} has that name, and no "
            f"rule gives it (known: {', '.join(sorted(known - {''}))})"
        )


def with_labels(conversion: Conversion, flags: argparse.Namespace) -> Conversion:
    """The conversion with the labels that the flags name.

    Raises:
      UsageError: there is no such file, or it holds no labels.
      OSError: it cannot be read.
    """
    if flags.labels is None:
        return conversion
    labels = read_labels(
        read_named(flags.labels, flag="--labels"),
        name=flags.labels,
        id_column=flags.id_column,
        label_column=flags.label_column,
    )
    planner = dataclasses.replace(conversion.planner, labels=labels)
    return dataclasses.replace(conversion, planner=planner)
