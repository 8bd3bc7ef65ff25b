"""Conversion and prediction on Prism, Beam's engine written in Go; `make test-prism` builds it.

It is started by the command, or waits for jobs already, with workers in the command, of a pool (a
process a worker, of which Prism asks for one a job), or as a process that Prism starts. It gives up
a job whose worker died; one whose worker never came it waits for.
"""

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from serving import export
from tests.clusters import (
    BOUND_S,
    NO_PRISM,
    ROOT,
    Command,
    Server,
    children,
    needs_proc,
    on,
    prism,
    prism_binary,
    states_at,
    wait_until,
    worker_pool,
)
from tests.kills import files, finished
from tests.serving.models import write_run

pytestmark = [
    pytest.mark.slow,
    needs_proc,
    pytest.mark.skipif(not prism_binary(), reason=NO_PRISM),
]
SPEC = PreprocessSpec(shape=(48, 48, 24))
WAYS = ("of its own", "loopback", "pool", "process")
# What Beam's images start their workers by, as far as Prism needs it: one address for everything.
BOOT = """\
#!{python}
import json, os, sys
given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
os.environ["WORKER_ID"] = given["id"].strip("'")
url = json.dumps(given["provision_endpoint"])
for name in ("LOGGING", "CONTROL"):
    os.environ[name + "_API_SERVICE_DESCRIPTOR"] = "url: " + url
os.environ["PIPELINE_OPTIONS"] = "{{}}"
os.chdir({root!r})
words = "-W ignore -m apache_beam.runners.worker.sdk_worker_main"
os.execv(sys.executable, [sys.executable, *words.split()])
"""


class Place(NamedTuple):
    """Inputs, and what a run in memory made of them."""

    cohort: Path
    model: Path
    dataset: Path
    submission: Path


class Way(NamedTuple):
    """How a command reaches Prism: its flags, and what was started for it."""

    flags: list[str]
    engine: Server | None
    pool: Server | None


def convert(place: Place, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--quiet", "--shape", "48,48,24"),
        *("--input", str(place.cohort / "train"), "--output", str(output)),
        *("--labels", str(place.cohort / "train_labels.csv"), "--patients_per_shard", "1", *more),
    ]


def predict(place: Place, source: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "serving.batch_predict", "--quiet", "--model", str(place.model)),
        *("--input", str(source), "--output", str(output), "--batch_size", "2", *more),
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("place")
    place = Place(root / "cohort", root / "model", root / "d", root / "p" / "submission.csv")
    config = PhantomConfig(
        patients=18, test_patients=6, seed=5, matrix=(64, 72), slices=(22, 24), trouble_rate=0.1
    )
    write_cohort(config, place.cohort, workers=1)
    write_run(root / "run", spec=SPEC.to_json(), schema=SPEC.schema, modalities=SPEC.modalities)
    assert export.main(["--runs", str(root / "run"), "--output", str(place.model)]) == 0
    place.submission.parent.mkdir()
    for words in (
        convert(place, place.dataset),
        predict(place, place.cohort / "test", place.submission),
    ):
        done = Command(words, root / "tmp").end()
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    with reached(request.param, tmp_path / "servers") as found:
        yield found


@contextlib.contextmanager
def reached(name: str, directory: Path) -> Iterator[Way]:
    if name == "of its own":
        yield Way(["--runner=PrismRunner", f"--prism_location={prism_binary()}"], None, None)
        return
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(prism(directory))
        if name == "process":
            boot = directory / "boot"
            boot.write_text(BOOT.format(python=sys.executable, root=str(ROOT)))
            boot.chmod(0o755)
            config = f"--environment_config={json.dumps({'command': str(boot)})}"
            flags = ["--environment_type=PROCESS", config, "--shared_disk"]
            yield Way([*on(engine)[:2], *flags], engine, None)
            return
        pool = stack.enter_context(worker_pool(directory)) if name == "pool" else None
        yield Way(on(engine, pool), engine, pool)


def require_sound(command: Command) -> None:
    """It ends well, without a word on stderr, and leaves nothing."""
    done = command.end()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    command.require_nothing_left()


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_conversion_gives_the_same_bytes(place, way, tmp_path):
    require_sound(Command(convert(place, tmp_path / "d", *way.flags), tmp_path / "tmp"))
    assert files(tmp_path / "d") == files(place.dataset)
    require_idle(way)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_prediction_gives_the_same_bytes(place, way, tmp_path):
    output = tmp_path / "p" / "submission.csv"
    output.parent.mkdir()
    words = predict(place, place.cohort / "test", output, *way.flags)
    require_sound(Command(words, tmp_path / "tmp"))
    assert files(output.parent) == files(place.submission.parent)
    require_idle(way)


def test_prediction_of_a_dataset_gives_the_same_bytes(place, tmp_path):
    found = []
    with reached("pool", tmp_path / "servers") as way:
        for name, flags in (("memory", []), ("pool", way.flags)):
            output = tmp_path / name / "submission.csv"
            output.parent.mkdir()
            words = predict(place, place.dataset, output, *flags)
            require_sound(Command(words, tmp_path / "tmp"))
            found.append(files(output.parent))
    assert found[0] == found[1]


def require_idle(way: Way) -> None:
    """The pool has no worker any more."""
    if (pool := way.pool) is not None:
        wait_until(lambda: not children(pool.process.pid), 15, lambda: "a worker outlived its job")


def engine_of(way: Way, command: Command) -> tuple[int, str]:
    """Prism's process and its endpoint; 0 where the command has not started it yet."""
    if way.engine is not None:
        return way.engine.process.pid, way.engine.endpoint
    for pid, line in command.left().items():
        if line.startswith(prism_binary()) and (port := re.search(r"--job_port[= ](\d+)", line)):
            return pid, f"localhost:{port[1]}"
    return 0, ""


def worker_of(way: Way, command: Command) -> int:
    """The process that works; 0 where there is none yet."""
    if way.pool is None:
        return command.process.pid
    return next(iter(children(way.pool.process.pid)), 0)


def kill_engine(way: Way, command: Command) -> None:
    os.kill(engine_of(way, command)[0], signal.SIGKILL)


def kill_worker(way: Way, command: Command) -> None:
    os.kill(worker_of(way, command), signal.SIGKILL)


def is_predicting(way: Way, command: Command) -> bool:
    """Whether the job runs, and its worker is about to load the model."""
    pid, endpoint = engine_of(way, command)
    with contextlib.suppress(OSError, grpc.RpcError):  # not there yet
        running = pid and states_at(endpoint) == ["RUNNING"]
        maps = Path(f"/proc/{worker_of(way, command)}/maps").read_text()
        return bool(running) and "libtensorflow_framework" in maps
    return False


DEATHS = pytest.mark.parametrize(
    ("name", "kill", "said"),
    [
        ("of its own", kill_engine, "was lost"),
        ("loopback", kill_engine, "was lost"),
        ("pool", kill_engine, "was lost"),
        ("pool", kill_worker, "worker"),
    ],
    ids=["its own engine", "engine", "engine of a pool", "worker"],
)


def end_of_killed(
    words: list[str],
    way: Way,
    tmp_path: Path,
    begun: Callable[[Way, Command], object],
    kill: Callable[[Way, Command], None],
) -> str:
    """The one line of a command whose engine or worker was killed amid its work."""
    command = Command(words, tmp_path / "tmp")
    wait_until(
        lambda: begun(way, command) or command.process.poll() is not None,
        BOUND_S,
        lambda: "no work",
    )
    assert command.process.poll() is None, command.end().stderr
    kill(way, command)
    done = command.end()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    command.require_nothing_left()
    return done.stderr


@DEATHS
def test_conversion_ends_with_its_engine_or_worker_and_resumes(place, tmp_path, name, kill, said):
    output = tmp_path / "d"
    with reached(name, tmp_path / "servers") as way:
        words = convert(place, output, *way.flags)
        line = end_of_killed(words, way, tmp_path, lambda *_: finished(output), kill)
    assert said in line
    assert line.endswith("the same command resumes\n")
    before = finished(output)
    assert not (output / "manifest.json").exists()
    with reached(name, tmp_path / "servers") as way:
        require_sound(Command(convert(place, output, *way.flags), tmp_path / "tmp"))
    after = finished(output)
    assert {shard: after[shard] for shard in before} == before
    assert files(output) == files(place.dataset)


@DEATHS
def test_prediction_ends_with_its_engine_or_worker_and_the_same_command_answers(
    place, tmp_path, name, kill, said
):
    output = tmp_path / "p" / "submission.csv"
    output.parent.mkdir()
    with reached(name, tmp_path / "servers") as way:
        words = predict(place, place.cohort / "test", output, *way.flags)
        line = end_of_killed(words, way, tmp_path, is_predicting, kill)
    assert said in line
    assert not list(output.parent.iterdir())
    with reached(name, tmp_path / "servers") as way:
        words = predict(place, place.cohort / "test", output, *way.flags)
        require_sound(Command(words, tmp_path / "tmp"))
    assert files(output.parent) == files(place.submission.parent)
