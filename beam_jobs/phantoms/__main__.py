"""A synthetic MR cohort in the reference layout: `python -m beam_jobs.phantoms --help`."""

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect

    expect("python -m beam_jobs.phantoms")

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from beam_jobs.common import cli, terminal
from beam_jobs.phantoms.anatomy import TISSUES
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.labels import COLUMNS, TASKS
from beam_jobs.phantoms.plan import PhantomConfig

PROG = "python -m beam_jobs.phantoms"


def _pair(text: str) -> tuple[int, int]:
    low, separator, high = text.partition(",")
    try:
        return int(low), int(high) if separator else int(low)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be 'min,max' in whole numbers, found {text!r}"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog=PROG,
        description="Write a synthetic brain MR cohort: DIR/train/<id>/<modality>/Image-<n>.dcm,\n"
        "train_labels.csv, test/, sample_submission.csv, and the truth about it in DIR/truth/.\n"
        "Label 1: a lesion with bright rim and dark core. Label 0: a homogeneous one.\n"
        "--difficulty mixes the two, so that no reader can tell all of them apart.\n"
        "--task writes other labels: a lesion of three kinds (solid, ring, halo), two findings\n"
        "(necrosis, edema), or the lesion's diameter in mm.",
        examples="  # 64 labelled and 16 test patients (about 300 MB)\n"
        f"  {PROG} --output /tmp/cohort --patients 64 --seed 7\n\n"
        "  # as hard as real cohorts often are: some signal, and 5 % of the labels wrong\n"
        f"  {PROG} --output /tmp/hard --patients 100 --difficulty 0.75 --label_noise 0.05\n\n"
        "  # two findings a patient; age and sex, and no image, tell them (covariates.csv)\n"
        f"  {PROG} --output /tmp/known --patients 60 --task multilabel --covariates\n\n"
        "  # few but large, for benchmarks (360 MB a patient)\n"
        f"  {PROG} --output /tmp/big --patients 2 --test_patients 0 \\\n"
        "      --matrix 512,512 --slices 170,170",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="absent or empty directory, local, gs://, s3:// or az://",
    )
    parser.add_argument(
        "--patients", required=True, type=int, metavar="N", help="labelled patients"
    )
    parser.add_argument(
        "--test_patients", type=int, metavar="M", help="unlabelled patients (default N/4)"
    )
    parser.add_argument(
        "--task", choices=TASKS, default=PhantomConfig.task, help="what a label says"
    )
    parser.add_argument(
        "--covariates",
        action="store_true",
        help="age, sex and site in covariates.csv: age tells the label (of findings: sex the "
        "second), lesions have nothing to do with it; not with --difficulty",
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument(
        "--matrix",
        type=_pair,
        default=",".join(map(str, PhantomConfig.matrix)),
        metavar="MIN,MAX",
        help="rows and columns of a slice",
    )
    parser.add_argument(
        "--slices",
        type=_pair,
        default=",".join(map(str, PhantomConfig.slices)),
        metavar="MIN,MAX",
        help="slices of a series",
    )
    parser.add_argument(
        "--modalities",
        default=",".join(TISSUES),
        metavar="A,B,…",
        help="series of a patient",
    )
    parser.add_argument(
        "--difficulty",
        type=float,
        default=PhantomConfig.difficulty,
        metavar="D",
        help="0..1, how alike lesions of different labels look; 1: a network has nothing to learn",
    )
    parser.add_argument(
        "--label_noise",
        type=float,
        default=PhantomConfig.label_noise,
        metavar="P",
        help="0..0.5, share of wrong labels in train_labels.csv; truth/ has the true ones",
    )
    parser.add_argument(
        "--no_signal",
        action="store_true",
        help="lesions have nothing to do with the labels: whatever is learnt is a leak; not with "
        "--difficulty",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    flags = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        config = PhantomConfig(
            patients=flags.patients,
            test_patients=flags.test_patients,
            seed=flags.seed,
            matrix=flags.matrix,
            slices=flags.slices,
            modalities=tuple(flags.modalities.split(",")),
            difficulty=flags.difficulty,
            label_noise=flags.label_noise,
            no_signal=flags.no_signal,
            task=flags.task,
            covariates=flags.covariates,
        )
        truth = write_cohort(config, flags.output, workers=flags.workers)
    except (ValueError, FileExistsError) as error:
        raise cli.UsageError(str(error)) from error
    except BrokenProcessPool as error:
        raise cli.CommandError("a worker process died (killed, or out of memory)") from error
    series = [spec for patient in truth.patients for spec in patient.series]
    written = [spec for spec in series if not spec.missing]
    terminal.row("patients", f"{config.patients} to train on + {config.test_count} to predict")
    terminal.row(
        "series",
        f"{len(written)} ({sum(spec.blank for spec in series)} black, "
        f"{len(series) - len(written)} missing)",
    )
    if config.task != PhantomConfig.task:
        terminal.row("labels", f"{config.task}: {', '.join(COLUMNS[config.task])}")
    seconds = time.perf_counter() - start
    terminal.row("files", f"{sum(spec.slices for spec in written)} in {seconds:.1f} s")
    terminal.row("cohort", flags.output)
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main, PROG)
