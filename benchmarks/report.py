"""A dataset's report: its size, how long it takes to make, and how long to open.

Phantom patients are converted and their records repeated under other ids until there are 600; the
conversion's time is scaled by the same factor. Both take one process. Exit code 1: a page of more
than 60 MB, more than a tenth of the conversion's time, more than 3 s to open in headless Chromium,
or more than 0.6 GB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from beam_jobs.core.manifest import MANIFEST_NAME, Manifest, ShardEntry, ShardPatient
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import decode_case, encode_case, read_records, write_record
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.browser import Browser, find_chromium

MOST_BYTES = 60e6
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
    target.mkdir()
    entries = []
    numbers = iter(range(patients))
    count = -(-patients // PATIENTS_A_SHARD)
    for place in range(count):
        members = [
            moved(cases[number % len(cases)], number, place % manifest.folds)
            for number in itertools.islice(numbers, PATIENTS_A_SHARD)
        ]
        name = f"fold-{place % manifest.folds}-{place:05d}-of-{count:05d}.tfrecord"
        with (target / name).open("wb") as stream:
            for case in members:
                write_record(stream, encode_case(case, manifest.schema))
        data = (target / name).read_bytes()
        entries.append(
            ShardEntry(
                name=name,
                fold=place % manifest.folds,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                patients=tuple(
                    ShardPatient(patient_id=case.patient_id, label=case.label) for case in members
                ),
            )
        )
    entries.sort(key=lambda entry: entry.name)
    repeated = dataclasses.replace(manifest, shards=tuple(entries))
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


def run(module: str, *arguments: str) -> tuple[float, float, str]:
    """(seconds with its start, peak GB of its largest process, what it printed) of a command."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=told,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        text = told.read().decode()
    if process.returncode:
        raise SystemExit(f"{module} ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1e6, text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=600)
    parser.add_argument("--phantoms", type=int, default=6, help="patients that are converted")
    parser.add_argument("--matrix", type=int, nargs=2, default=(256, 512))
    parser.add_argument("--slices", type=int, nargs=2, default=(30, 200))
    flags = parser.parse_args()
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
        _, _, told = run(
            "beam_jobs.dicom_to_tfrecord",
            *("--input", str(root / "cohort" / "train"), "--output", str(small)),
            *("--labels", str(root / "cohort" / "train_labels.csv")),
            *("--processes", "1"),
        )
        # The job's own time on one process, for its start does not grow with patients.
        job = float(re.search(r"^time +([0-9.]+) s", told, re.MULTILINE)[1])
        converted = len(Manifest.loads((small / MANIFEST_NAME).read_text()).patients)
        conversion = job * flags.patients / converted
        repeat(small, large, flags.patients)
        making, peak, _ = run(
            "beam_jobs.report",
            *(str(large), "--output", str(page), "--quiet", "--workers", "1"),
        )
        opening = None
        if find_chromium():
            with Browser() as browser:
                opening = browser.open(page, width=1280, height=900).opened_in_s
        result = {
            "patients": flags.patients,
            "converted": converted,
            "megabytes": round(page.stat().st_size / 1e6, 1),
            "make_s": round(making, 1),
            "conversion_s": round(conversion, 1),
            "share": round(making / conversion, 3),
            "open_s": None if opening is None else round(opening, 2),
            "peak_gb": round(peak, 2),
        }
    print(json.dumps(result, indent=1))
    fits = (
        result["megabytes"] * 1e6 < MOST_BYTES
        and result["share"] < MOST_SHARE
        and peak < MOST_GB
        and (opening is None or opening < MOST_OPEN_S)
    )
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
