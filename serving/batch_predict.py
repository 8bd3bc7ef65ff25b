"""Predicts every patient of a dataset or of a DICOM directory, as a Beam job.

    records or DICOM -> (patient_id, Example) -> one SavedModel a process -> rows -> submission.csv

A DICOM directory is prepared by the conversion's own transform and the spec in the model's
contract. Volumes are never shuffled, only answers are. Exactly one row a patient: one that cannot
be predicted gets the training prevalence, and a line in `<output>.failures.csv`. So does a shard
that is not the one its manifest lists; its sound records are answered.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beam_jobs.core import cli
from beam_jobs.core.ids import IdPolicy, read_id_policy
from beam_jobs.core.record import ContractError
from beam_jobs.core.storage import is_remote
from beam_jobs.options import make_pipeline, pipeline_options, quiet_beam
from serving.bundle import Contract, load_contract
from serving.submission import (
    Submission,
    compose,
    failures_csv,
    input_ids,
    read_ids,
    submission_csv,
)

if TYPE_CHECKING:
    from serving.sources import Source

PROG = "python -m serving.batch_predict"


def main(argv: Sequence[str]) -> int:
    """Flags → contract and source checked → one pipeline → the two files and a summary."""
    args, beam_args = _parse(argv)
    _check(args)
    id_policy = read_id_policy(args.id_policy, args.id_key)
    contract = load_contract(args.model)
    # Beam takes seconds to import: a wrong path or a wrong model is told before.
    quiet_beam()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from beam_jobs.flink import job_server
    from beam_jobs.progress import watch
    from beam_jobs.ticks import Ticks
    from serving.sources import find_source
    from serving.transforms import KeepAsked, Predict, WriteRows, read_rows

    options = pipeline_options(beam_args)
    spelling, asked = _asked(args, id_policy)
    source = find_source(
        args.input, contract, model=args.model, asked=asked, id_policy=id_policy.name
    )

    with _temporary_directory(args.output) as directory, job_server(options):
        pipeline = make_pipeline(options, processes=1)
        cases = pipeline | "Cases" >> _cases(source, contract, id_policy)
        predictions = (
            cases.examples
            | "Keep asked" >> KeepAsked(asked)
            | "Predict" >> Predict(args.model, batch_size=args.batch_size)
        )
        (predictions, cases.rejects) | "Write rows" >> WriteRows(directory)
        private = id_policy.key is not None
        watch(pipeline.run, Ticks(), files=None, quiet=True, private=private)
        predicted, rejects = read_rows(directory)

    submission = compose(
        predictions=predicted,
        rejects=rejects,
        prevalence=contract.prevalence,
        expected=source.expected,
        asked=asked,
        spelling=spelling,
    )
    return _finish(submission, args)


def _asked(
    args: argparse.Namespace, id_policy: IdPolicy
) -> tuple[list[str], list[str]] | tuple[None, None]:
    """The ids of `--ids`, as the file spells them and as the input has them; None without it."""
    from beam_jobs import filesystems

    if args.ids is None:
        return None, None
    try:
        text = filesystems.read_text(args.ids)
    except UnicodeDecodeError as error:
        raise cli.UsageError(f"--ids: {args.ids} is not UTF-8 text") from error
    spelling = read_ids(text, args.id_column, source=args.ids)
    return spelling, input_ids(spelling, id_policy, source=args.ids)


def _cases(source: Source, contract: Contract, id_policy: IdPolicy) -> Any:
    """The transform from a pipeline's root to `.examples` and `.rejects`."""
    if source.dicom is None:
        from serving.transforms import ReadShards

        return ReadShards(source.shards, contract.schema, source.digests)
    from beam_jobs.core.preprocess import PreprocessSpec
    from beam_jobs.transforms import CasesFromDicom

    return CasesFromDicom(
        root=source.dicom,
        spec=PreprocessSpec.from_json(contract.spec),
        schema=contract.schema,
        id_policy=id_policy,
    )


@contextlib.contextmanager
def _temporary_directory(output: str) -> Iterator[str]:
    """A directory beside the output for the pipeline's rows, gone at the end."""
    from apache_beam.io.filesystems import FileSystems

    directory = f"{output}.rows-{uuid.uuid4().hex[:8]}"
    try:
        yield directory
    finally:
        if FileSystems.exists(directory):
            FileSystems.delete([directory])


def _finish(submission: Submission, args: argparse.Namespace) -> int:
    """Writes both files, prints the summary and gives the exit code."""
    from beam_jobs import filesystems

    failures = f"{os.path.splitext(args.output)[0]}.failures.csv"
    reasons = Counter(failure.reason for failure in submission.failures)
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    filesystems.write_text(failures, failures_csv(submission))
    if not submission.predicted:
        raise ContractError(
            f"no patient could be predicted ({told or 'the input holds none'}); see {failures}; "
            f"{args.output} was not written"
        )
    table = submission_csv(submission, id_column=args.id_column, value_column=args.value_column)
    filesystems.write_text(args.output, table)
    missing = len(submission.rows) - submission.predicted
    print(f"{len(submission.rows)} patients: {submission.predicted} predicted, {missing} not")
    if submission.failures:
        print(f"{failures}: {told}")
    print(f"{args.output}: sha256 {hashlib.sha256(table.encode()).hexdigest()}")
    return cli.EXIT_REJECTED if args.strict and submission.failures else cli.EXIT_OK


def _check(args: argparse.Namespace) -> None:
    """Tells at once of a local name that does not exist; remote ones are met on use."""
    for flag in ("model", "input", "ids", "id_key"):
        path = getattr(args, flag)
        # A pattern of shards is looked up with Beam.
        skipped = path is None or is_remote(path) or (flag == "input" and set(path) & set("*?["))
        if not skipped and not Path(path).exists():
            raise cli.UsageError(f"--{flag}: {path} does not exist")
    if not is_remote(args.output) and Path(args.output).is_dir():
        raise cli.UsageError(f"--output: {args.output} is a directory")
    if args.batch_size < 1:
        raise cli.UsageError(f"--batch_size must be at least 1: {args.batch_size}")


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = cli.Parser(
        prog=PROG,
        description=(
            "Predicts every patient of a dataset, of shards or of a DICOM directory.\n"
            "Options that are not listed go to Beam (--runner, --direct_num_workers, ...)."
        ),
        examples=(
            f"  {PROG} --model model --input dataset --output submission.csv\n"
            f"  {PROG} --model model --input 'dataset/unlabelled-*.tfrecord' "
            "--output submission.csv\n"
            f"  {PROG} --model model --input test/ --ids sample_submission.csv "
            "--output submission.csv"
        ),
    )
    add = parser.add_argument
    add("--model", required=True, help="a directory that serving.export wrote")
    add(
        "--input",
        required=True,
        help="a dataset (with manifest.json), a pattern of *.tfrecord shards, or DICOM",
    )
    add("--output", required=True, metavar="CSV", help="the table to write, sorted by id")
    add("--ids", metavar="CSV", help="answer these ids, in this order and spelling, and no others")
    add("--id_column", default="BraTS21ID", help="column of the ids")
    add("--value_column", default="MGMT_value", help="column of the probabilities")
    add("--batch_size", type=int, default=8, help="most patients a call of the model gets")
    add(
        "--id_policy",
        choices=("keep", "hmac"),
        default="keep",
        help="hmac hashes a DICOM input's ids, and --ids to find them among hashed ones (of a "
        "dataset too); the submission keeps the spelling of --ids, the failures have hashes",
    )
    add("--id_key", metavar="FILE", help="key of --id_policy hmac, that of the conversion")
    add("--strict", action="store_true", help="exit with 8 if a patient could not be predicted")
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    cli.run(main, PROG)
