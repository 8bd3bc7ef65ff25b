"""What a Flink cluster is asked, on a stand-in of its REST API."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.runners import flink_cluster
from beam_jobs.runners.engines import Engine
from beam_jobs.runners.flink_cluster import FlinkCluster
from beam_jobs.runners.job_server import job_server
from beam_jobs.runners.options import pipeline_options
from beam_jobs.runners.watch import watch

ROOM = {"taskmanagers": 2, "slots-total": 4, "slots-available": 4}
POOL = ("--environment_type=EXTERNAL", "--environment_config=localhost:50000")


@pytest.fixture
def cluster() -> Iterator[Callable[..., str]]:
    """Starts one that gives the answer; returns its address."""
    servers = []

    def start(answer: object, status: int = 200, jobs: Sequence[dict[str, str]] = ()) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.say(answer if self.path == "/overview" else {"jobs": list(jobs)})

            def do_PATCH(self) -> None:
                (job,) = [job for job in jobs if self.path == f"/jobs/{job['jid']}?mode=cancel"]
                states = {"RUNNING": "CANCELLING", "CANCELLING": "CANCELED"}
                job["state"] = states[job["state"]]
                self.say({})

            def say(self, what: object) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(what if isinstance(what, bytes) else json.dumps(what).encode())

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def requested(address: str, *more: str) -> None:
    """The command's way to the check."""
    options = pipeline_options(
        ["--runner=FlinkRunner", "--job_endpoint=localhost:1", f"--flink_master={address}", *more]
    )
    FlinkCluster.found(options, f"http://{address}")


def test_a_cluster_with_room_is_no_news(cluster, capsys):
    requested(cluster(ROOM), *POOL, "--parallelism=4")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("overview", "parallelism", "said"),
    [
        ({"taskmanagers": 0, "slots-total": 0, "slots-available": 0}, 1, "0 of 0 slots free"),
        ({**ROOM, "slots-available": 0}, 1, "0 of 4 slots free and the job needs 1"),
        (ROOM, 8, "4 of 4 slots free and the job needs 8"),
    ],
)
def test_a_job_that_would_wait_for_slots_is_told_so(cluster, capsys, overview, parallelism, said):
    requested(cluster(overview), *POOL, f"--parallelism={parallelism}")
    assert said in capsys.readouterr().err


def test_loopback_with_several_task_managers_is_refused_with_the_reason(cluster):
    with pytest.raises(UsageError, match=r"2 task managers, whose workers .* end each other"):
        requested(cluster(ROOM), "--environment_type=LOOPBACK")
    requested(cluster({**ROOM, "taskmanagers": 1}), "--environment_type=LOOPBACK")


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (b"<html>", 200, "is not Flink"),
        (b"[" * 100_000, 200, "is not Flink"),
        ({"a": 1}, 200, "is not Flink"),
        ({**ROOM, "taskmanagers": "two"}, 200, "is not Flink"),
        ({**ROOM, "slots-available": None}, 200, "is not Flink"),
        ({}, 503, "HTTP 503"),
    ],
)
def test_what_is_no_flink_is_told(cluster, answer, status, said):
    with pytest.raises(CommandError, match=said):
        requested(cluster(answer, status), *POOL)


@pytest.mark.parametrize("jobs", [[1], [{"jid": "1"}]])
def test_jobs_that_are_none_of_flinks_are_told(cluster, jobs):
    with pytest.raises(CommandError, match="is not Flink"):
        requested(cluster(ROOM, jobs=jobs), *POOL)


@pytest.fixture
def speaker() -> Iterator[Callable[[bytes, float], str]]:
    """Starts what says these bytes to whoever asks, one by one with a pause; its address."""
    listeners = []

    def start(words: bytes, pause_s: float) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def speak() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as asker:
                asker.recv(1 << 16)
                for word in words:
                    asker.sendall(bytes([word]))
                    time.sleep(pause_s)

        threading.Thread(target=speak, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    "words", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"]
)
def test_what_speaks_no_http_or_breaks_off_is_told(speaker, words):
    with pytest.raises(CommandError, match="is not Flink"):
        requested(speaker(words, 0), *POOL)


def test_an_answer_that_trickles_in_is_not_waited_for(speaker, monkeypatch):
    monkeypatch.setattr(flink_cluster, "_ANSWER_S", 0.2)
    with pytest.raises(CommandError, match="nothing answers there within"):
        requested(speaker(b"HTTP/1.1 200 OK\r\n\r\n" * 9, 0.02), *POOL)


def test_a_dead_cluster_is_told_at_once_and_before_a_job_server_is_looked_for():
    options = pipeline_options(
        ["--runner=FlinkRunner", "--job_endpoint=localhost:1", "--flink_master=127.0.0.1:9", *POOL]
    )
    with (
        pytest.raises(CommandError, match=r"--flink_master http://127\.0\.0\.1:9: nothing answers"),
        job_server(options),
    ):
        pass


def test_only_the_job_that_came_since_is_cancelled_and_its_end_is_waited_for(cluster, monkeypatch):
    monkeypatch.setattr(flink_cluster, "_AGAIN_S", 0.01)
    older = {"jid": "1", "name": "mine", "state": "RUNNING"}
    ours, other = {**older, "jid": "2"}, {**older, "jid": "3", "name": "other"}
    jobs = [older]
    master = f"http://{cluster(ROOM, jobs=jobs)}"
    found = FlinkCluster.found(pipeline_options([]), master)
    jobs += [ours, other]
    found.end_job("mine")
    assert [job["state"] for job in jobs] == ["RUNNING", "CANCELED", "RUNNING"]


class CalledOff:
    """A result whose job server says at once that the job is cancelled, as Beam's for Flink does.

    Args:
      gone: the job server does not answer any more.
    """

    def __init__(self, gone: bool) -> None:
        self.state, self._job_id, self._gone = "RUNNING", "id-7", gone

    def cancel(self) -> None:
        if self._gone:
            raise RuntimeError("the job server is gone")
        self.state = "CANCELLED"

    def wait_until_finish(self) -> None:
        raise RuntimeError("connection lost")


@pytest.mark.parametrize("gone", [False, True])
def test_the_cluster_itself_ends_the_job_whatever_its_job_server_says(cluster, monkeypatch, gone):
    monkeypatch.setattr(flink_cluster, "_AGAIN_S", 0.01)
    jobs = list[dict[str, str]]()
    found = FlinkCluster.found(pipeline_options([]), f"http://{cluster(ROOM, jobs=jobs)}")
    jobs.append({"jid": "2", "name": "mine", "state": "RUNNING"})
    engine = Engine(name="Flink", place=found.master, job_name="mine", cluster=found)
    with pytest.raises(CommandError, match="connection lost"):
        watch(lambda: CalledOff(gone), contextlib.nullcontext(lambda: None), engine=engine)
    assert jobs[0]["state"] == "CANCELED"
