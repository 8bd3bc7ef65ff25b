"""Predicts every patient of a dataset or of DICOM, as a Beam job.

    shards, or DICOM by parts -> cases -> one SavedModel a process -> rows by shard -> one table

    OUTPUT.csv|.jsonl|.parquet   exactly one row a patient
    OUTPUT.failures.csv          who could not be predicted (their answer is the training
                                 prevalence), and shards that are not those of their manifest
    OUTPUT.rejects.csv           files, series and records that were refused, if any were
    OUTPUT.skew.json             how far these patients are from those of training, where the model
                                 knows the latter
    DICOM_SR                     a Structured Report a predicted patient, where --dicom_sr asks

DICOM, a directory or an archive, is prepared by the conversion's own transforms and the spec in
the model's contract. Neither volumes nor answers are shuffled. The table is written last: where it
stands, the others do; reports alone come after it, so that no PACS that refuses them costs answers.
"""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m serving.batch_predict")

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from beam_jobs.common import cli, terminal
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb.flags import Spool, add_spool_flags
from beam_jobs.common.imports import lasting, quiet_tensorflow
from beam_jobs.common.named_file import read_named
from beam_jobs.common.printable import counted
from beam_jobs.core.cohort.ids import PATIENT_FROM_FLAG, IdPolicy, read_id_policy
from beam_jobs.core.cohort.layout import nobodys_hint, require_directories
from beam_jobs.core.drift import NONE, Statistics
from beam_jobs.core.reasons import Reason
from beam_jobs.runners.engines import SHARED_DISK_FLAG, require_reachable, workers_here
from beam_jobs.runners.options import pipeline_options, quiet_beam, use_store_options
from beam_jobs.runners.workers_package import require_package
from serving.model.answers import Prediction
from serving.model.cohort_statistics import cuts_of, of_labels
from serving.model.contract import Contract, load_statistics
from serving.model.integrity import Checked, check_model
from serving.predict import outputs, reports, skew
from serving.predict.covariates import of_table, require_table, unknown_categories
from serving.predict.sources import Source, find_source, is_pattern
from serving.predict.submission import Submission, compose, input_ids, read_ids

if TYPE_CHECKING:
    from serving.predict.job import Answers

PROG = "python -m serving.batch_predict"


def main(argv: Sequence[str]) -> int:
    """Flags → contract and source checked → one pipeline → the table and what lies beside it."""
    args, beam_args = _parse(argv)
    use_store_options(beam_args)  # the model may lie in a store
    require_directories(args.input, args.patient_from or "")
    spool = Spool(args.input, directory=args.spool, refetch=args.refetch)
    paths = _check(args)
    id_policy = read_id_policy(args.id_policy, args.id_key)
    checked = check_model(args.model, sha256=args.require_sha256)
    contract = checked.contract
    training = load_statistics(args.model)
    table = outputs.requested_columns(
        contract.target,
        args.columns,
        id_column=args.id_column,
        value_column=args.value_column,
    )
    spelling, requested = _requested(args, id_policy)
    source = find_source(
        args.input, contract, model=args.model, requested=requested, id_policy=id_policy.name
    )
    if args.patient_from and source.dicom is None:
        raise cli.UsageError("--patient_from is for DICOM; records have their conversion's ids")
    if args.dicom_sr is not None and source.dicom is None:
        raise cli.UsageError("--dicom_sr is for DICOM; records do not say which images they are of")
    source, strange = _with_covariates(source, args, contract, id_policy)
    quiet_beam()
    quiet_tensorflow()
    # Beam takes seconds to import: all that can be wrong was reported before.
    with lasting("apache_beam"):
        from serving.predict.job import run_job

    options = pipeline_options(beam_args)
    reached = {f"--{name}": getattr(args, name) for name in ("model", "input", "output")}
    require_reachable(options, reached, shared_disk=args.shared_disk, spool=spool.flags)
    require_package(options, tensorflow=True)
    spool.begin()
    answers = run_job(
        source,
        checked,
        model=args.model,
        output=args.output,
        options=options,
        id_policy=id_policy,
        batch_size=_batch_size(args, contract),
        patient_from=args.patient_from or "",
        requested=requested,
        counted=training is not None,
        reported=args.dicom_sr is not None,
    )
    submission = compose(
        predictions=[(one.patient_id, one.answer(contract.target)) for one in answers.predictions],
        rejects=answers.rejects,
        prior=contract.prior,
        expected=source.expected,
        requested=requested,
        spelling=spelling,
        unknown={
            one.patient_id: [name for name in one.missing if name in contract.covariates]
            for one in answers.predictions
        },
    )
    outputs.write_beside(args.output, submission, answers.rejects)
    statistics = answers.statistics + _labels(training, answers.predictions, source, contract)
    skewed = _write_skew(args.output, training, statistics, contract)
    nobodys = sum(row["reason"] == Reason.NO_PATIENT_ID for row in answers.rejects)
    code = _finish(submission, answers.predictions, args, paths, skewed, nobodys, table)
    if args.dicom_sr is not None:
        _report(args.dicom_sr, submission, answers, checked)
    if workers_here(options):
        spool.tell()
    names = (one.patient_id for one in answers.predictions)
    for line in strange + source.taken.unlisted(names, source=str(args.covariates)):
        terminal.row("mind", line)
    terminal.row("model", f"{args.model}: sha256 {checked.sha256}")
    if checked.note:
        terminal.row("mind", checked.note)
    return code


def _report(place: str, submission: Submission, answers: Answers, checked: Checked) -> None:
    """Writes a report a predicted patient, and says how many."""
    told = reports.write_reports(place, submission, answers.predictions, answers.images, checked)
    for number, line in enumerate(told):
        terminal.row("" if number else "reports", line)


def _with_covariates(
    source: Source, args: argparse.Namespace, contract: Contract, id_policy: IdPolicy
) -> tuple[Source, list[str]]:
    """The source with what `--covariates` says of its patients, and lines on what is not known.

    Raises:
      UsageError: the model takes covariates that are not given, or none that are.
    """
    if source.dicom is None:
        if args.covariates is not None:
            raise cli.UsageError("--covariates is for DICOM; records hold their conversion's")
        return source, unknown_categories(contract, source.schema)
    if args.covariates is None:
        require_table(contract, model=args.model)
        return source, []
    if not contract.covariates:
        raise cli.UsageError(f"--covariates: model {args.model} takes none")
    taken, strange = of_table(
        contract,
        read_named(args.covariates, flag="--covariates"),
        source=args.covariates,
        id_column=args.id_column,
        id_policy=id_policy,
    )
    return dataclasses.replace(source, taken=taken), strange


def _labels(
    training: Statistics | None,
    predicted: Sequence[Prediction],
    source: Source,
    contract: Contract,
) -> Statistics:
    """The labels of those predicted, where they are known, counted as those of training were."""
    if training is None:
        return NONE
    labels = [source.labels[one.patient_id] for one in predicted if one.patient_id in source.labels]
    return of_labels(contract.target, labels, cuts=cuts_of(contract.target, training))


def _batch_size(args: argparse.Namespace, contract: Contract) -> int:
    """Most patients a batch: every volume of a contract has the same size."""
    fitting: int = (args.batch_mb << 20) // contract.schema.volume_bytes
    size: int = min(args.batch_size, fitting)
    return max(1, size)


def _requested(
    args: argparse.Namespace, id_policy: IdPolicy
) -> tuple[list[str], list[str]] | tuple[None, None]:
    """The ids of `--ids`, as the file spells them and as the input has them; None without it."""
    if args.ids is None:
        return None, None
    spelling = read_ids(read_named(args.ids, flag="--ids"), args.id_column, source=args.ids)
    return spelling, input_ids(spelling, id_policy, source=args.ids)


def _write_skew(
    output: str, training: Statistics | None, found: Statistics, contract: Contract
) -> list[str]:
    """Writes skew.json, or removes an older run's, and gives the lines that report it."""
    file = outputs.beside(output, "skew.json")
    if training is None or not found.patients:
        files.delete([file])
        return ["not measured: the model has no training statistics (serving.export --data)"]
    text, lines = skew.report(training, found, contract.modalities, contract.target)
    files.write_text(file, text)
    return [f"{lines[0]}; see {file}", *lines[1:]]


def _finish(
    submission: Submission,
    predicted: Sequence[Prediction],
    args: argparse.Namespace,
    paths: Sequence[str],
    skewed: Sequence[str],
    nobodys: int,
    table: outputs.Columns,
) -> int:
    """Writes the table, prints the summary and gives the exit code.

    Series of `nobodys` may be of any number of people, whom no row stands for.
    """
    hint = nobodys_hint(nobodys, args.patient_from or "")
    failures, rejects = (
        outputs.beside(args.output, name) for name in ("failures.csv", "rejects.csv")
    )
    reasons = Counter(failure.reason for failure in submission.failures)
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    if not submission.predicted:
        raise ContractError(
            f"no patient could be predicted ({counts or hint or 'the input holds none'}); see "
            f"{rejects if nobodys and not counts else failures}; "
            f"{args.output} was not written"
        )
    rows = outputs.table(submission, {one.patient_id: one for one in predicted}, table)
    sums = outputs.write(rows, paths)
    missing = len(submission.rows) - submission.predicted
    terminal.row(
        "patients", f"{len(submission.rows)}: {submission.predicted} predicted, {missing} not"
    )
    if submission.failures:
        terminal.row("failures", f"{counts}; see {failures}")
    if submission.lacking:
        told = counted(len(submission.lacking), "patient")
        terminal.row("not known", f"a covariate of {told}, predicted without; see {failures}")
    if hint:
        terminal.row("mind", f"{hint}; see {rejects}")
    for place, line in enumerate(skewed):
        terminal.row("" if place else "skew", line)
    formulas = outputs.formulas(submission, table)
    if formulas and paths[0].endswith(".csv"):  # whoever asked must find the ids as they gave them
        terminal.row("mind", f"{formulas} in {paths[0]} are formulas to a spreadsheet")
    for path, digest in zip(paths, sums, strict=True):
        terminal.row("table", f"{path}: sha256 {digest}")
    lost = submission.failures or (nobodys and args.ids is None)  # else all requested are there
    return cli.EXIT_REJECTED if args.strict and lost else cli.EXIT_OK


def _check(args: argparse.Namespace) -> list[str]:
    """Refuses at once a path that does not exist or cannot be written, and a wrong number.

    Returns:
      The table's files.
    """
    for flag in ("model", "input", "ids", "id_key", "covariates"):
        path = getattr(args, flag)
        skipped = path is None or (
            flag == "input" and (is_pattern(path) or files.is_dicomweb(path))
        )
        if not skipped and not files.exists(path):
            raise cli.UsageError(f"--{flag}: {path} does not exist")
    cli.require_utf8(args.model)
    files.require_writable(args.output)
    if files.is_dir(args.output):
        raise cli.UsageError(f"--output: {args.output} is a directory")
    if args.batch_size < 1:
        raise cli.UsageError(f"--batch_size must be at least 1: {args.batch_size}")
    if args.batch_mb < 1:
        raise cli.UsageError(f"--batch_mb must be at least 1: {args.batch_mb}")
    paths = outputs.paths_of(args.output, args.output_shards)
    outputs.require_no_strays(args.output, paths)
    outputs.require_own_beside(args.output)
    if args.dicom_sr is not None:
        reports.require_place(args.dicom_sr, source=args.input, id_policy=args.id_policy)
    return paths


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = cli.Parser(
        prog=PROG,
        description=(
            "Predicts every patient of a dataset, shards, DICOM or NIfTI. Paths may be local,\n"
            "gs://, s3:// or az://, inputs https:// too.\n"
            "Options that are not listed go to Beam (--runner, --direct_num_workers, ...)."
        ),
        examples=(
            f"  {PROG} --model model --input dataset --output submission.csv\n"
            f"  {PROG} --model model --input 'dataset/unlabelled-*.tfrecord' "
            "--output submission.csv\n"
            f"  {PROG} --model model --input test/ --ids sample_submission.csv "
            "--output submission.csv\n"
            f"  {PROG} --model model --input dataset --output predictions.jsonl --output_shards 4 "
            "--columns probability,logit,spread,flags"
        ),
        exit_codes={
            cli.EXIT_REJECTED: "done, but a patient could not be predicted, or without --ids a "
            "series is nobody's, and --strict was given"
        },
    )
    add = parser.add_argument
    add("--model", required=True, help="a directory that serving.export wrote")
    add(
        "--require_sha256",
        default="",
        metavar="HASH",
        help="refuse every model but the one of which serving.export printed this; of another "
        "one nothing but its bytes is read",
    )
    add(
        "--input",
        required=True,
        help="a dataset (with manifest.json), a pattern of *.tfrecord shards, DICOM or NIfTI: a "
        "directory, an archive (.zip, .tar, .tar.gz) or a search in a PACS (dicomweb+https://)",
    )
    add(
        "--output",
        required=True,
        metavar="TABLE",
        help="the table to write, sorted by id: .csv, .jsonl or .parquet",
    )
    add("--output_shards", type=int, metavar="N", help="deal the rows of a .jsonl to N files")
    add(
        "--columns",
        help="what a row holds behind the id, of probability, logit (of several classes or labels "
        "a column each), class, value, low, high, spread, flags: spread is the standard deviation "
        "of the members' answers, flags say what was wrong or missing (default: probability; of "
        "classes class,probability; of values value,low,high)",
    )
    add("--ids", metavar="CSV", help="answer these ids, in this order and spelling, and no others")
    add(
        "--covariates",
        metavar="CSV",
        help="what the model takes of the patients of DICOM beside their images, a column each "
        "(records hold their own); who lacks one is predicted without, and listed",
    )
    add("--id_column", default="BraTS21ID", help="column of the ids, of --ids and --covariates")
    add(
        "--value_column",
        help=f"column of a binary model's probabilities (default: {outputs.VALUE_COLUMN})",
    )
    add("--batch_size", type=int, default=8, help="most patients a call of the model gets")
    add("--batch_mb", type=int, default=64, help="most MiB of volumes a call of the model gets")
    add(
        "--id_policy",
        choices=("keep", "hmac"),
        default="keep",
        help="hmac hashes a DICOM input's ids, and --ids to find them among hashed ones (of a "
        "dataset too); the submission keeps the spelling of --ids, the failures have hashes",
    )
    add("--id_key", metavar="FILE", help="key of --id_policy hmac, that of the conversion")
    add("--patient_from", **PATIENT_FROM_FLAG)
    add(
        "--dicom_sr",
        metavar="DIR",
        help="also write a DICOM Structured Report a predicted patient of DICOM, to a directory, a "
        "store or a PACS (dicomweb+https://HOST/PATH)",
    )
    add("--shared_disk", **SHARED_DISK_FLAG)
    add_spool_flags(parser)
    add("--strict", action="store_true", help="exit with 8 if anybody was not predicted")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    cli.run(main, PROG)
