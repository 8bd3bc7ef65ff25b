"""Engines and workers as processes of their own, and what the processes of a command leave behind.

`make test-prism` builds Prism. Beam's Python job server runs everywhere; it is no engine to compute
on, but takes jobs, states and cancellations as others do: it says CANCELLED at once and works on.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).resolve().parents[1]
BOUND_S = 60.0  # that a command may take to end behind a signal, a death or an error
NO_FLINK = "no Java, or no job server jar of Flink's; see `make test-flink`"
NO_PRISM = "no Prism of the locked Beam's version; see `make test-prism`"
_MARK = "VOXELBEAM_TEST_COMMAND"
_READY_S = 60.0
_GRACE_S = 15.0  # of processes behind the command that had them; the pool gives a worker 10
# Said by who becomes the process, not by a `preexec_fn`: in a fork of a process that speaks gRPC
# its threads begin anew, and complain.
_BECOME = "import os, signal, sys; {}; os.execvp(sys.argv[1], sys.argv[1:])"
# What a shell lets its background ignore is not ignored here.
_HEEDING = _BECOME.format("[signal.signal(n, signal.SIG_DFL) for n in (1, 2, 15)]")
_MORTAL = _BECOME.format(  # PR_SET_PDEATHSIG, prctl(2)
    "sys.platform == 'linux' and __import__('ctypes').CDLL(None).prctl(1, signal.SIGKILL)"
)

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="/proc, a parent's death signal")


def prism_binary() -> str:
    """Prism of the locked Beam's version, or "" where there is none."""
    built = ROOT / "build" / "prism" / version("apache-beam") / "prism"
    return os.environ.get("PRISM", "") or (str(built) if built.exists() else "")


def flink_jar() -> str:
    """Flink's job server, or "" where there is none, or no Java to run it."""
    named = os.environ.get("FLINK_JOB_SERVER_JAR", "")
    fetched = sorted((ROOT / "build" / "flink").glob(f"*-{version('apache-beam')}.jar"))
    found = named or next((str(path) for path in fetched), "")
    return found if shutil.which("java") else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A job server, or a worker pool.

    Attributes:
      process: what runs it.
      port: where it listens on this machine.
      log: what it prints.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.port}"

    def states(self) -> list[str]:
        """Of every job that a job server has had, "DONE", "CANCELLED", ..."""
        return states_at(self.endpoint)

    def kill(self) -> None:
        """kill -9, of its workers too."""
        for pid in (*children(self.process.pid), self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def states_at(endpoint: str) -> list[str]:
    """Of every job that a job server has had, "DONE", "CANCELLED", ..."""
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_job_api_pb2_grpc.JobServiceStub(channel)
        found = stub.GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=10)
    return [beam_job_api_pb2.JobState.Enum.Name(job.state) for job in found.job_info]


@contextmanager
def prism(directory: Path) -> Iterator[Server]:
    """Prism, waiting for jobs."""
    port = free_port()
    words = [prism_binary(), f"--job_port={port}", "--serve_http=false"]
    with _server("prism", words, port, directory) as server:
        yield server


@contextmanager
def beams_own(directory: Path) -> Iterator[Server]:
    """Beam's Python job server."""
    port = free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    with _server("server", [*_python(module), f"--job_port={port}"], port, directory) as server:
        yield server


@contextmanager
def flink(directory: Path) -> Iterator[Server]:
    """Flink's job server, with a Flink of its own."""
    port = free_port()
    words = [
        *("java", f"-Djava.io.tmpdir={directory}", "-jar", flink_jar(), "--flink-master=[local]"),
        *(f"--job-port={port}", "--artifact-port=0", "--expansion-port=0"),
        f"--artifacts-dir={directory / 'artifacts'}",
    ]
    with _server("flink", words, port, directory) as server:
        yield server


@contextmanager
def worker_pool(directory: Path, python: str = sys.executable) -> Iterator[Server]:
    """Beam's worker pool: it starts a process for every worker that an engine asks for.

    Args:
      directory: for its log and its temporary files.
      python: another environment's, which has a package of this project; else this one's runs.
    """
    port = free_port()
    module = "apache_beam.runners.worker.worker_pool_main"
    words = [*_python(module, python), f"--service_port={port}"]
    with _server("pool", words, port, directory, python) as server:
        yield server


def on(engine: Server, pool: Server | None = None) -> list[str]:
    """A command's flags for its job on an engine, with workers in itself or of a pool."""
    flags = ["--runner=PortableRunner", f"--job_endpoint={engine.endpoint}"]
    if pool is None:
        return [*flags, "--environment_type=LOOPBACK"]
    config = f"--environment_config={pool.endpoint}"
    return [*flags, "--environment_type=EXTERNAL", config, "--shared_disk"]


def _python(module: str, python: str = sys.executable) -> list[str]:
    return [python, "-W", "ignore", "-m", module]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@contextmanager
def _server(
    name: str, words: Sequence[str], port: int, directory: Path, python: str = sys.executable
) -> Iterator[Server]:
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}-{port}.log"
    # The pool calls "python", and its workers import what stands here, or there.
    root = ROOT if python == sys.executable else directory
    environment = {
        **os.environ,
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "TMPDIR": str(directory),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _MORTAL, *words], cwd=root, env=environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    server = Server(process=process, port=port, log=log)
    try:
        with grpc.insecure_channel(server.endpoint) as channel:
            grpc.channel_ready_future(channel).result(timeout=_READY_S)
        yield server
    finally:
        if process.poll() is None:
            server.kill()


class Command:
    """A command that runs, with all its processes, wherever they wander.

    Args:
      words: its command line.
      tmp: a directory for its temporary files; made.
    """

    def __init__(self, words: Sequence[str], tmp: Path) -> None:
        tmp.mkdir(parents=True, exist_ok=True)
        self._tmp, self._mark = tmp, f"{time.time_ns():x}"
        # In a session of its own, as a terminal's job is in a process group of its own.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HEEDING, *words], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp), _MARK: self._mark},
        )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        """As they come: Ctrl-C and a lost terminal to the whole group, others to the command."""
        if number in (signal.SIGINT, signal.SIGHUP):
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def end(self, within: float = BOUND_S) -> subprocess.CompletedProcess[str]:
        """How it ended, which is to be within some seconds."""
        try:
            out, errors = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            found = self.left()
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            _, errors = self.process.communicate()
            pytest.fail(f"still running after {within:.0f} s: {list(found.values())}, {errors!r}")
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, out, errors)

    def left(self) -> dict[int, str]:
        """Processes of the command that live, and their command lines."""
        wanted = f"{_MARK}={self._mark}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = line.decode(errors="replace")[:300]
            except (OSError, ValueError):
                continue
        return {pid: line for pid, line in found.items() if is_running(pid)}

    def require_nothing_left(self) -> None:
        """No process of it lives, nor does a file lie where it had its temporary ones."""
        wait_until(lambda: not self.left(), _GRACE_S, lambda: f"left running: {self.left()}")
        assert sorted(str(path) for path in self._tmp.rglob("*")) == []


def children(pid: int) -> list[int]:
    """Processes that another one started, by whichever of its threads, and that live."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [child for child in found if is_running(child)]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, whose exit code only waits to be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(
    condition: Callable[[], object], within: float, otherwise: Callable[[], str]
) -> None:
    """Waits for a condition to hold; fails the test with a word of why it matters."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(otherwise())
        time.sleep(0.02)
