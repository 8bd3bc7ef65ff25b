"""Prediction by workers that outlive it: none of their rows stays, or gets into the next run's."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Command, beams_own, children, needs_proc, on, wait_until, worker_pool
from tests.datasets import make_cases, write_cases
from tests.serving.models import schema_of, spec_of

pytestmark = [pytest.mark.slow, needs_proc]
SHARDS = 400  # so many files of rows: the work takes seconds


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("many") / "dataset"
    schema = schema_of(spec_of())
    cases = make_cases(schema, patients=2 * SHARDS, folds=2)
    write_cases(directory, cases, schema, folds=2, shards=SHARDS // 2, spec=spec_of())
    return directory


def predict(model: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "serving.batch_predict", "--quiet", "--model", str(model)),
        *("--input", str(data), "--output", str(output), *more),
    ]


@contextlib.contextmanager
def workers(directory: Path) -> Iterator[tuple[list[str], int]]:
    """Flags for Beam's job server with two workers of a pool, and the pool's process."""
    with beams_own(directory) as server, worker_pool(directory) as pool:
        yield [*on(server, pool), "--direct_num_workers=2"], pool.process.pid


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_that_outlive_the_command_bring_no_row_back(
    model: Path, data: Path, tmp_path: Path, how: signal.Signals
) -> None:
    alone, output = tmp_path / "alone" / "a.csv", tmp_path / "out" / "a.csv"
    done = Command(predict(model, data, alone), tmp_path / "tmp").end()
    assert (done.returncode, done.stderr) == (0, "")
    with workers(tmp_path / "servers") as (flags, pool):
        words = predict(model, data, output, *flags)
        command = Command(words, tmp_path / "tmp")
        wait_until(
            lambda: len(list(output.parent.glob(".a.csv.*/rows-*"))) > 5,
            60,
            lambda: f"no rows: {command.end().stderr}",
        )
        command.signal(how)
        command.end()
        assert children(pool), "the workers live on"
        if how == signal.SIGINT:
            deadline = time.monotonic() + 5
            while children(pool) and time.monotonic() < deadline:
                assert list(output.parent.iterdir()) == []
                time.sleep(0.01)
        done = Command(words, tmp_path / "tmp").end()
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: not children(pool), 60, lambda: "workers without an end")
    found = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    assert found == {path.name: path.read_bytes() for path in alone.parent.iterdir()}
