"""Mutated DICOM files against the reader: each is used with right values or rejected with a code.

    python -m tests.mutations --count 10000 --seed 0
    python -m tests.mutations --bases vendors

Case n of a seed is always the same. A mutated file takes the place of one slice of a sound series
or, three times in ten, all slices are mutated alike; the stack, and the file alone, then go through
index, assembly, volume and prepared case. Every other case comes after its sound series, of which
the reader then knows what the files have in common.

A case fails when the reader raises anything but `RejectedError`, warns, dies, takes more than
1 s of processor time, loses the file from its accounting, allocates beyond its allowance, or uses
the file with other values or another place than pydicom reads from it.

Allowance: 4 × max(bytes of the files, bytes of the sound series' samples where these are stored
compressed) + 1 MiB for the parser's objects and the spec's small grid. What a mutated header
claims grants nothing: a small file that says 65535 × 65535 has the allowance of a small file. Only
what claims to be metres wide gets more voxels to find the head by, at most 60,000 of 48 bytes.
Python and numpy are measured to the byte (tracemalloc); the decoders in C by the peak of resident
memory, with 16 MiB of slack, and by a limit on address space.
"""

from __future__ import annotations

import argparse
import collections
import functools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutations.bases import WHICH
from tests.mutations.cases import Bench, Outcome, outcomes


@functools.lru_cache(1)
def _bench_to_draw_from(which: str) -> Bench:
    with tempfile.TemporaryDirectory() as directory:
        return Bench(Path(directory), which)


def keep(outcome: Outcome, seed: int, which: str, directory: Path) -> None:
    """Writes a failed case's file, and beside it what it was and what went wrong."""
    directory.mkdir(parents=True, exist_ok=True)
    _, mutated, label = _bench_to_draw_from(which).draw(seed, outcome.index)
    name = f"seed-{seed}-case-{outcome.index}"
    for place, data in mutated.items():
        (directory / f"{name}-{place}.dcm").write_bytes(data)
    (directory / f"{name}.txt").write_text("\n".join([label, *outcome.failures, ""]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases and prints what became of them; 1 when any failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="which cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--bases", choices=WHICH, default="all", help="which series are spoilt")
    parser.add_argument("--keep", type=Path, help="folder for the files of failed cases")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    verdicts: collections.Counter[str] = collections.Counter()
    compared, failed = 0, 0
    slowest = largest = nearest = Outcome(index=-1)
    cases = range(options.first, options.first + options.count)
    for outcome in outcomes(options.seed, cases, options.bases):
        verdicts[outcome.verdict] += 1
        compared += outcome.compared
        slowest = max(slowest, outcome, key=lambda each: each.seconds)
        largest = max(largest, outcome, key=lambda each: each.peak)
        nearest = max(nearest, outcome, key=lambda each: each.share)
        if outcome.failures:
            failed += 1
            print(f"FAILED case {outcome.index} ({outcome.label})", *outcome.failures, sep="\n  ")
            if options.keep:
                keep(outcome, options.seed, options.bases, options.keep)
    print(f"{options.count} cases of seed {options.seed} in {time.monotonic() - start:.0f} s")
    for verdict, count in verdicts.most_common():
        print(f"  {count:6d} {verdict}")
    print(f"values compared with pydicom's reading in {compared} cases")
    print(f"slowest: {slowest.seconds:.3f} s of processor time, case {slowest.index}")
    for name, each in (("greatest allocation", largest), ("nearest to its allowance", nearest)):
        print(
            f"{name}: {each.peak} bytes for {each.files} bytes of files, "
            f"{each.share:.0%} of the allowance, case {each.index} ({each.label})"
        )
    print(f"failures: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
