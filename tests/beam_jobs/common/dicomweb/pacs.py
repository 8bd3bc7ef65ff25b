"""A small DICOMweb server in threads of the test, which can be made to do what Orthanc cannot.

with running(Pacs({STUDY: {SERIES: {uid: file_of(uid)}}})) as pacs:
    files.listing(pacs.root)
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

STUDY, SERIES = "1.2.1", "1.2.1.1"
Holdings = dict[str, dict[str, dict[str, bytes]]]


def file_of(uid: str, size: int = 3000, *, inside: bytes = b"") -> bytes:
    """A DICOM file as far as anything here looks at one: file meta group, then bytes.

    Args:
      uid: SOP Instance UID.
      size: of what follows the meta group.
      inside: stands amid that.
    """
    value = uid.encode() + b"\0" * (len(uid) % 2)
    version = struct.pack("<HH2s2xI", 2, 1, b"OB", 2) + b"\0\1"
    meta = version + struct.pack("<HH2sH", 2, 3, b"UI", len(value)) + value
    noise = random.Random(uid).randbytes(size)
    dataset = struct.pack("<HH2sH", 8, 0x18, b"UI", len(value)) + value
    return bytes(128) + b"DICM" + meta + dataset + noise[: size // 2] + inside + noise[size // 2 :]


def holdings(instances: int = 5, series: int = 1, size: int = 3000) -> Holdings:
    """A study of so many series of so many instances each."""
    uids = {
        f"{STUDY}.{n}": [f"{STUDY}.{n}.{k}" for k in range(1, instances + 1)]
        for n in range(1, series + 1)
    }
    return {
        STUDY: {name: {uid: file_of(uid, size) for uid in found} for name, found in uids.items()}
    }


class Asked(NamedTuple):
    """A request."""

    method: str
    within: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What is sent instead of the usual."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Cut(NamedTuple):
    """The usual answer up to so many bytes of its body; then the connection is closed."""

    after: int


class Pacs:
    """What the server holds, and how it behaves.

    Attributes:
      holdings: study → series → SOP Instance UID → file.
      requests: all that came in.
      fault: asked first: `Answer`, `Cut`, or None for the usual answer.
      broken: UIDs of instances that cannot be read: their series' metadata and lists are 500, and
        the series is cut before them.
      page: the most objects of an answer.
      warns: whether an answer that is capped says so.
      modalities: series → modality.
      counts: series → what the server says it holds, where that is not what it is.
      arrange: makes of the files of a series the parts that are sent.
      with_length: whether parts have a Content-Length.
      chunked: whether bodies come in chunks rather than with a Content-Length.
      boundary: of answers.
      quoted: whether it stands in quotes in the header.
      preamble: what is sent before the first part.
      pause_s: before each part.
      all_series: whether series can be searched for in all studies.
      tagged: whether answers have an ETag.
      stored: what was stored here.
    """

    def __init__(self, found: Holdings) -> None:
        self.holdings = found
        self.requests: list[Asked] = []
        self.fault: Callable[[Asked], Answer | Cut | None] = lambda asked: None
        self.broken: set[str] = set()
        self.page = 10_000
        self.warns = False
        self.modalities: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.arrange: Callable[[list[bytes]], list[bytes]] = list
        self.with_length = True
        self.chunked = False
        self.boundary = b"a-boundary"
        self.quoted = False
        self.preamble = b""
        self.pause_s = 0.0
        self.all_series = False
        self.tagged = False
        self.stored: list[bytes] = []
        self.port = 0

    @property
    def root(self) -> str:
        return f"dicomweb+http://127.0.0.1:{self.port}/web"

    def path(self, uid: str, series: str = SERIES, study: str = STUDY) -> str:
        return f"{self.root}/studies/{study}/series/{series}/instances/{uid}"

    def asked(self, end: str) -> int:
        """How many requests had a path that ends so."""
        return sum(asked.within.endswith(end) for asked in self.requests)


@contextmanager
def running(pacs: Pacs) -> Iterator[Pacs]:
    """The server, on a port of its own, or the one it had before."""

    class Handler(_Handler):
        owner = pacs

    server = ThreadingHTTPServer(("127.0.0.1", pacs.port), Handler)
    server.daemon_threads = True
    pacs.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _GoneError(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    owner: Pacs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    left: int | None = None

    def log_message(self, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (_GoneError, ConnectionError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers["Content-Length"])))

    def _serve(self, body: bytes) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        asked = Asked(self.command, url.path.removeprefix("/web"), query, dict(self.headers))
        self.owner.requests.append(asked)
        fault = self.owner.fault(asked)
        self.left = None
        if isinstance(fault, Answer):
            self._send(fault.status, [fault.body], dict(fault.headers))
            return
        if isinstance(fault, Cut):
            self.left = fault.after
        if self.command == "POST":
            self.owner.stored.append(body)
            self._send(200, [b"{}"], {})
            return
        self._usual(asked)

    def _usual(self, asked: Asked) -> None:
        pacs = self.owner
        parts = asked.within.strip("/").split("/")
        names = parts[::2]
        study = pacs.holdings.get(parts[1], {}) if len(parts) > 1 else {}
        series = study.get(parts[3], {}) if len(parts) > 3 else {}
        broken = pacs.broken & series.keys()
        if names == ["studies"] and len(parts) == 1:
            self._search(asked, [{"0020000D": _uid(uid)} for uid in pacs.holdings])
        elif names == ["series"] and pacs.all_series:
            every = [
                {**self._series(uid, found), "0020000D": _uid(study)}
                for study, below in pacs.holdings.items()
                for uid, found in below.items()
            ]
            self._search(asked, every)
        elif names == ["studies", "series"] and len(parts) == 3:
            self._search(asked, [self._series(uid, found) for uid, found in study.items()])
        elif not series:
            self._send(404, [b""], {})
        elif names == ["studies", "series", "metadata"]:
            if broken:
                self._send(500, [b""], {})
            else:
                self._json([_metadata(uid, data) for uid, data in series.items()], {})
        elif names == ["studies", "series", "instances"] and len(parts) == 5:
            start, length = int(asked.query.get("offset", 0)), int(asked.query.get("limit", 99))
            page = list(series)[start : start + length]
            if broken & set(page):
                self._send(500, [b""], {})
            else:
                self._search(asked, [_metadata(uid, series[uid]) for uid in series])
        elif len(parts) == 4:
            whole = list(series.items())
            stop = next((n for n, (uid, _) in enumerate(whole) if uid in broken), None)
            self._multipart([data for _, data in whole[:stop]], cut=stop is not None)
        elif parts[5] in broken:
            self._send(500, [b""], {})
        elif parts[5] in series:
            self._multipart([series[parts[5]]])
        else:
            self._send(404, [b""], {})

    def _series(self, uid: str, found: Mapping[str, bytes]) -> dict[str, Any]:
        count = self.owner.counts.get(uid, len(found))
        return {
            "0020000E": _uid(uid),
            "00080060": {"vr": "CS", "Value": [self.owner.modalities.get(uid, "MR")]},
            "00201209": {"vr": "IS", "Value": [count]},
        }

    def _search(self, asked: Asked, found: list[dict[str, Any]]) -> None:
        start, length = int(asked.query.get("offset", 0)), int(asked.query.get("limit", 99))
        for key, tag in (("StudyInstanceUID", "0020000D"), ("SeriesInstanceUID", "0020000E")):
            if wanted := asked.query.get(key):
                found = [one for one in found if one[tag]["Value"] == [wanted]]
        page = found[start : start + min(length, self.owner.page)]
        more = len(found) > start + len(page)
        self._json(page, {"Warning": "299 more"} if more and self.owner.warns else {})

    def _json(self, found: Any, headers: Mapping[str, str]) -> None:
        self._send(
            200, [json.dumps(found).encode()], {"Content-Type": "application/dicom+json", **headers}
        )

    def _multipart(self, files: list[bytes], *, cut: bool = False) -> None:
        pacs = self.owner
        mark = b"--" + pacs.boundary
        pieces = [pacs.preamble]
        for data in pacs.arrange(files):
            length = b"Content-Length: %d\r\n" % len(data) if pacs.with_length else b""
            pieces.append(mark + b"\r\nContent-Type: application/dicom\r\n" + length + b"\r\n")
            pieces += [data, b"\r\n"]
        pieces.append(mark + b"--\r\n")
        if cut:
            pieces[-1] = b""
        boundary = pacs.boundary.decode()
        named = f'"{boundary}"' if pacs.quoted else boundary
        kind = f'multipart/related; type="application/dicom"; boundary={named}'
        self._send(200, pieces, {"Content-Type": kind})

    def _send(self, status: int, pieces: list[bytes], headers: Mapping[str, str]) -> None:
        pacs = self.owner
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if pacs.tagged:
            self.send_header("ETag", f'"{hashlib.md5(b"".join(pieces)).hexdigest()}"')
        if pacs.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(sum(map(len, pieces))))
        self.end_headers()
        for piece in pieces:
            if pacs.pause_s:
                time.sleep(pacs.pause_s)
            if self.left is not None:
                piece, self.left = piece[: self.left], self.left - len(piece)
            if piece and pacs.chunked:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            elif piece:
                self.wfile.write(piece)
            if self.left is not None and self.left <= 0:
                self.close_connection = True
                if pacs.chunked:  # a proxy's: to HTTP the answer is whole
                    self.wfile.write(b"0\r\n\r\n")
                self.wfile.flush()
                self.connection.shutdown(2)
                raise _GoneError
        if pacs.chunked:
            self.wfile.write(b"0\r\n\r\n")


def _uid(uid: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [uid]}


def _metadata(uid: str, data: bytes) -> dict[str, Any]:
    bulk = {"vr": "OW", "BulkDataURI": f"http://somewhere/{time.monotonic_ns()}"}
    header = {"vr": "LO", "Value": [hashlib.md5(data).hexdigest()]}
    return {"00080018": _uid(uid), "00100010": header, "7FE00010": bulk}
