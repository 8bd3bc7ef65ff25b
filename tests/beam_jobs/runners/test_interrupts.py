"""Ctrl-C and SIGTERM at seeded moments of a portable job; then the same command, and what is left.

The job server is the command's own, or outlives it, with workers in the command or of a pool.
Beam's Python job server says CANCELLED at once and lets the workers work on, beside those of the
next command: the dataset must be that one's alone.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from tests.clusters import (
    BOUND_S,
    NO_PRISM,
    Command,
    Server,
    beams_own,
    children,
    needs_proc,
    on,
    prism,
    prism_binary,
    wait_until,
    worker_pool,
)
from tests.kills import files, finished

pytestmark = [pytest.mark.slow, needs_proc, pytest.mark.timeout(900)]
SEED = int(os.environ.get("SEED", "17"))
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOMENTS = 10
needs_prism = pytest.mark.skipif(not prism_binary(), reason=NO_PRISM)
ENGINES = [
    "beam",
    "beam, pool",
    pytest.param("prism", marks=needs_prism),
    pytest.param("prism, pool", marks=needs_prism),
    pytest.param("prism of its own", marks=needs_prism),
]


def convert(cohort: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--quiet", "--shape", "48,48,24"),
        *("--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")),
        *("--output", str(output), "--patients_per_shard", "1", "--no_report", *more),
    ]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(
        patients=24, test_patients=1, seed=5, matrix=(64, 72), slices=(22, 24), trouble_rate=0
    )
    write_cohort(config, root, workers=1)
    return root


@pytest.fixture(scope="module")
def in_memory(cohort, tmp_path_factory) -> dict[str, bytes]:
    place = tmp_path_factory.mktemp("in_memory")
    done = Command(convert(cohort, place / "d"), place / "tmp").end()
    assert done.returncode == 0, done.stderr
    return files(place / "d")


@contextlib.contextmanager
def engine(name: str, directory: Path) -> Iterator[tuple[list[str], Server | None]]:
    """A command's flags for it, and its pool of workers where it has one."""
    if name == "prism of its own":
        yield ["--runner=PrismRunner", f"--prism_location={prism_binary()}"], None
        return
    with contextlib.ExitStack() as stack:
        server = stack.enter_context((prism if "prism" in name else beams_own)(directory))
        pool = stack.enter_context(worker_pool(directory)) if "pool" in name else None
        flags = on(server, pool)
        yield flags if "prism" in name else [*flags, "--direct_num_workers=2"], pool


def work_begins(command: Command, output: Path, since: int) -> bool:
    """Whether the job took its output before it ended; waits until it is known."""
    job = output / ".state" / "job.json"  # written anew by every run
    while not (job.exists() and job.stat().st_mtime_ns > since):
        if command.process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("name", ENGINES)
def test_interrupted_job_leaves_neither_process_nor_lock_and_is_resumed(
    cohort, in_memory, tmp_path, name
):
    rng = random.Random(f"{SEED} {name}")
    output, tmp = tmp_path / "d", tmp_path / "tmp"
    with engine(name, tmp_path / "servers") as (flags, pool):
        words = convert(cohort, output, *flags)
        started = time.time_ns()
        command = Command(words, tmp)
        assert work_begins(command, output, started)
        begun = time.monotonic()
        done = command.end()
        assert (done.returncode, done.stderr) == (0, "")
        seconds, shards = time.monotonic() - begun, len(finished(output))
        shutil.rmtree(output)
        for number in range(MOMENTS):
            how = SIGNALS[number % len(SIGNALS)]
            delay = seconds * rng.uniform(0.0, 0.9)
            started = time.time_ns()
            command = Command(words, tmp)
            before = finished(output)
            # One in five comes before the job has its output.
            if number % 5 == 4:
                time.sleep(rng.uniform(0.5, 2.0))
            else:
                assert work_begins(command, output, started), command.end().stderr
                time.sleep(delay)
            command.signal(how)
            done = command.end(BOUND_S)
            moment = f"{number}. {how.name}, {delay:.2f} s of {seconds:.2f} s into the work"
            print(moment, done.returncode, len(finished(output)), done.stderr)
            require_ended_well(done.returncode, done.stderr, how, moment)
            command.require_nothing_left()
            assert not (output / ".state" / "running.json").exists(), moment
            after = finished(output)
            assert {shard: after.get(shard) for shard in before} == before, moment
            if len(after) == shards or number == MOMENTS - 1:
                done = Command(words, tmp).end()
                assert (done.returncode, done.stderr) == (0, ""), moment
                assert files(output) == in_memory, moment
                shutil.rmtree(output)
        if pool is not None:
            wait_until(lambda: not children(pool.process.pid), BOUND_S, lambda: "orphans")


def require_ended_well(code: int, errors: str, how: signal.Signals, moment: str) -> None:
    if code == 0:  # it was done before the signal came
        assert errors == "", moment
        return
    if code == -how and not errors:  # before the command's first lines, as any process
        return
    assert code == 128 + how, f"{moment}: {errors}"
    assert errors.count("\n") == 1, f"{moment}: {errors}"
