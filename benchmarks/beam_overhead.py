"""What the Beam job costs over a plain loop of the same functions, and what more processes give.

    loop        one Python loop: index, plan, prepare, encode, write; no Beam
    1 process   the conversion command, in memory
    2 processes the conversion command, --processes 2

Each is a process of its own, interleaved over several rounds. "Start-up" is the same command on an
input of one tiny patient; the ratios compare what is left without it. Exit code 1: a limit missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from beam_jobs.phantoms.anatomy import Head, Lesion
from beam_jobs.phantoms.cohort import imaged
from beam_jobs.phantoms.series import SeriesSpec, write_series

LIMIT_ONE = 1.10  # the job's time over the loop's, at most
LIMIT_TWO = 1.70  # one process' time over two processes', at least
LIMIT_MB = 600  # peak memory of a worker on series of 512 x 512 x 400
LIMIT_FLAT = 1.10  # peak on 4 times the patients over the peak, at most

LOOP = """
import sys, time
from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.cohort.layout import find_places, patient_of
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case
from beam_jobs.common.files_before.storage import list_local_files
from beam_jobs.convert.write_shard import limit_blas_threads
from beam_jobs.core.tfrecord import encode_case, write_record
limit_blas_threads()
root, output = sys.argv[1:3]
spec = PreprocessSpec()
paths = list_local_files(root)
places = find_places(paths, spec.modalities)
headers, _ = index_files(paths)
patients = {}
for header in headers:
    key = patient_of(header, places.get(header.path.rsplit("/", 1)[0]))
    patients.setdefault(key, []).append(header)
with open(output, "wb") as stream:
    for key in sorted(patients):
        plan = plan_patient(key, patients[key], spec.modalities, places=places)
        case, _ = prepare_case(key, plan.series, spec)
        write_record(stream, encode_case(case, spec.schema))
"""


def write_patients(root: Path, patients: int, slices: int, size: int) -> None:
    """One patient imaged, and linked under other names: the work is the same."""
    head = Head(lesion=Lesion(kind="ring", centre=(20.0, 10.0, 20.0), radius=15.0))
    first = root / "00000"
    planes = dict(
        zip(
            ("FLAIR", "T1w", "T1wCE", "T2w"), ("axial", "coronal", "sagittal", "axial"), strict=True
        )
    )
    for modality, plane in planes.items():
        spec = SeriesSpec(
            modality=modality, plane=plane, rows=size, columns=size, slices=slices,
            row_spacing=240 / size, column_spacing=240 / size, slice_step=170 / slices,
        )  # fmt: skip
        write_series(spec, first / modality, imaged(head, modality, seed=[1]))
    for number in range(1, patients):
        shutil.copytree(first, root / f"{number:05d}", copy_function=os.link)


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds, and peak memory in MB of the largest process of the command."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, float(done.stdout.split()[-1]) / 1024


# A process between, so that its children's peak is this command's alone.
_MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each method, interleaved")
    parser.add_argument("--patients", type=int, default=120, help="of four 512x512 series each")
    parser.add_argument("--slices", type=int, default=100, help="of each series")
    parser.add_argument("--json", help="write the figures to this file")
    flags = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch), flags)


def measure(scratch: Path, flags: argparse.Namespace) -> int:
    cohort, tiny = scratch / "cohort", scratch / "tiny"
    write_patients(cohort, flags.patients, flags.slices, 512)
    write_patients(tiny, 1, 3, 16)
    loop = scratch / "loop.py"
    loop.write_text(LOOP)

    def command(method: str, root: Path) -> list[str]:
        output = scratch / "output"
        shutil.rmtree(output, ignore_errors=True)
        if method == "loop":
            return [sys.executable, str(loop), str(root), str(scratch / "loop.tfrecord")]
        return [
            *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--quiet"),
            *("--input", str(root), "--output", str(output), "--processes", method),
        ]

    methods = ("loop", "1", "2")
    times: dict[str, list[float]] = {method: [] for method in methods}
    starts: dict[str, list[float]] = {method: [] for method in methods}
    for method in methods:
        run(command(method, tiny))  # warms the page cache and compiled files
    run(command("loop", cohort))
    for _ in range(flags.rounds):
        for method in methods:
            starts[method].append(run(command(method, tiny))[0])
            times[method].append(run(command(method, cohort))[0])
    start = {method: statistics.median(starts[method]) for method in methods}
    work = {method: [seconds - start[method] for seconds in times[method]] for method in methods}

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(work[one], work[other], strict=True))

    big, many = scratch / "big", scratch / "many"
    write_patients(big, 1, 400, 512)
    peak = run(command("1", big))[1]
    shutil.rmtree(big)
    write_patients(many, 48, 24, 512)
    few = scratch / "few"
    write_patients(few, 12, 24, 512)
    flat = run(command("1", many))[1] / run(command("1", few))[1]
    checks = [
        ("1 process / loop", ratio("1", "loop"), "at most", LIMIT_ONE),
        ("1 process / 2 processes", ratio("1", "2"), "at least", LIMIT_TWO),
        ("peak MB, 512x512x400", peak, "at most", LIMIT_MB),
        ("peak of 4 x patients / peak", flat, "at most", LIMIT_FLAT),
    ]
    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table("method", "start-up s", "work s", title=f"{4 * flags.patients} series of 512x512")
    for method, name in zip(methods, ("loop", "1 process", "2 processes"), strict=True):
        table.add_row(name, f"{start[method]:.2f}", f"{statistics.median(work[method]):.2f}")
    console.print(table)
    limits = Table("figure", "measured", "limit", "verdict")
    missed = 0
    for name, value, word, limit in checks:
        holds = value <= limit if word == "at most" else value >= limit
        missed += not holds
        limits.add_row(name, f"{value:.2f}", f"{word} {limit:g}", "holds" if holds else "MISSED")
    console.print(limits)
    if flags.json:
        figures = {"start": start, "work": work, "checks": {c[0]: c[1] for c in checks}}
        Path(flags.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
