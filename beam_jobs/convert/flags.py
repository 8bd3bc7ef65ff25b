"""The conversion's command line, and what it requests as one value, checked before any pixel."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

from beam_jobs.common import cli
from beam_jobs.common.contract_json import (
    LEAST_WHOLE,
    MOST_WHOLE,
    ContractError,
    canonical_json,
    fingerprint,
)
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb.flags import add_spool_flags
from beam_jobs.common.named_file import read_named
from beam_jobs.convert.patient_plans import listing_of, require_known
from beam_jobs.convert.planning import Planner
from beam_jobs.convert.resume import StateStore
from beam_jobs.core.cohort.balance import too_few
from beam_jobs.core.cohort.covariates import read_covariates
from beam_jobs.core.cohort.ids import PATIENT_FROM_FLAG, IdPolicy, read_id_policy
from beam_jobs.core.cohort.labels import Labels, read_folds, read_groups, read_labels
from beam_jobs.core.cohort.rules import read_rules_file
from beam_jobs.core.cohort.task_choice import AUTO, CLASSES_BY_NUMBER, TASK_CHOICES, Wanted
from beam_jobs.core.manifest import FOLDS_MOST
from beam_jobs.core.preprocess import DEFAULT_MODALITIES, PreprocessSpec
from beam_jobs.core.record import DTYPES
from beam_jobs.runners.engines import SHARED_DISK_FLAG

_FOLDS = 5
_MOST_PROCESSES = 1024  # of about 0.3 GB each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is converted, how, and where to.

    Attributes:
      input: directory of DICOM or NIfTI files.
      files: those below it that are read, none where listing them is the workers' work.
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
        """The output's state under a job of its own: each one has another token."""
        planner = self.planner
        job = {
            "spec": self.spec.to_json(),
            "folds": planner.folds,
            "seed": planner.seed,
            "id_policy": planner.id_policy.name,
            "id_key": _key_check(planner.id_policy),
            "patients_per_shard": planner.patients_per_shard,
            **planner.identity,
        }
        # As it reads back from a file.
        return StateStore(output=self.output, job=json.loads(canonical_json(job)))

    def require_reachable(self) -> None:
        """Finds out before the job what would stop it: no bucket, no permission, nothing there.

        Raises:
          UsageError: the input holds no file.
          CommandError: a store refuses.
        """
        if files.is_remote(self.input) and not files.holds_files(self.input):
            holds = "finds no series" if files.is_dicomweb(self.input) else "holds no file"
            raise cli.UsageError(f"--input {files.told(self.input)} {holds}")
        if files.is_remote(self.output):
            files.names(self.output)


def _key_check(id_policy: IdPolicy) -> str:
    """Distinguishes one hmac key from another without revealing the key."""
    return "" if id_policy.key is None else id_policy.token(fingerprint("voxelbeam key check"))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The conversion's own options; Beam's are not among them."""
    add = parser.add_argument
    add(
        "--input",
        required=True,
        help="directory or archive (.zip, .tar, .tar.gz) of DICOM or NIfTI, local, gs://, s3:// or "
        "az://; or a search in a PACS: dicomweb+https://HOST/PATH?KEY=VALUE",
    )
    add("--output", required=True, help="directory of the dataset to write")
    add("--labels", help="CSV of patient ids and labels; without it no patient is labelled")
    add("--id_column", default="BraTS21ID", help="the labels' column of patient ids")
    add(
        "--label_column",
        **cli.LIST,
        default="MGMT_value",
        help="the labels' column of labels; several of 0 and 1 are findings of their own",
    )
    add(
        "--task",
        choices=TASK_CHOICES,
        default=AUTO,
        help="what labels are; auto: binary of two different ones, multilabel of several columns, "
        f"multiclass of texts and of up to {CLASSES_BY_NUMBER} different whole numbers, regression "
        "of other numbers",
    )
    add(
        "--classes",
        **cli.LIST,
        help="names of the classes in order, of two the positive one last (default: sorted)",
    )
    add("--label_unit", metavar="TEXT", default="", help="unit of a regression's values: ml")
    add("--covariates", metavar="CSV", help="CSV of what else is known of patients")
    add(
        "--covariate_columns",
        **cli.LIST,
        help="its columns to store: age,sex,site; site:category takes numbers as names, "
        "age:number refuses texts",
    )
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
        help="JSON file of rules that give modalities by header or name (docs/how-to/own-data.md)",
    )
    add("--patient_from", **PATIENT_FROM_FLAG)
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
    add(
        "--folds",
        type=int,
        help="cross-validation folds, fixed in the dataset "
        f"(default {_FOLDS}, or those of --folds_csv)",
    )
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument(
        "--groups",
        metavar="CSV",
        help="CSV of patients' groups (site, scanner, family): none stands in two folds",
    )
    rule.add_argument(
        "--folds_csv",
        metavar="CSV",
        help="CSV of patients and their `fold`: 0, 1, ..., or test for those of no fold, who are "
        "neither trained on nor validated on",
    )
    add("--group_column", default="group", help="the column of --groups; an empty cell: no group")
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
    add("--shared_disk", **SHARED_DISK_FLAG)
    add_spool_flags(parser)
    add("--overwrite", action="store_true", help="replace another dataset that is there already")
    add("--dry_run", action="store_true", help="print the plan and stop")
    add(
        "--break_lock",
        action="store_true",
        help="write although another job left its lock, or may still run: it is dead, or loses",
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
    planner = Planner(
        id_policy=read_id_policy(flags.id_policy, flags.id_key),
        labels=None,
        folds=flags.folds or _FOLDS,
        seed=flags.seed,
        patients_per_shard=flags.patients_per_shard,
        record_bytes=spec.schema.volume_bytes,
        patient_from=flags.patient_from or "",
    )
    if paths or files.is_dicomweb(source):
        require_known(
            spec.modalities,
            spec.series_rules,
            paths,
            root=source,
            patient_from=planner.patient_from,
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
    if flags.folds is not None and flags.folds < 2:
        raise cli.UsageError("--folds must be at least 2")
    for name, most in (("folds", FOLDS_MOST), ("processes", _MOST_PROCESSES)):
        if (getattr(flags, name) or 0) > most:
            raise cli.UsageError(f"--{name} must be at most {most}")
    if not LEAST_WHOLE <= flags.seed <= MOST_WHOLE:  # the manifest could not be read again
        raise cli.UsageError("--seed must be a number of at most 64 bits")
    for name in ("groups", "folds_csv"):
        if getattr(flags, name) is not None and flags.labels is None:
            raise cli.UsageError(f"--{name} needs --labels: folds are of labelled patients")
    if flags.folds_csv is not None and flags.folds is not None:
        raise cli.UsageError("--folds and --folds_csv exclude each other: the file has its folds")
    _require_labels(flags)
    for name in ("patients_per_shard", "processes"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise cli.UsageError(f"--{name} must be at least 1")
    modalities = cli.items(flags.modalities)
    try:
        return PreprocessSpec(
            modalities=modalities,
            shape=_numbers("--shape", flags.shape, int),
            fov_mm=_numbers("--fov_mm", flags.fov_mm, float),
            dtype=flags.dtype,
            require_modalities=cli.items(flags.require_modalities),
            series_rules=read_rules_file(flags.series_rules, (*modalities, *DEFAULT_MODALITIES)),
        )
    except ContractError as error:
        raise cli.UsageError(str(error)) from error


def _require_labels(flags: argparse.Namespace) -> None:
    said = {"task": flags.task != AUTO, "classes": flags.classes, "label_unit": flags.label_unit}
    for name, given in said.items():
        if given and flags.labels is None:
            raise cli.UsageError(f"--{name} needs --labels: it says what they are")
    if (flags.covariates is None) != (flags.covariate_columns is None):
        raise cli.UsageError(
            "--covariates and --covariate_columns need each other: a CSV, and the columns to store"
        )


def _directories(flags: argparse.Namespace) -> tuple[str, str]:
    """Input and output, neither inside the other."""
    for name in ("input", "output"):
        if not getattr(flags, name):
            raise cli.UsageError(f"--{name} is empty")
    there, here = source, output = tuple(map(files.trimmed, (flags.input, flags.output)))
    files.require_writable(output)
    if not files.is_remote(source) and not files.is_remote(output):
        if os.path.exists(output) and not os.path.isdir(output):
            raise cli.UsageError(f"--output {output} is not a directory")
        there, here = map(os.path.realpath, (source, output))
    if files.join(here, "").startswith(files.join(there, "")):
        raise cli.UsageError(f"--output {output} lies inside --input {source}")
    if files.join(there, "").startswith(files.join(here, "")):
        raise cli.UsageError(f"--input {source} lies inside --output {output}")
    return source, output


def _files_of(source: str) -> tuple[str, ...]:
    """The files to read, none where listing them is the workers' work."""
    if files.is_remote(source):
        return ()
    return tuple(entry.path for entry in listing_of(source, name=f"--input {source}").entries)


def with_labels(conversion: Conversion, flags: argparse.Namespace) -> Conversion:
    """The conversion with the labels, groups, folds and covariates that the flags name.

    Raises:
      UsageError: there is no such file, it does not hold what it should, or so many folds cannot
        be made of its labels.
      OSError: it cannot be read.
    """
    planner = conversion.planner
    id_columns = (flags.id_column, "patient_id")
    if flags.labels is not None:
        labels = read_labels(
            read_named(flags.labels, flag="--labels"),
            name=flags.labels,
            id_column=flags.id_column,
            label_column=flags.label_column,
            wanted=Wanted(
                task=flags.task, classes=tuple(flags.classes or ()), unit=flags.label_unit
            ),
        )
        planner = dataclasses.replace(planner, labels=labels)
    if flags.groups is not None:
        groups = read_groups(
            read_named(flags.groups, flag="--groups"),
            name=flags.groups,
            id_columns=id_columns,
            group_column=flags.group_column,
        )
        planner = dataclasses.replace(planner, groups=groups)
    if flags.folds_csv is not None:
        text = read_named(flags.folds_csv, flag="--folds_csv")
        given = read_folds(text, name=flags.folds_csv, id_columns=id_columns)
        folds = 1 + max(place for place in given.by_spelling.values() if isinstance(place, int))
        planner = dataclasses.replace(planner, given=given, folds=folds)
    if flags.covariates is not None:
        covariates = read_covariates(
            read_named(flags.covariates, flag="--covariates"),
            name=flags.covariates,
            id_columns=id_columns,
            columns=flags.covariate_columns,
            learnt=flags.labels is not None,
        )
        planner = dataclasses.replace(planner, covariates=covariates)
        columns = () if planner.labels is None else planner.labels.columns
        if told := [one for one in covariates.names if one in columns]:
            raise cli.UsageError(f"--covariate_columns: {told[0]} is what is to be predicted")
    if planner.labels is not None:
        _require_learnable(planner, planner.labels, flags.labels)
    return dataclasses.replace(conversion, planner=planner)


def _require_learnable(planner: Planner, labels: Labels, name: str) -> None:
    """Refuses, before headers are read, labels that so many folds cannot be made of.

    Raises:
      UsageError: says which, and what to do.
    """
    if why := too_few(labels.target, labels.by_spelling.values(), planner.folds):
        raise cli.UsageError(f"labels {name}: {why}")
