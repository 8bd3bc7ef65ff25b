"""A dataset's report: its size, how long it takes to make, and how long to open.

Phantom patients are converted and their records repeated under other ids until there are 600; the
conversion's time is scaled by the same factor. Both take one process. Exit code 1: a page of more
than 60 MB, more than a tenth of the conversion's time, more than 3 s to open in headless Chromium,
or more than 0.6 GB of memory.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _harness import Limit, conclude, parser, run

from beam_jobs.common import cli
from beam_jobs.core.example import decode_case
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import read_records
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from tests.browser import Browser, find_chromium
from tests.datasets import write_cases

PROG = "python benchmarks/report.py"
MOST_MB = 60
MOST_SHARE = 0.1
MOST_OPEN_S = 3.0
MOST_GB = 0.6
PATIENTS_A_SHARD = 15


def repeat(source: Path, target: Path, patients: int) -> None:
    """A dataset of `patients` records, made of another's: moved by voxels, so that no two are one.

    Args:
      source: a converted dataset, with its tables.
      target: the directory to write.
      patients: how many records it gets.
    """
    manifest = Manifest.loads((source / MANIFEST_NAME).read_text())
    cases = []
    for shard in manifest.shards:
        with (source / shard.name).open("rb") as stream:
            cases += [decode_case(data, manifest.schema) for data in read_records(stream)]
    shards = -(-patients // PATIENTS_A_SHARD)
    written = write_cases(
        target,
        (
            moved(cases[number % len(cases)], number, number % manifest.folds)
            for number in range(patients)
        ),
        manifest.schema,
        folds=manifest.folds,
        shards=-(-shards // manifest.folds),
    )
    repeated = dataclasses.replace(manifest, shards=written.shards)
    (target / MANIFEST_NAME).write_text(repeated.dumps())
    for name in ("series.csv", "rejects.csv"):
        head, *rows = (source / name).read_text().splitlines(keepends=True)
        factor = -(-patients // len(cases))
        (target / name).write_text(head + "".join(rows * factor))


def moved(case: PreparedCase, number: int, fold: int) -> PreparedCase:
    """The same head under another id, shifted by up to three voxels."""
    shift = (number % 7 - 3, number // 7 % 7 - 3)
    return dataclasses.replace(
        case,
        patient_id=f"{number:05d}",
        volume=np.roll(case.volume, shift, axis=(0, 1)),
        label=number % 2,
        fold=fold,
    )


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser("report.py", __doc__ or "", rounds=None)
    made.add_argument("--patients", type=int, default=600)
    made.add_argument("--phantoms", type=int, default=6, help="patients that are converted")
    made.add_argument("--matrix", type=int, nargs=2, default=(256, 512))
    made.add_argument("--slices", type=int, nargs=2, default=(30, 200))
    flags = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        config = PhantomConfig(
            patients=flags.phantoms,
            test_patients=0,
            seed=11,
            matrix=tuple(flags.matrix),
            slices=tuple(flags.slices),
        )
        write_cohort(config, root / "cohort")
        small, large, page = root / "small", root / "large", root / "report.html"
        converting = run(
            [
                *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--processes", "1"),
                *("--input", str(root / "cohort" / "train"), "--output", str(small)),
                *("--labels", str(root / "cohort" / "train_labels.csv")),
            ]
        )
        # The job's own time on one process, for its start does not grow with patients.
        job = re.search(r"^time +([0-9.]+) s", converting.stdout, re.MULTILINE)
        if job is None:
            raise cli.CommandError("the conversion does not say how long it took")
        converted = len(Manifest.loads((small / MANIFEST_NAME).read_text()).patients)
        conversion = float(job[1]) * flags.patients / converted
        repeat(small, large, flags.patients)
        making = run(
            [
                *(sys.executable, "-m", "beam_jobs.report", str(large)),
                *("--output", str(page), "--quiet", "--workers", "1"),
            ]
        )
        megabytes = page.stat().st_size / 1e6
        limits = [
            Limit(figure="MB of the page", value=megabytes, at_most=MOST_MB),
            Limit(
                figure="share of the conversion's time",
                value=making.wall / conversion,
                at_most=MOST_SHARE,
            ),
            Limit(figure="peak GB", value=making.peak_mb / 1e3, at_most=MOST_GB),
        ]
        if find_chromium():
            with Browser() as browser:
                opening = browser.open(page, width=1280, height=900).opened_in_s
            limits.append(Limit(figure="seconds to open", value=opening, at_most=MOST_OPEN_S))
        else:
            print("Chromium is not installed: the page was not opened.")
    figures = {
        "patients": flags.patients,
        "converted": converted,
        "make_s": making.wall,
        "conversion_s": conversion,
    }
    print(f"made in {making.wall:.1f} s; converting so many patients: {conversion:.1f} s")
    return conclude(limits, figures, flags.json)


if __name__ == "__main__":
    cli.run(main, PROG)
