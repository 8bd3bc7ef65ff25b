"""Azurite, Microsoft's emulator of Azure's blobs: az:// on this machine, where npm is there."""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import hashlib
import hmac
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stores import BUCKET, Emulator, Front

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "azurite"
VERSION = "3.35.0"
# The account that every Azurite has.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def program() -> Path:
    """Azurite's blob server, installed where it is not yet.

    The test is skipped where there is no npm, or npm cannot install it.
    """
    main = HOME / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if main.is_file():
        return main
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Azurite needs npm, which is not installed")
    HOME.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--no-audit", "--no-fund", f"azurite@{VERSION}"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    if not main.is_file():
        pytest.skip(f"npm could not install Azurite: {done.stderr.strip()[-200:]}")
    return main


@dataclasses.dataclass(frozen=True, kw_only=True)
class Azurite(Emulator):
    """Azurite with one container, `BUCKET`."""

    def _request(self, name: str, method: str, data: bytes | None = None, query: str = "") -> bytes:
        path = urllib.parse.quote(f"/{ACCOUNT}/{BUCKET}" + (f"/{name}" if name else ""))
        headers = {
            "x-ms-blob-type": "BlockBlob",
            "x-ms-date": email.utils.formatdate(usegmt=True),
            "x-ms-version": "2021-12-02",
        }
        length = str(len(data)) if data else ""
        parameters = "".join(f"\n{k}:{v}" for k, v in sorted(urllib.parse.parse_qsl(query)))
        text = "\n".join(
            [
                *(method, "", "", length, "", "application/octet-stream", *[""] * 6),
                *(f"{key}:{value}" for key, value in sorted(headers.items())),
                f"/{ACCOUNT}{path}{parameters}",
            ]
        )
        key = base64.b64decode(KEY)
        signature = base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{signature}"
        headers["Content-Type"] = "application/octet-stream"
        url = f"{self.backend}{path}" + (f"?{query}" if query else "")
        request = urllib.request.Request(url, data=data or b"", method=method, headers=headers)
        if method != "PUT":
            request.data = None
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: bytes = answer.read()
            return found

    def names(self, prefix: str) -> list[str]:
        query = urllib.parse.urlencode(
            {"comp": "list", "prefix": f"{prefix}/", "restype": "container"}
        )
        found = re.findall(r"<Name>(.*?)</Name>", self._request("", "GET", query=query).decode())
        return sorted(name.removeprefix(f"{prefix}/") for name in found)


@contextmanager
def az() -> Iterator[Emulator]:
    """Azurite, in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["node", str(program()), "--inMemoryPersistence", "--disableTelemetry", "--silent"]
        + ["--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", str(port)],
        cwd=HOME, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(port)
        front = Front(f"http://127.0.0.1:{port}")
        emulator = Azurite(
            scheme="az",
            front=front,
            backend=f"http://127.0.0.1:{port}",
            environment={
                "AZURE_STORAGE_CONNECTION_STRING": f"AccountName={ACCOUNT};AccountKey={KEY};"
                f"BlobEndpoint={front.url}/{ACCOUNT};"
            },
            moto=False,
        )
        emulator._request("", "PUT", query="restype=container")
        yield emulator
        front.close()
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("Azurite does not listen")
