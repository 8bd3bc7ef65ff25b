"""DICOM series to sharded 3D TFRecords: `python -m beam_jobs.dicom_to_tfrecord --help`."""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m beam_jobs.dicom_to_tfrecord")

import os
from collections.abc import Sequence

from beam_jobs.common import cli, terminal
from beam_jobs.common.files import interface as files
from beam_jobs.common.files.dicomweb.flags import Spool
from beam_jobs.common.imports import lasting
from beam_jobs.convert.flags import add_flags, conversion_of, with_labels
from beam_jobs.convert.summary import print_known, print_plan, print_sums
from beam_jobs.report.make import make_report
from beam_jobs.runners.engines import require_reachable, workers_here
from beam_jobs.runners.options import pipeline_options, use_store_options
from beam_jobs.runners.workers_package import require_package

PROG = "python -m beam_jobs.dicom_to_tfrecord"
EXAMPLES = """\
  # The Kaggle layout: <root>/<patient>/<modality>/*.dcm and a CSV of labels.
  python -m beam_jobs.dicom_to_tfrecord --input cohort/train --output dataset \\
      --labels cohort/train_labels.csv

  # A heap of DICOM without labels; patients and series are separated by their headers.
  python -m beam_jobs.dicom_to_tfrecord --input heap --output dataset --modalities T1wCE

  # Grades as classes, and what else is known of the patients.
  python -m beam_jobs.dicom_to_tfrecord --input cohort/train --output dataset \\
      --labels grades.csv --label_column grade --covariates clinic.csv --covariate_columns age,sex

  # What a PACS has of a study's patients, by DICOMweb (docs/how-to/dicomweb.md).
  python -m beam_jobs.dicom_to_tfrecord --output dataset --labels train_labels.csv \\
      --input 'dicomweb+https://pacs.example/dicom-web?ModalitiesInStudy=MR&PatientID=@ids.txt'

  # Two processes; any option of Beam's (--runner, --project, ...) is passed on to it.
  python -m beam_jobs.dicom_to_tfrecord --input cohort/train --output dataset --processes 2
"""


def main(argv: Sequence[str]) -> int:
    """Flags to a conversion to one pipeline."""
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
    add_flags(parser)
    flags, beam_arguments = parser.parse_known_args(argv)
    use_store_options(beam_arguments)
    conversion = conversion_of(flags)
    spool = Spool(conversion.input, directory=flags.spool, refetch=flags.refetch)
    options = pipeline_options(beam_arguments)
    paths = {"--input": conversion.input, "--output": conversion.output}
    require_reachable(options, paths, shared_disk=flags.shared_disk, spool=spool.flags)
    require_package(options, tensorflow=False)
    conversion.require_reachable()
    conversion = with_labels(conversion, flags)
    print_known(conversion.planner, listed=flags.dry_run)
    print_plan(conversion, listed=flags.dry_run)
    if flags.dry_run:
        return cli.EXIT_OK
    with lasting("beam_jobs.convert.job"):  # Beam takes seconds: wrong flags end before it
        from beam_jobs.convert.job import converted

    spool.begin()
    with converted(conversion, options):
        if workers_here(options):
            spool.tell()
        accepted = print_sums(conversion)
        # A cluster's dataset would have to come to this machine.
        here = workers_here(options) or not files.is_remote(conversion.output)
        if here and not flags.no_report:
            report = make_report(conversion.output, workers=os.cpu_count() or 1)
            terminal.row("report", f"{report.path} ({report.bytes / 1e6:.1f} MB)")
    return cli.EXIT_REJECTED if flags.strict and not accepted else cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main, PROG)
