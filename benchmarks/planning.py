"""Planning a large cohort: memory and rate of a conversion whose files are little but headers.

N files of 4 x 4 pixels (patients of four series of 100 slices) are generated and converted by the
command; almost all of its work is listing, reading headers, grouping and planning. More than
100,000 files are measured beside 100,000 of them, before and after. A rate is files a second of
processor time, which other work on the machine does not decide; start-up, that of the same command
on one patient, is taken off.

Exit code 1: more than 2 GB in the gathering process (5 GB beyond 350,000 files), or fewer files a
second than 0.8 times the rate of the 100,000.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from _harness import Limit, Ran, conclude, parser, run, show

from beam_jobs.common import cli
from beam_jobs.phantoms.series import SeriesSpec, write_series

PROG = "python benchmarks/planning.py"
REFERENCE_COHORT = 350_000
LIMIT_GB, LIMIT_GB_BEYOND = 2.0, 5.0
BASE, LIMIT_RATE = 100_000, 0.8
MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")
SLICES = 100
PATIENT = SLICES * len(MODALITIES)


def write_headers(root: Path, patients: range) -> int:
    """Copies of one tiny series under other patients' and series' identifiers; how many files."""
    spec = SeriesSpec(modality="T1w", rows=4, columns=4, slices=SLICES, slice_step=1.5)
    with tempfile.TemporaryDirectory() as template:
        paths = write_series(spec, Path(template), lambda xyz: 100 + xyz[..., 0] ** 2).paths
        images = [path.read_bytes() for path in paths]
    uid = _series_uid(images[0])
    for patient in patients:
        for number, modality in enumerate(MODALITIES):
            folder = root / f"{patient:05d}" / modality
            folder.mkdir(parents=True)
            other = f"{patient:07d}{number}".encode().rjust(len(uid), b"1")
            for index, image in enumerate(images):
                (folder / f"Image-{index}.dcm").write_bytes(image.replace(uid, other))
    return len(patients) * PATIENT


def _series_uid(image: bytes) -> bytes:
    """The last digits of the series UID, to be replaced by others of the same length."""
    start = image.index(b"\x20\x00\x0e\x00UI")
    length = int.from_bytes(image[start + 6 : start + 8], "little")
    return image[start + 8 : start + 8 + length].rstrip(b"\0")[-20:]


def convert(source: Path, processes: int) -> Ran:
    """The command, its output thrown away."""
    with tempfile.TemporaryDirectory() as output:
        return run(
            [
                *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--shape", "8,8,8"),
                *("--input", str(source), "--output", f"{output}/dataset"),
                *("--processes", str(processes)),
            ]
        )


def measure(scratch: Path, files: int, processes: int) -> tuple[Ran, dict[str, tuple[int, Ran]]]:
    """The command on one patient, and name -> (files, the command) of the runs in their order."""
    one, first, rest = (scratch / name for name in ("one", "all/first", "all/rest"))
    few, patients = BASE // PATIENT, -(-files // PATIENT)
    write_headers(one, range(1))
    base = write_headers(first, range(min(few, patients)))
    start_up = convert(one, processes)
    ran = {"base": (base, convert(first, processes))}
    if patients > few:
        more = write_headers(rest, range(few, patients))
        ran["all"] = base + more, convert(first.parent, processes)
        ran["base again"] = base, convert(first, processes)
    return start_up, ran


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser(
        "planning.py",
        __doc__ or "",
        examples=f"  {PROG} --files 1000000  # 4 GB of disk, about ten minutes\n",
        rounds=None,
    )
    made.add_argument("--files", type=int, default=BASE, metavar="N", help="how many")
    made.add_argument("--processes", type=int, default=1, metavar="N", help="of the command")
    flags = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        return report(*measure(Path(scratch), flags.files, flags.processes), flags.json)


def report(start_up: Ran, ran: dict[str, tuple[int, Ran]], json: Path | None) -> int:
    """Prints the table and the verdicts; the exit code."""
    rates = {name: n / (each.cpu - start_up.cpu) for name, (n, each) in ran.items()}
    show(
        ("files", "seconds", "of a processor", "files a second of it", "peak GB"),
        [
            (str(n), f"{each.wall:.0f}", f"{each.cpu:.0f}", f"{rates[name]:.0f}", _gb(each))
            for name, (n, each) in ran.items()
        ],
    )
    print(f"start-up: {start_up.cpu:.1f} s, {_gb(start_up)} GB")
    largest = max(n for n, _ in ran.values())
    bound = LIMIT_GB if largest <= REFERENCE_COHORT else LIMIT_GB_BEYOND
    peak = max(each.peak_mb for _, each in ran.values()) / 1e3
    limits = [Limit(figure=f"peak GB, {largest} files", value=peak, at_most=bound)]
    if "all" in rates:
        relative = rates["all"] / statistics.mean((rates["base"], rates["base again"]))
        named = f"files a second, {largest} over {ran['base'][0]}"
        limits.append(Limit(figure=named, value=relative, at_least=LIMIT_RATE))
    figures = {
        name: {
            "files": n, "files_a_second": rates[name], "seconds": each.wall,
            "cpu_seconds": each.cpu, "peak_gb": each.peak_mb / 1e3,
        }
        for name, (n, each) in ran.items()
    }  # fmt: skip
    return conclude(limits, figures, json)


def _gb(ran: Ran) -> str:
    return f"{ran.peak_mb / 1e3:.2f}"


if __name__ == "__main__":
    cli.run(main, PROG)
