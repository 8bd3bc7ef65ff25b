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


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser(
        "planning.py",
        __doc__ or "",
        examples=f"  {PROG} --files 1000000  # 4 GB of disk, about ten minutes\n",
        rounds=None,
    )
    made.add_argument("--files", type=int, default=BASE, metavar="N", help=f"default {BASE}")
    made.add_argument("--processes", type=int, default=1, metavar="N", help="of the command")
    flags = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        one, first, rest = (Path(scratch) / name for name in ("one", "all/first", "all/rest"))
        few, patients = BASE // PATIENT, -(-flags.files // PATIENT)
        write_headers(one, range(1))
        counts = [write_headers(first, range(min(few, patients)))]
        start_up = convert(one, flags.processes)
        ran = [convert(first, flags.processes)]
        if patients > few:
            counts.append(counts[0] + write_headers(rest, range(few, patients)))
            ran.append(convert(first.parent, flags.processes))
            counts.append(counts[0])
            ran.append(convert(first, flags.processes))
    rates = [n / (each.cpu - start_up.cpu) for n, each in zip(counts, ran, strict=True)]
    show(
        ("files", "seconds", "of a processor", "files a second of it", "peak GB"),
        [
            (
                str(n),
                f"{each.wall:.0f}",
                f"{each.cpu:.0f}",
                f"{rate:.0f}",
                f"{each.peak_mb / 1e3:.2f}",
            )
            for n, each, rate in zip(counts, ran, rates, strict=True)
        ],
    )
    print(f"start-up: {start_up.cpu:.1f} s, {start_up.peak_mb / 1e3:.2f} GB")
    largest = max(counts)
    bound = LIMIT_GB if largest <= REFERENCE_COHORT else LIMIT_GB_BEYOND
    peak = max(each.peak_mb for each in ran) / 1e3
    limits = [Limit(figure=f"peak GB, {largest} files", value=peak, at_most=bound)]
    if len(ran) > 1:
        relative = rates[1] / statistics.mean((rates[0], rates[2]))
        named = f"files a second, {largest} over {counts[0]}"
        limits.append(Limit(figure=named, value=relative, at_least=LIMIT_RATE))
    figures = {
        "files": counts, "seconds": [each.wall for each in ran],
        "cpu_seconds": [each.cpu for each in ran], "files_a_second": rates,
        "peak_gb": [each.peak_mb / 1e3 for each in ran],
    }  # fmt: skip
    return conclude(limits, figures, flags.json)


if __name__ == "__main__":
    cli.run(main, PROG)
