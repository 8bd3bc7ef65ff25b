"""Kills a conversion at random moments and runs it again, until the dataset must be complete.

`python -m tests.kills --kills 20 --seed 0` prints what happened and exits with 1 when the final
dataset differs from an uninterrupted one, anything is left over, or a finished shard was written
again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig


def command(cohort: Path, output: Path, processes: int) -> list[str]:
    return [
        *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--quiet"),
        *("--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")),
        *("--output", str(output), "--shape", "64,64,32", "--processes", str(processes)),
    ]


def files(dataset: Path) -> dict[str, bytes]:
    """Every file below a dataset, its state included; the lock's names its last holder."""
    return {
        str(path.relative_to(dataset)): path.read_bytes()
        for path in sorted(dataset.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def finished(dataset: Path) -> dict[str, int]:
    """Shards that are done, and when their files were written."""
    states = (dataset / ".state").glob("*.tfrecord.json")
    shards = [dataset / path.name.removesuffix(".json") for path in states]
    return {path.name: path.stat().st_mtime_ns for path in shards if path.exists()}


def start(cohort: Path, output: Path, processes: int) -> subprocess.Popen[bytes]:
    """The conversion, in a process group of its own."""
    return subprocess.Popen(
        command(cohort, output, processes),
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def work_begins(process: subprocess.Popen[bytes], output: Path) -> float:
    """Waits until the job has taken its output, imports and all behind it; returns the time."""
    job = output / ".state" / "job.json"  # written anew by every run
    since = time.time_ns()
    while not (job.exists() and job.stat().st_mtime_ns > since):
        if process.poll() is not None:
            raise SystemExit(f"the conversion ended with {process.returncode} before it began")
        time.sleep(0.005)
    return time.monotonic()


def run(kills: int, seed: int, processes: int, scratch: Path) -> list[str]:
    """Kills and runs again; returns the faults found, none when all is well."""
    rng = random.Random(seed)
    cohort, reference, output = scratch / "cohort", scratch / "reference", scratch / "output"
    config = PhantomConfig(
        patients=24, test_patients=1, seed=seed, matrix=(90, 96), slices=(30, 32), trouble_rate=0
    )
    write_cohort(config, cohort, workers=1)
    process = start(cohort, reference, processes)
    begun = work_begins(process, reference)
    process.wait()
    work = time.monotonic() - begun
    faults: list[str] = []
    for number in range(kills):
        before = finished(output)
        process = start(cohort, output, processes)
        work_begins(process, output)
        delay = work * rng.uniform(0.0, 0.9)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        after = finished(output)
        again = [name for name in before if after.get(name) != before[name]]
        if again:
            faults.append(f"kill {number}: finished shards were written again: {again}")
        complete = (output / "manifest.json").exists()
        print(
            f"kill {number}, {delay:.2f} of {work:.2f} s into the work: {len(before)} shards were "
            f"finished, now {len(after)}{', complete: begun afresh' if complete else ''}"
        )
        if complete:
            shutil.rmtree(output)
    before = finished(output)
    subprocess.run(command(cohort, output, processes), check=True, capture_output=True)
    after = finished(output)
    if any(after[name] != before[name] for name in before):
        faults.append("the last run wrote a finished shard again")
    found, expected = files(output), files(reference)
    if found != expected:
        names = [n for n in {*found, *expected} if found.get(n) != expected.get(n)]
        faults.append(f"the dataset differs from an uninterrupted one: {sorted(names)}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        faults = run(flags.kills, flags.seed, flags.processes, Path(scratch))
    for fault in faults:
        print(fault)
    print("sound" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
