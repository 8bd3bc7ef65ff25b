"""`python -m beam_jobs.survey` of two heaps of 12,000 files: how many a second on one core.

One heap has the phantoms' short headers, the other those of four vendors (GE, Philips, UIH and
Siemens in equal parts, explicit and implicit). Series of 40 slices of 16 x 16, four to a patient,
in directories that say nothing. The whole command is measured, in seconds of its processor, with
the files in the page cache; start-up is that of the same command on one series, and is shown.

Exit code 1: fewer than 5,000 files a second apart from start-up.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from _harness import Limit, conclude, on_one_core, parser, run, show

from beam_jobs.common import cli
from beam_jobs.phantoms.series import SeriesSpec, write_series
from beam_jobs.phantoms.vendor_headers import VENDORS, Vendor

PROG = "python benchmarks/survey.py"
LIMIT = 5000.0
MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")
SLICES = 40
SYNTAXES: tuple[Literal["explicit", "implicit"], ...] = ("explicit", "implicit")


def write_heap(root: Path, files: int, vendors: Sequence[Vendor]) -> int:
    """A heap of about so many files; returns how many."""
    patients = -(-files // (SLICES * len(MODALITIES)))
    for patient in range(patients):
        for number, modality in enumerate(MODALITIES):
            spec = SeriesSpec(
                modality=modality,
                rows=16,
                columns=16,
                slices=SLICES,
                vendor=vendors[patient % len(vendors)],
                transfer_syntax=SYNTAXES[patient // len(vendors) % 2],
            )
            write_series(
                spec,
                root / f"{patient:04d}" / str(number),
                lambda xyz: np.abs(xyz[..., 0]),
                patient_id=f"P{patient:04d}",
            )
    return patients * len(MODALITIES) * SLICES


def cpu_seconds(heap: Path, rounds: int) -> float:
    """Of the command, the median of its rounds; one further round comes first."""
    command = (sys.executable, "-m", "beam_jobs.survey", str(heap))
    return statistics.median([run(command).cpu for _ in range(rounds + 1)][1:])


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser("survey.py", __doc__ or "", rounds=3)
    made.add_argument("--files", type=int, default=12_000, metavar="N", help="of each heap")
    flags = made.parse_args(argv)
    on_one_core()
    heaps: dict[str, tuple[Vendor, ...]] = {"short headers": ("",), "vendors' headers": VENDORS}
    rates, rows = {}, []
    for name, vendors in heaps.items():
        with tempfile.TemporaryDirectory() as scratch:
            files = write_heap(Path(scratch), flags.files, vendors)
            start_up = cpu_seconds(Path(scratch, "0000", "0"), flags.rounds)
            seconds = cpu_seconds(Path(scratch), flags.rounds)
        rates[name] = files / (seconds - start_up)
        rows.append((name, str(files), f"{seconds:.2f}", f"{start_up:.2f}", f"{rates[name]:.0f}"))
    show(("heap", "files", "seconds", "of these start-up", "files a second"), rows)
    limits = [
        Limit(figure=f"files a second, {name}", value=rate, at_least=LIMIT)
        for name, rate in rates.items()
    ]
    return conclude(limits, {"files_a_second": rates}, flags.json)


if __name__ == "__main__":
    cli.run(main, PROG)
