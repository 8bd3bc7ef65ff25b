"""Object stores on this machine, spoken to over sockets: emulators of gs:// and s3://.

Each stands behind a `Front`, which passes requests on, writes down what was requested, and fails on
demand as stores do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import logging
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "voxelbeam-test"
_HOP = ("connection", "content-length", "expect", "transfer-encoding")


class Dialect:
    """How a front's clients and its emulator differ; this one: not at all."""

    def request(self, method: str, path: str, headers: dict[str, str]) -> int | None:
        """Changes a request's headers for the emulator; a status answers in its place."""

    def host(self, path: str) -> str | None:
        """Where a request goes other than to the emulator, as host and port."""

    def target(self, path: str) -> str:
        """A request's path as the emulator wants it quoted."""
        return path

    def answer(self, method: str, path: str, status: int) -> dict[str, str]:
        """Headers that the answer has besides the emulator's."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One request that came in.

    Attributes:
      method, path: of the request; the path with its query, unquoted.
      range: its Range header.
      status: of the answer.
      sent: bytes of the answer.
    """

    method: str
    path: str
    range: str
    status: int
    sent: int


class Front:
    """A loopback server in front of an emulator.

    Attributes:
      url: where it listens.
      requests: the requests so far.
      fault: takes (method, unquoted path), gives a status to fail with, or None to pass on.
      delay: seconds each answer takes longer, as over a distance.
    """

    def __init__(self, backend: str, dialect: Dialect | None = None) -> None:
        speaks = dialect or Dialect()
        self.requests: list[Request] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.delay = 0.0
        self._one_at_a_time = threading.Lock()
        front = self
        host = urllib.parse.urlsplit(backend).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:  # the client went away
                    self.close_connection = True

            def serve(self) -> None:
                # A condition is looked at and acted upon in one step.
                conditional = _GENERATION in self.headers
                with front._one_at_a_time if conditional else contextlib.nullcontext():
                    self.pass_on()

            def pass_on(self) -> None:
                body = self.body()
                path = urllib.parse.unquote(self.path)
                time.sleep(front.delay)
                status = front.fault(self.command, path)
                sent = {
                    name: value for name, value in self.headers.items() if name.lower() not in _HOP
                }
                if status is None:
                    status = speaks.request(self.command, path, sent)
                headers: list[tuple[str, str]] = []
                content = b'{"error": {"message": "refused by the test"}}'
                if status is None:
                    connection = http.client.HTTPConnection(
                        speaks.host(self.path) or host, timeout=60
                    )
                    sent["Content-Length"] = str(len(body))
                    connection.request(
                        self.command, speaks.target(self.path), body=body, headers=sent
                    )
                    answer = connection.getresponse()
                    content, status = answer.read(), answer.status
                    headers = answer.getheaders()
                    headers += speaks.answer(self.command, path, status).items()
                    connection.close()
                bodiless = self.command == "HEAD" or status in (204, 304)
                front.requests.append(
                    Request(
                        method=self.command,
                        path=path,
                        range=self.headers.get("Range") or "",
                        status=status,
                        sent=0 if bodiless else len(content),
                    )
                )
                self.send_response(status)
                length = str(len(content))
                for name, value in headers:
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                    elif name.lower() not in ("connection", "content-length", "transfer-encoding"):
                        self.send_header(name, value)
                if status not in (204, 304):
                    self.send_header("Content-Length", length)
                self.end_headers()
                if not bodiless:
                    self.wfile.write(content)

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = serve  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


_GENERATION = "x-goog-if-generation-match"


class _Google(Dialect):
    """Google's XML API, spoken to an emulator of S3: signatures, versions and copies differ."""

    def __init__(self) -> None:
        self._generations: dict[str, int] = {}
        self._count = 0

    def request(self, method: str, path: str, headers: dict[str, str]) -> int | None:
        lower = {name.lower(): name for name in headers}
        headers[lower.get("authorization", "Authorization")] = _SIGNED
        if source := lower.get("x-goog-copy-source"):
            headers["x-amz-copy-source"] = headers.pop(source)
        if condition := lower.get(_GENERATION):
            wanted = int(headers.pop(condition))
            if wanted != self._generations.get(path.partition("?")[0], 0):
                return 412
        return None

    def target(self, path: str) -> str:
        name, mark, query = path.partition("?")
        return urllib.parse.quote(urllib.parse.unquote(name)) + mark + query

    def answer(self, method: str, path: str, status: int) -> dict[str, str]:
        name, _, query = path.partition("?")
        if status < 300 and method == "DELETE" and not query:
            self._generations.pop(name, None)
        written = (method == "PUT" and not query) or (method == "POST" and "uploadId=" in query)
        if status < 300 and written:
            self._count += 1
            self._generations[name] = self._count
        generation = self._generations.get(name)
        return {"x-goog-generation": str(generation)} if generation else {}


# Without a signature moto takes a request for a stranger's; it does not check what one says.
_SIGNED = (
    "AWS4-HMAC-SHA256 Credential=made-up/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emulator:
    """An emulated store with one bucket, `BUCKET`.

    Attributes:
      scheme: "gs" or "s3".
      front: what clients talk to.
      backend: the emulator itself, for the tests' own looking and changing.
      environment: what a process needs to find it.
      moto: whether the emulator itself is moto.
    """

    scheme: str
    front: Front
    backend: str
    environment: dict[str, str]
    moto: bool = True

    def path(self, *names: str) -> str:
        """`gs://bucket/names...`"""
        return "/".join((f"{self.scheme}://{BUCKET}", *names))

    def _request(self, name: str, method: str, data: bytes | None = None) -> bytes:
        url = f"{self.backend}/{BUCKET}/{urllib.parse.quote(name)}"
        headers = {"Content-Type": "application/octet-stream"}
        if self.moto:
            headers["Authorization"] = _SIGNED
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def put(self, name: str, data: bytes) -> None:
        """Writes an object."""
        self._request(name, "PUT", data)

    def get(self, name: str) -> bytes:
        """Reads an object."""
        return self._request(name, "GET")

    def delete(self, name: str) -> None:
        """Deletes an object."""
        if self.moto:
            self._request(name, "DELETE")
            return
        quoted = urllib.parse.quote(name, safe="")
        url = f"{self.backend}/storage/v1/b/{BUCKET}/o/{quoted}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=60).close()

    def names(self, prefix: str) -> list[str]:
        """Names of the objects below a prefix, without it."""
        query = urllib.parse.urlencode({"list-type": 2, "prefix": f"{prefix}/", "max-keys": 10_000})
        url = f"{self.backend}/{BUCKET}?{query}"
        pattern = r"<Key>(.*?)</Key>"
        if not self.moto:
            url = f"{self.backend}/storage/v1/b/{BUCKET}/o?{query}"
            pattern = r'"name": "(.*?)"'
        headers = {"Authorization": _SIGNED} if self.moto else {}
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = re.findall(pattern, answer.read().decode())
        return sorted(name.removeprefix(f"{prefix}/") for name in found)

    def upload(self, directory: Path, prefix: str) -> None:
        """Puts a directory's files below a prefix."""
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(directory)}", path.read_bytes())


@contextmanager
def _moto() -> Iterator[str]:
    """moto's address."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    # All of a process' servers share what they hold.
    urllib.request.urlopen(f"{address}/moto-api/reset", data=b"", timeout=60).close()
    try:
        yield address
    finally:
        server.stop()


@contextmanager
def s3() -> Iterator[Emulator]:
    """moto, as a server."""
    with _moto() as backend:
        front = Front(backend)
        environment = {
            "AWS_ENDPOINT_URL": front.url,
            "AWS_ACCESS_KEY_ID": "made-up",
            "AWS_SECRET_ACCESS_KEY": "made-up",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield from _running(
            Emulator(scheme="s3", front=front, backend=backend, environment=environment)
        )


@contextmanager
def gs(dialect: Dialect | None = None) -> Iterator[Emulator]:
    """moto behind a front that speaks Google's XML API."""
    with _moto() as backend:
        front = Front(backend, dialect=dialect or _Google())
        yield from _running(
            Emulator(
                scheme="gs",
                front=front,
                backend=backend,
                environment={"STORAGE_EMULATOR_HOST": front.url},
            )
        )


@contextmanager
def gs_and_beams() -> Iterator[tuple[Emulator, Emulator]]:
    """What our files lie in, and where Beam's own client stages a job: Google's JSON API.

    Both stand behind one address, for one variable names it.
    """
    from gcp_storage_emulator.server import Server

    server = Server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server._api.daemon = True
    server.start()
    try:
        address = "{}:{}".format(*server._api._httpd.server_address)
        with gs(dialect=_GoogleAndBeam(address)) as store:
            backend = f"http://{address}"
            yield store, dataclasses.replace(store, backend=backend, moto=False)
    finally:
        server._api._httpd.shutdown()


class _GoogleAndBeam(_Google):
    def __init__(self, json_host: str) -> None:
        super().__init__()
        self._json_host = json_host

    def _is_json(self, path: str) -> bool:
        return path.startswith(("/storage/v1/", "/upload/", "/download/"))

    def host(self, path: str) -> str | None:
        return self._json_host if self._is_json(path) else None

    def request(self, method: str, path: str, headers: dict[str, str]) -> int | None:
        return None if self._is_json(path) else super().request(method, path, headers)

    def target(self, path: str) -> str:
        return path if self._is_json(path) else super().target(path)

    def answer(self, method: str, path: str, status: int) -> dict[str, str]:
        return {} if self._is_json(path) else super().answer(method, path, status)


def _running(emulator: Emulator) -> Iterator[Emulator]:
    emulator._request("", "PUT")
    try:
        yield emulator
    finally:
        emulator.front.close()
