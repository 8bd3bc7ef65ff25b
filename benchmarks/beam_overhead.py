"""What the Beam job costs over a plain loop of the same functions, and what more processes give.

    loop        one Python loop: index, plan, prepare, encode, write; no Beam
    1 process   the conversion command, in memory
    2 processes the conversion command, --processes 2
    page        the report of the dataset, which the command makes at its end

Each is a process of its own, interleaved over several rounds. "Start-up" is the same command on an
input of one tiny patient; the ratios compare what is left without it. The page is no function of
the loop's: the commands run with --no_report, and what they come to with it stands beside. Exit
code 1: a limit missed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _harness import Limit, Ran, conclude, parser, ratio, ratios, run, show

from beam_jobs.common import cli
from beam_jobs.phantoms.anatomy import Head, Lesion
from beam_jobs.phantoms.cohort import imaged
from beam_jobs.phantoms.series import Plane, SeriesSpec, write_series

PROG = "python benchmarks/beam_overhead.py"
LIMIT_ONE = 1.08  # the job's time over the loop's, at most
LIMIT_TWO = 1.75  # one process' time over two processes', at least
LIMIT_MB = 600  # peak memory of a worker on series of 512 x 512 x 400
LIMIT_FLAT = 1.10  # peak on 4 times the patients over the peak, at most

LOOP = """
import sys, time
from beam_jobs.core.cohort.plan import plan_patient
from beam_jobs.core.cohort.layout import find_owners, patient_of
from beam_jobs.core.dicom.headers import index_files
from beam_jobs.core.preprocess import PreprocessSpec, prepare_case
from beam_jobs.common.files import interface as files
from beam_jobs.convert.write_shard import limit_blas_threads
from beam_jobs.core.tfrecord import write_record
from beam_jobs.core.example import encode_case
limit_blas_threads()
root, output = sys.argv[1:3]
spec = PreprocessSpec()
paths = [entry.path for entry in files.entries(root)]
owners = find_owners(paths, spec.modalities)
headers, _ = index_files(paths)
patients = {}
for header in headers:
    key = patient_of(header, owners.get(header.path.rsplit("/", 1)[0]))
    patients.setdefault(key, []).append(header)
with open(output, "wb") as stream:
    for key in sorted(patients):
        plan = plan_patient(key, patients[key], spec.modalities, owners=owners)
        case = prepare_case(key, plan.series, spec).case
        write_record(stream, encode_case(case, spec.schema))
"""


def write_patients(root: Path, patients: int, slices: int, size: int) -> None:
    """One patient imaged, and linked under other names: the work is the same."""
    head = Head(lesion=Lesion(kind="ring", centre=(20.0, 10.0, 20.0), radius=15.0))
    first = root / "00000"
    planes: dict[str, Plane] = {
        "FLAIR": "axial", "T1w": "coronal", "T1wCE": "sagittal", "T2w": "axial",
    }  # fmt: skip
    for modality, plane in planes.items():
        spec = SeriesSpec(
            modality=modality, plane=plane, rows=size, columns=size, slices=slices,
            row_spacing=240 / size, column_spacing=240 / size, slice_step=170 / slices,
        )  # fmt: skip
        write_series(spec, first / modality, imaged(head, modality, seed=[1]))
    for number in range(1, patients):
        shutil.copytree(first, root / f"{number:05d}", copy_function=os.link)


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser("beam_overhead.py", __doc__ or "", rounds=5)
    made.add_argument("--patients", type=int, default=120, help="of four 512x512 series each")
    made.add_argument("--slices", type=int, default=100, help="of each series")
    flags = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch), flags)


def measure(scratch: Path, flags: argparse.Namespace) -> int:
    cohort, tiny = scratch / "cohort", scratch / "tiny"
    write_patients(cohort, flags.patients, flags.slices, 512)
    write_patients(tiny, 1, 3, 16)
    loop = scratch / "loop.py"
    loop.write_text(LOOP)

    def ran(method: str, root: Path) -> Ran:
        """Runs a method on an input; the page is that of the dataset written last."""
        output = scratch / f"{root.name}-dataset"
        if method == "loop":
            command = [sys.executable, str(loop), str(root), str(scratch / "loop.tfrecord")]
        elif method == "page":
            command = [sys.executable, "-m", "beam_jobs.report", "--quiet", str(output)]
        else:
            shutil.rmtree(output, ignore_errors=True)
            command = [
                *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--quiet", "--no_report"),
                *("--input", str(root), "--output", str(output), "--processes", method),
            ]
        return run(command)

    methods = {"loop": "loop", "1": "1 process", "2": "2 processes", "page": "page"}
    seconds: dict[tuple[str, Path], list[float]] = {}
    for number in range(-1, flags.rounds):
        for method, root in itertools.product(methods, (tiny, cohort)):
            if number >= 0 or root == tiny:  # once more on the tiny one, to warm up
                wall = ran(method, root).wall
                if number >= 0:
                    seconds.setdefault((method, root), []).append(wall)
    start = {m: statistics.median(seconds[m, tiny]) for m in methods}
    work = {m: [wall - start[m] for wall in seconds[m, cohort]] for m in methods}
    paged = {m: [a + b for a, b in zip(work[m], work["page"], strict=True)] for m in "12"}

    big, many, few = scratch / "big", scratch / "many", scratch / "few"
    write_patients(big, 1, 400, 512)
    peak = ran("1", big).peak_mb
    shutil.rmtree(big)
    write_patients(many, 48, 24, 512)
    write_patients(few, 12, 24, 512)
    flat = ran("1", many).peak_mb / ran("1", few).peak_mb
    print(f"{4 * flags.patients} series of 512x512\n")
    show(
        ("method", "start-up s", "work s"),
        [
            (name, f"{start[method]:.2f}", f"{statistics.median(work[method]):.2f}")
            for method, name in methods.items()
        ],
    )
    print(
        f"\nwith the page: 1 process / loop {ratio(paged['1'], work['loop']):.3f}, "
        f"1 process / 2 processes {ratio(paged['1'], paged['2']):.3f}"
    )
    one, two = ratios(work["1"], work["loop"]), ratios(work["1"], work["2"])
    return conclude(
        (
            Limit.of_median("1 process / loop", one, at_most=LIMIT_ONE),
            Limit.of_median("1 process / 2 processes", two, at_least=LIMIT_TWO),
            Limit(figure="peak MB, 512x512x400", value=peak, at_most=LIMIT_MB),
            Limit(figure="peak of 4 x patients / peak", value=flat, at_most=LIMIT_FLAT),
        ),
        {"start": start, "work": work},
        flags.json,
    )


if __name__ == "__main__":
    cli.run(main, PROG)
