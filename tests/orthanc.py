"""A real Orthanc with its DICOMweb plugin on this machine; tests skip where it is not installed.

    with orthanc(tmp_path) as server:
        server.store(paths)
        files.listing(server.root)

Every server has a configuration, an index and a storage of its own below the directory it is given.
It listens on all interfaces (1.10 knows no other way) and answers this machine alone.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.stores import Dialect, Front

PLUGINS = (
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/lib/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/local/share/orthanc/plugins/libOrthancDicomWeb.so"),
)
WEB = "/dicom-web"
_READY_S = 30.0


def require() -> tuple[str, Path]:
    """(program, plugin) of the installed Orthanc; the test is skipped where there is none."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed (Debian: orthanc)")
    plugin = next((path for path in PLUGINS if path.is_file()), None)
    if plugin is None:
        pytest.skip("Orthanc's DICOMweb plugin is not installed (Debian: orthanc-dicomweb)")
    return program, plugin


@dataclasses.dataclass(kw_only=True)
class Orthanc:
    """A server; `start` and `kill` it as often as is needed: what it holds stays.

    Attributes:
      directory: of its configuration, index and storage.
      port: where it listens.
      users: name → password, empty for a server that asks nobody.
    """

    directory: Path
    port: int
    users: Mapping[str, str] = dataclasses.field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its own REST interface."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def root(self) -> str:
        """What `--input` takes."""
        return f"dicomweb+{self.url}{WEB}"

    @property
    def storage(self) -> Path:
        """The directory of its instances, one file each, as they came in."""
        return self.directory / "storage"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        program, plugin = require()
        configuration = {
            "Name": "voxelbeam-test",
            "StorageDirectory": str(self.storage),
            "IndexDirectory": str(self.directory / "index"),
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(self.users),
            "RegisteredUsers": dict(self.users),
            "DicomServerEnabled": False,
            "OverwriteInstances": True,
            "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": f"{WEB}/"},
        }
        file = self.directory / "orthanc.json"
        file.write_text(json.dumps(configuration))
        with (self.directory / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen([program, str(file)], stdout=log, stderr=log)
        end = time.monotonic() + _READY_S
        while True:
            try:
                self.get(f"{WEB}/studies?limit=1")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    said = (self.directory / "orthanc.log").read_text(errors="replace")
                    raise RuntimeError(f"Orthanc does not start: {said[-1000:]}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends it as a service manager would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it amid whatever it sends."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """The answer of its own REST interface, as its first user.

        Raises:
          urllib.error.HTTPError, URLError: it refuses, or is not there.
        """
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        if self.users:
            name, password = next(iter(self.users.items()))
            token = base64.b64encode(f"{name}:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def get(self, path: str) -> Any:
        """An answer as what its JSON says."""
        return json.loads(self.request("GET", path))

    def store(self, paths: Iterable[Path]) -> list[str]:
        """Stores files as they are; Orthanc's own ids of their instances, in that order.

        Raises:
          urllib.error.HTTPError: it does not take one for DICOM.
        """
        return [
            json.loads(self.request("POST", "/instances", path.read_bytes()))["ID"]
            for path in paths
        ]

    def below(self, level: str, uid: str) -> str:
        """Orthanc's own path of a patient, study, series or instance ("/series/…") by its UID."""
        key = {"Patient": "PatientID", "Instance": "SOPInstanceUID"}.get(
            level, f"{level}InstanceUID"
        )
        kinds = {"Patient": "patients", "Study": "studies", "Series": "series"}
        query = {"Level": level, "Query": {key: uid}}
        found = json.loads(self.request("POST", "/tools/find", json.dumps(query).encode()))
        return f"/{kinds.get(level, 'instances')}/{found[0]}"

    def delete(self, level: str, uid: str) -> None:
        """Deletes a patient, study, series or instance by its UID (a patient by its id)."""
        self.request("DELETE", self.below(level, uid))

    def file_of(self, data: bytes) -> Path:
        """The file of the storage that holds an instance."""
        for path in self.storage.rglob("*"):
            if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
                return path
        raise FileNotFoundError("Orthanc holds no such instance")


@contextlib.contextmanager
def orthanc(directory: Path, *, users: Mapping[str, str] | None = None) -> Iterator[Orthanc]:
    """A running server below a directory of its own.

    Args:
      directory: for its files; made where it is not there.
      users: name → password; None for a server that asks nobody.
    """
    require()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("storage", "index"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    server = Orthanc(directory=directory, port=port, users=users or {})
    server.start()
    try:
        yield server
    finally:
        server.stop()


class BearerCheck(Dialect):
    """A front that lets a request pass by its bearer token alone, which the server never sees."""

    def __init__(self, token: str) -> None:
        self._token = token

    def request(self, method: str, path: str, headers: dict[str, str]) -> int | None:
        given = [headers.pop(name) for name in list(headers) if name.lower() == "authorization"]
        return None if given == [f"Bearer {self._token}"] else 401


@contextlib.contextmanager
def front_of(
    server: Orthanc, dialect: Dialect | None = None, *, certificate: Path | None = None
) -> Iterator[tuple[Front, str]]:
    """(front that writes down every request, what `--input` takes of it).

    Args:
      server: what it stands before.
      dialect: what it does with requests.
      certificate: with its key behind it, for https; None for http.
    """
    front = Front(server.url, dialect=dialect)
    url = front.url
    if certificate is not None:  # Debian's Orthanc 1.10 ends at the first such request
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        front._server.socket = context.wrap_socket(front._server.socket, server_side=True)
        url = url.replace("http:", "https:")
    try:
        yield front, f"dicomweb+{url}{WEB}"
    finally:
        front.close()
