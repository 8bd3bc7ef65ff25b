"""What a Flink cluster says of itself, on a stand-in of its REST API."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.runners.flink_cluster import require_cluster
from beam_jobs.runners.job_server import job_server
from beam_jobs.runners.options import pipeline_options

ROOM = {"taskmanagers": 2, "slots-total": 4, "slots-available": 4}
POOL = ("--environment_type=EXTERNAL", "--environment_config=localhost:50000")


@pytest.fixture
def cluster() -> Iterator[Callable[..., str]]:
    """Starts one that gives the answer; returns its address."""
    servers = []

    def start(answer: object, status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                assert self.path == "/overview"
                self.send_response(status)
                self.end_headers()
                self.wfile.write(
                    answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                )

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
    require_cluster(options, f"http://{address}")


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
    [(b"<html>", 200, "is not Flink"), ({"a": 1}, 200, "is not Flink"), ({}, 503, "HTTP 503")],
)
def test_what_is_no_flink_is_told(cluster, answer, status, said):
    with pytest.raises(CommandError, match=said):
        requested(cluster(answer, status), *POOL)


def test_a_dead_cluster_is_told_at_once_and_before_a_job_server_is_looked_for():
    options = pipeline_options(
        ["--runner=FlinkRunner", "--job_endpoint=localhost:1", "--flink_master=127.0.0.1:9", *POOL]
    )
    with (
        pytest.raises(CommandError, match=r"--flink_master http://127\.0\.0\.1:9: nothing answers"),
        job_server(options),
    ):
        pass
