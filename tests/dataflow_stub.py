"""A stand-in for Dataflow's endpoint and for Google's token endpoint, on this machine.

It takes a job, writes it down and says at once that it is done, or that it runs until it is
cancelled. It runs nothing.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT, REGION = "made-up-project", "us-central1"
_JOBS = re.compile(r"/v1b3/projects/([^/]+)/locations/([^/]+)/jobs(?:/([^/?]+))?(/messages)?")


class DataflowStub:
    """Attributes:
    url: the endpoint; the name and not the address, which Beam refuses.
    jobs: the jobs that were posted.
    polled: how often one was requested.
    tokens: how often a token was requested.
    cancelled: how often a cancellation was requested.
    endless: the job runs until it is cancelled.
    forbids: cancelling is forbidden.
    """

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.polled = self.tokens = self.cancelled = 0
        self.endless = self.forbids = False
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/token":
                    stub.tokens += 1
                    self.answer({"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})
                elif _JOBS.fullmatch(self.path.partition("?")[0]):
                    stub.jobs.append(json.loads(body))
                    self.answer(self.job("JOB_STATE_PENDING"))
                else:
                    self.answer({"error": {"message": self.path}}, 404)

            def do_PUT(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                stub.cancelled += asked.get("requestedState") in (5, "JOB_STATE_CANCELLED")
                if stub.forbids:
                    self.answer({"error": {"message": "not yours", "code": 403}}, 403)
                else:
                    self.answer(self.job("JOB_STATE_CANCELLING"))

            def do_GET(self) -> None:
                found = _JOBS.fullmatch(self.path.partition("?")[0])
                if found is None:
                    self.answer({"error": {"message": self.path}}, 404)
                elif found[4]:
                    self.answer({"jobMessages": []})
                else:
                    stub.polled += 1
                    ended = "JOB_STATE_CANCELLED" if stub.cancelled else "JOB_STATE_DONE"
                    lasts = stub.endless and (stub.forbids or not stub.cancelled)
                    self.answer(self.job("JOB_STATE_RUNNING" if lasts else ended))

            def job(self, state: str) -> dict[str, Any]:
                return {
                    "id": "2026-01-01_00_00_00-1",
                    "projectId": PROJECT,
                    "location": REGION,
                    "name": stub.jobs[-1].get("name", ""),
                    "type": "JOB_TYPE_BATCH",
                    "currentState": state,
                    "createTime": "2026-01-01T00:00:00Z",
                }

            def answer(self, content: dict[str, Any], status: int = 200) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://localhost:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def dataflow_stub() -> Iterator[DataflowStub]:
    stub = DataflowStub()
    try:
        yield stub
    finally:
        stub.close()


def write_service_account(path: Path, token_uri: str) -> None:
    """Writes the key file of an account that does not exist, its key made on the spot."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "made-up",
        "private_key": key.decode(),
        "client_email": f"nobody@{PROJECT}.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }
    path.write_text(json.dumps(account), encoding="utf-8")
