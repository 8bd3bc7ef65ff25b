"""The conversion through a Beam job server: Flink's own where its jar is, else a stand-in.

`make test-flink` fetches the jar first. The stand-in is Beam's Python job server in Java's place:
it proves the command's half (submission, worker, messages, and how the server starts and ends),
and nothing about Flink.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.plan import PhantomConfig
from beam_jobs.runners.engines import workers_here
from beam_jobs.runners.job_server import job_server
from beam_jobs.runners.options import make_pipeline, pipeline_options
from beam_jobs.runners.watch import watch
from tests.kills import files

ROOT = Path(__file__).resolve().parents[3]
STAND_IN = """\
#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in --job-port) port=$2;; esac; shift; done
exec {python} -m apache_beam.runners.portability.local_job_service_main --job_port "$port"
"""


def flink_jar() -> str:
    """Flink's job server, or "" where there is none."""
    named = os.environ.get("FLINK_JOB_SERVER_JAR", "")
    fetched = sorted((ROOT / "build" / "flink").glob(f"*-{version('apache-beam')}.jar"))
    return named or next((str(path) for path in fetched), "")


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
    config = PhantomConfig(patients=6, test_patients=1, seed=5, matrix=(32, 40), slices=(12, 16))
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
@pytest.mark.skipif(not shutil.which("java"), reason="no Java")
@pytest.mark.skipif(not flink_jar(), reason="no job server jar of Flink's; see `make test-flink`")
@pytest.mark.parametrize("parallelism", [1, 2])
def test_flink_gives_the_same_bytes(cohort, in_memory, tmp_path, parallelism):
    flink = ["--runner=FlinkRunner", "--flink_master=[local]", f"--parallelism={parallelism}"]
    done = run(cohort, tmp_path / "d", *flink, f"--flink_job_server_jar={flink_jar()}")
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
@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and a parent's death signal")
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


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, whose exit code only waits to be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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


def test_workers_of_a_cluster_are_not_taken_for_local_ones(stand_in):
    assert workers_here(pipeline_options(stand_in))
    cluster = ["--flink_master=cluster:8081", "--environment_type=DOCKER"]
    assert not workers_here(pipeline_options([*stand_in, *cluster]))
