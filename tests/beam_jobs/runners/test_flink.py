"""The conversion through a Beam job server: Flink's own where its jar is, else a stand-in.

`make test-flink` fetches the jar first. The stand-in is Beam's Python job server in Java's place:
it proves the command's half (submission, worker, messages, and how the server starts and ends),
and nothing about Flink. The same stands for servers that run already, with workers of a pool.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import pytest
from apache_beam.runners.portability import stager
from apache_beam.transforms import environments

from beam_jobs.common.cli import UsageError
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from beam_jobs.runners.engines import workers_here
from beam_jobs.runners.job_server import job_server
from beam_jobs.runners.options import make_pipeline, pipeline_options
from beam_jobs.runners.watch import watch
from tests.clusters import (
    BOUND_S,
    NO_FLINK,
    Command,
    Server,
    beams_own,
    children,
    flink,
    flink_jar,
    is_running,
    needs_proc,
    on,
    wait_until,
    worker_pool,
)
from tests.kills import files, finished

STAND_IN = """\
#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in --job-port) port=$2;; esac; shift; done
exec {python} -m apache_beam.runners.portability.local_job_service_main --job_port "$port"
"""


def command(cohort: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "beam_jobs.dicom_to_tfrecord", "--quiet", "--shape", "24,24,8"),
        *("--input", str(cohort / "train"), "--labels", str(cohort / "train_labels.csv")),
        *("--output", str(output), *more),
    ]


def run(cohort: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(cohort, output, *more), capture_output=True, text=True, timeout=280
    )


class Converted(NamedTuple):
    """What a job printed, where it wrote, and each file's bytes."""

    stdout: str
    output: Path
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort") / "phantoms"
    config = PhantomConfig(patients=24, test_patients=1, seed=5, matrix=(64, 72), slices=(20, 24))
    write_cohort(config, root)
    return root


@pytest.fixture(scope="module")
def in_memory(cohort, tmp_path_factory) -> Converted:
    output = tmp_path_factory.mktemp("in_memory") / "d"
    done = run(cohort, output)
    assert done.returncode == 0, done.stderr
    return Converted(done.stdout, output, files(output))


@pytest.fixture
def stand_in(tmp_path) -> list[str]:
    """Options for FlinkRunner with another server in Java's place."""
    java, jar = tmp_path / "java", tmp_path / "job-server.jar"
    java.write_text(STAND_IN.format(python=sys.executable))
    java.chmod(0o755)
    jar.touch()
    return [
        *("--runner=FlinkRunner", f"--flink_job_server_jar={jar}"),
        f"--job_server_java_launcher={java}",
    ]


def require_same(
    done: subprocess.CompletedProcess[str], output: Path, in_memory: Converted
) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == in_memory.stdout.replace(str(in_memory.output), str(output))
    assert files(output) == in_memory.files


@pytest.mark.slow
@pytest.mark.skipif(not flink_jar(), reason=NO_FLINK)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_flink_gives_the_same_bytes(cohort, in_memory, tmp_path, parallelism):
    flags = ["--runner=FlinkRunner", "--flink_master=[local]", f"--parallelism={parallelism}"]
    done = run(cohort, tmp_path / "d", *flags, f"--flink_job_server_jar={flink_jar()}")
    require_same(done, tmp_path / "d", in_memory)


@pytest.mark.slow
def test_a_job_server_of_beams_own_gives_the_same_bytes(cohort, in_memory, tmp_path, stand_in):
    require_same(run(cohort, tmp_path / "d", *stand_in), tmp_path / "d", in_memory)


@pytest.mark.slow
def test_a_job_may_take_longer_than_a_request_to_its_server_may(stand_in):
    options = pipeline_options([*stand_in, "--job_server_timeout=1"])
    with job_server(options) as engine:
        pipeline = make_pipeline(options, 1)
        pipeline | beam.Create([3]) | beam.Map(time.sleep)
        watch(pipeline.run, contextlib.nullcontext(lambda: None), engine=engine)


@pytest.mark.slow
def test_failure_on_a_job_server_is_one_line(cohort, tmp_path, stand_in):
    (tmp_path / "d" / "series.csv").mkdir(parents=True)
    done = run(cohort, tmp_path / "d", *stand_in)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "series.csv" in done.stderr


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_job_server_outlives_its_command(cohort, tmp_path, stand_in, how):
    output = tmp_path / "d"
    process = subprocess.Popen(
        command(cohort, output, *stand_in), stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        # A test runner started in the background ignores SIGINT, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (output / ".state" / "job.json").exists():  # written when the server is ready
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server = children(process.pid)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert errors.count("\n") == (how != signal.SIGKILL), errors
    assert len(server) == 1
    while is_running(server[0]):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_job_server_that_does_not_start_is_one_line(cohort, tmp_path, stand_in):
    (tmp_path / "java").write_text("#!/bin/sh\necho Unable to access jarfile\nexit 3\n")
    done = run(cohort, tmp_path / "d", *stand_in)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "does not start, exit code 3: Unable to access jarfile" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--flink_job_server_jar="], "needs --flink_job_server_jar"),
        (["--flink_job_server_jar=gone.jar"], r"gone\.jar is not a file"),
        (["--job_server_java_launcher=/nowhere/java"], "/nowhere/java is not on the PATH"),
    ],
)
def test_flink_that_cannot_be_had_is_wrong_usage_and_downloads_nothing(stand_in, wrong, message):
    with pytest.raises(UsageError, match=message):
        pipeline_options([*stand_in, *wrong])


def test_pip_is_not_asked_for_what_is_installed_here(stand_in, tmp_path, monkeypatch):
    options = pipeline_options(stand_in)
    monkeypatch.setattr(stager.Stager, "_create_stage_submission_env_dependencies", pytest.fail)
    environments.python_sdk_dependencies(options, str(tmp_path))


def test_workers_of_a_cluster_are_not_taken_for_local_ones(stand_in):
    assert workers_here(pipeline_options(stand_in))
    cluster = ["--flink_master=cluster:8081", "--environment_type=DOCKER"]
    assert not workers_here(pipeline_options([*stand_in, *cluster]))


class Cluster(NamedTuple):
    """A job server that runs already, and the workers of its jobs."""

    engine: Server
    pool: Server
    flags: list[str]
    waits_for_workers: bool  # with a job that is cancelled


Start = Callable[[Path], contextlib.AbstractContextManager[Server]]
engines = pytest.mark.parametrize(
    "start",
    [
        pytest.param(flink, marks=pytest.mark.skipif(not flink_jar(), reason=NO_FLINK), id="flink"),
        pytest.param(beams_own, id="beam"),
    ],
)


@pytest.fixture
def cluster(start: Start, tmp_path: Path) -> Iterator[Cluster]:
    with started(start, tmp_path / "servers") as found:
        yield found


@contextlib.contextmanager
def started(start: Start, directory: Path) -> Iterator[Cluster]:
    with start(directory) as engine, worker_pool(directory) as pool:
        yield Cluster(engine, pool, on(engine, pool), start is flink)


def begun(cohort: Path, output: Path, cluster: Cluster, tmp: Path) -> Command:
    """A job on a cluster that has finished a shard, and has others to do."""
    more = ["--patients_per_shard", "1", "--no_report", *cluster.flags]
    running = Command(command(cohort, output, *more), tmp)
    wait_until(
        lambda: finished(output) or running.process.poll() is not None, BOUND_S, lambda: "no shard"
    )
    for worker in children(cluster.pool.process.pid):  # it shall not be done before it is met
        os.kill(worker, signal.SIGSTOP)
    assert running.process.poll() is None, running.end().stderr
    assert not (output / "manifest.json").exists()
    return running


def go_on(cluster: Cluster) -> None:
    for worker in children(cluster.pool.process.pid):
        os.kill(worker, signal.SIGCONT)


@pytest.mark.slow
@needs_proc
@engines
@pytest.mark.parametrize(
    "how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name
)
def test_interrupted_command_cancels_its_job_and_the_same_command_resumes(
    cohort, by_patient, tmp_path, cluster, how
):
    output = tmp_path / "d"
    running = begun(cohort, output, cluster, tmp_path / "tmp")
    if cluster.waits_for_workers:
        go_on(cluster)
    running.signal(how)
    done = running.end()
    assert done.returncode == 128 + how, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    running.require_nothing_left()
    assert cluster.engine.states() == ["CANCELLED"]
    go_on(cluster)
    assert not (output / ".state" / "running.json").exists()
    require_resumed(cohort, output, cluster, by_patient, tmp_path / "tmp")


def require_resumed(
    cohort: Path, output: Path, cluster: Cluster, expected: dict[str, bytes], tmp: Path
) -> None:
    """The same command makes the dataset, and no shard anew."""
    before = finished(output)
    flags = ["--patients_per_shard", "1", "--no_report", *cluster.flags]
    done = Command(command(cohort, output, *flags), tmp).end()
    assert (done.returncode, done.stderr) == (0, "")
    assert files(output) == expected
    after = finished(output)
    assert {shard: after[shard] for shard in before} == before


@pytest.mark.slow
@needs_proc
@engines
@pytest.mark.parametrize("killed", ["engine", "worker"])
def test_command_ends_with_its_engine_or_worker_and_resumes_on_the_next(
    cohort, by_patient, tmp_path, start, killed
):
    output, tmp = tmp_path / "d", tmp_path / "tmp"
    with started(start, tmp_path / "servers") as cluster:
        running = begun(cohort, output, cluster, tmp)
        if killed == "engine":
            cluster.engine.kill()
            go_on(cluster)
        else:
            for worker in children(cluster.pool.process.pid):
                os.kill(worker, signal.SIGKILL)
        done = running.end()
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert ("was lost" if killed == "engine" else "worker") in done.stderr
        assert done.stderr.endswith("the same command resumes\n")
        running.require_nothing_left()
    with started(start, tmp_path / "servers") as cluster:
        require_resumed(cohort, output, cluster, by_patient, tmp)


@pytest.fixture(scope="module")
def by_patient(cohort, tmp_path_factory) -> dict[str, bytes]:
    """A dataset of a shard a patient, made in memory."""
    output = tmp_path_factory.mktemp("by_patient") / "d"
    done = run(cohort, output, "--patients_per_shard", "1", "--no_report")
    assert done.returncode == 0, done.stderr
    return files(output)


@pytest.mark.slow
@needs_proc
@engines
def test_workers_of_a_killed_command_write_nothing_once_another_job_began(
    cohort, tmp_path, cluster
):
    output, tmp = tmp_path / "d", tmp_path / "tmp"
    alone, other = tmp_path / "alone", ["--seed", "7", "--no_report"]
    done = run(cohort, alone, *other)
    assert done.returncode == 0, done.stderr
    running = begun(cohort, output, cluster, tmp)
    running.process.kill()
    running.end()
    # The engine has not heard of it.
    assert cluster.engine.states() == ["RUNNING"]
    other.append("--overwrite")
    refused = Command(command(cohort, output, *other), tmp).end()
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert "--break_lock" in refused.stderr
    assert cluster.engine.endpoint in refused.stderr
    done = Command(command(cohort, output, *other, "--break_lock"), tmp).end()
    assert (done.returncode, done.stderr) == (0, "")
    assert files(output) == files(alone)
    go_on(cluster)
    wait_until(
        lambda: not children(cluster.pool.process.pid), BOUND_S, lambda: "the job never ends"
    )
    assert files(output) == files(alone)


@pytest.mark.slow
@needs_proc
@engines
def test_two_jobs_work_at_once_and_the_dataset_is_the_later_ones(
    cohort, by_patient, tmp_path, cluster
):
    output, tmp = tmp_path / "d", tmp_path / "tmp"
    earlier = begun(cohort, output, cluster, tmp)
    earlier.process.kill()
    earlier.end()
    before = finished(output)
    flags = ["--patients_per_shard", "1", "--no_report", *cluster.flags, "--break_lock"]
    later = Command(command(cohort, output, *flags), tmp)
    wait_until(lambda: finished(output) != before, BOUND_S, lambda: "no shard of the later job")
    go_on(cluster)
    done = later.end()
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: not children(cluster.pool.process.pid), BOUND_S, lambda: "no end")
    assert files(output) == by_patient
