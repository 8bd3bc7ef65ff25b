"""A prediction on an engine that outlives it: interrupted, killed, and overtaken by another one."""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

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
from tests.kills import files

pytestmark = [pytest.mark.slow, needs_proc, pytest.mark.timeout(900)]
SEED = int(os.environ.get("SEED", "17"))
MOMENTS = 4


@pytest.fixture(
    params=[
        "beam",
        pytest.param("prism", marks=pytest.mark.skipif(not prism_binary(), reason=NO_PRISM)),
    ]
)
def cluster(request, tmp_path) -> Iterator[tuple[Server, Server]]:
    """A job server that runs already, and the pool of its workers."""
    with ExitStack() as stack:
        start = prism if request.param == "prism" else beams_own
        engine = stack.enter_context(start(tmp_path / "servers"))
        yield engine, stack.enter_context(worker_pool(tmp_path / "servers"))


def predict(model: Path, source: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "serving.batch_predict", "--quiet", "--model", str(model)),
        *("--input", str(source), "--output", str(output), "--batch_size", "2", *more),
    ]


def ends_well(words: list[str], tmp: Path) -> None:
    command = Command(words, tmp)
    done = command.end()
    assert (done.returncode, done.stderr) == (0, "")
    command.require_nothing_left()


def rows_of(words: list[str], output: Path, tmp: Path) -> dict[str, bytes]:
    """What a prediction leaves, which is then removed."""
    ends_well(words, tmp)
    found = files(output.parent)
    for name in found:
        (output.parent / name).unlink()
    return found


def loads_model(pool: Server) -> int:
    """The pool's worker, once it has begun to load TensorFlow; else 0."""
    for worker in children(pool.process.pid):
        try:
            if "libtensorflow_framework" in Path(f"/proc/{worker}/maps").read_text():
                return worker
        except OSError:
            continue
    return 0


def require_idle(pool: Server) -> None:
    wait_until(lambda: not children(pool.process.pid), BOUND_S, lambda: "a worker lives on")


def test_interrupted_prediction_leaves_nothing_and_the_same_command_answers(
    model, dataset, cluster, tmp_path
):
    engine, pool = cluster
    rng = random.Random(SEED)
    output, tmp = tmp_path / "p" / "submission.csv", tmp_path / "tmp"
    output.parent.mkdir()
    expected = rows_of(predict(model, dataset, output), output, tmp)
    words = predict(model, dataset, output, *on(engine, pool))
    begun = time.monotonic()
    assert rows_of(words, output, tmp) == expected
    seconds = time.monotonic() - begun
    for number in range(MOMENTS):
        how = (signal.SIGINT, signal.SIGTERM)[number % 2]
        delay = seconds * rng.uniform(0.2, 0.95)
        command = Command(words, tmp)
        time.sleep(delay)
        command.signal(how)
        done = command.end()
        moment = f"{number}. {how.name} after {delay:.2f} s of {seconds:.2f} s: {done.stderr}"
        print(moment, done.returncode)
        command.require_nothing_left()
        if done.returncode == 0:  # it was done before the signal came
            assert files(output.parent) == expected, moment
            output.unlink()
            continue
        assert done.returncode in (-how, 128 + how), moment
        assert done.stderr.count("\n") == (done.returncode > 0), moment
        assert not {*files(output.parent)} - {*expected}, moment
        assert "RUNNING" not in engine.states()
    assert rows_of(words, output, tmp) == expected
    require_idle(pool)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_workers_of_an_ended_prediction_write_nothing_into_the_next(
    model, dataset, cluster, tmp_path, how
):
    engine, pool = cluster
    output, tmp = tmp_path / "p" / "submission.csv", tmp_path / "tmp"
    output.parent.mkdir()
    alone = predict(model, dataset, output, "--batch_size", "5")
    expected = rows_of(alone, output, tmp)
    ended = Command(predict(model, dataset, output, *on(engine, pool)), tmp)
    wait_until(lambda: loads_model(pool), BOUND_S, lambda: f"no worker: {ended.process.poll()}")
    worker = loads_model(pool)
    os.kill(worker, signal.SIGSTOP)
    ended.process.send_signal(how)
    assert ended.end().returncode in (-how, 128 + how)
    ends_well(alone, tmp)
    with suppress(ProcessLookupError):  # Prism has its pool end the worker of a cancelled job
        os.kill(worker, signal.SIGCONT)
    require_idle(pool)
    assert files(output.parent) == expected
