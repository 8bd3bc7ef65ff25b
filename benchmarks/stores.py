"""Reading many files of a store that is far away: the file layer against the one before it.

250 objects of 130 kB (slices of an exam) lie behind a server on this machine that takes 40 ms an
answer and speaks as much of S3 as is read with. Their first 64 KiB are read, as headers are, then
the objects whole, as pixels are: by the code of revision e7e189f (boto3 through Beam, 8 requests at
once) and by the working tree's (obstore, 32 at once), each in processes of its own. The server's
time is not counted. Importing, connecting and listing are set-up, shown apart. Exit code 1: less
than 2.5 times as fast, or more than a quarter of the processor's time.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _harness import ROOT, Limit, code_of, conclude, parser, ratio, run, show

from beam_jobs.common import cli

PROG = "python benchmarks/stores.py"
BEFORE = "e7e189f"
FASTER, LESS_CPU = 2.5, 4.0

# Both sides read alike: listed once, then in order, each file opened at the place of its begin.
READ = """
import json, resource, sys, time
root, sys.path[0] = sys.argv[1:]
begun = time.perf_counter()
{opening}
entries = {entries}(root)
set_up = time.perf_counter() - begun, time.process_time()
passes = {{}}
for name, length in (("heads", 64 << 10), ("whole", 4 << 20)):
    wall, cpu, total = time.perf_counter(), time.process_time(), 0
    with {ahead}(entries, length):
        for entry in entries:
            with open_bytes(entry.path) as source:
                total += len(source.read_at(0, min(length, entry.size)))
    passes[name] = time.perf_counter() - wall, time.process_time() - cpu, total
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(dict(set_up=set_up, passes=passes, files=len(entries), peak=peak)))
"""
SIDES = {
    "before": READ.format(
        opening="from beam_jobs import filesystems\n"
        "from beam_jobs.core.storage import open_bytes\n"
        "filesystems.use_remote_paths_in_core()",
        entries="filesystems.list_entries",
        ahead="filesystems.fetched_ahead",
    ),
    "now": READ.format(
        opening="from beam_jobs.common.files import interface as files\n"
        "open_bytes = files.open_bytes",
        entries="files.entries",
        ahead="files.fetched_ahead",
    ),
}

# A server in a process of its own: objects are counted, delayed and made of zeros.
SERVER = """
import asyncio, sys, urllib.parse
count, size, delay = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
content, requests = bytes(size), 0
def answer(method, target, headers):
    global requests
    url = urllib.parse.urlsplit(target)
    if url.path == "/requests":
        return "200 OK", "", str(requests).encode()
    requests += 1
    if "list-type" in url.query:
        keys = "".join(
            f"<Contents><Key>exam/{n:05}.dcm</Key><Size>{size}</Size><ETag>&quot;{n}&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for n in range(count)
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{keys}</ListBucketResult>"
        return "200 OK", "Content-Type: application/xml\\r\\n", body.encode()
    first, last = headers.get("range", f"bytes=0-{size - 1}").removeprefix("bytes=").split("-")
    part = content[int(first) : int(last) + 1]
    name = url.path.rpartition("/")[2].removesuffix(".dcm")
    return "206 Partial Content", (
        f'ETag: "{int(name)}"\\r\\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\\r\\n'
        f"Content-Range: bytes {first}-{int(first) + len(part) - 1}/{size}\\r\\n"
    ), part
async def serve(reader, writer):
    with __import__("contextlib").suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            method, target, _ = (await reader.readline()).decode().split()
            headers = {}
            while (line := (await reader.readline()).decode().strip()):
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            await asyncio.sleep(delay)
            status, more, body = answer(method, target, headers)
            head = f"HTTP/1.1 {status}\\r\\n{more}Content-Length: {len(body)}\\r\\n\\r\\n"
            writer.write(head.encode() + body)
            await writer.drain()
async def main():
    server = await asyncio.start_server(lambda r, w: serve(r, w), "127.0.0.1", 0, backlog=100)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextlib.contextmanager
def serving(files: int, size: int, delay: float) -> Iterator[str]:
    """The server's address, for the time of the block."""
    command = [sys.executable, "-c", SERVER, str(files), str(size), str(delay)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


def measured(side: str, code: Path, url: str) -> dict[str, Any]:
    """One process of one side: what it says of itself, and how many requests it sent."""
    before = _requests(url)
    done = run(
        [sys.executable, "-c", SIDES[side], "s3://bucket/exam", str(code)],
        AWS_ENDPOINT_URL=url,
        AWS_ACCESS_KEY_ID="made-up",
        AWS_SECRET_ACCESS_KEY="made-up",
        AWS_DEFAULT_REGION="us-east-1",
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "requests": _requests(url) - before}


def _requests(url: str) -> int:
    with urllib.request.urlopen(f"{url}/requests") as answer:
        return int(answer.read())


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser("stores.py", __doc__ or "")
    made.add_argument("--files", type=int, default=250)
    made.add_argument("--bytes", type=int, default=130_000, help="of each file")
    made.add_argument("--delay", type=float, default=0.04, help="seconds an answer takes")
    flags = made.parse_args(argv)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with (
        serving(flags.files, flags.bytes, flags.delay) as url,
        code_of(BEFORE, "beam_jobs") as before,
    ):
        for _ in range(flags.rounds):
            for side, code in (("before", before), ("now", ROOT)):
                found[side].append(measured(side, code, url))
    _show(found)
    limits = []
    for name in ("heads", "whole"):
        for place, figure, least in ((0, "times as fast", FASTER), (1, "times less CPU", LESS_CPU)):
            both = ([one["passes"][name][place] for one in found[side]] for side in SIDES)
            limits.append(Limit(figure=f"{name}, {figure}", value=ratio(*both), at_least=least))
    return conclude(limits, {"runs": found, "cores": os.cpu_count()}, flags.json)


def _show(found: dict[str, list[dict[str, Any]]]) -> None:
    titles = ["heads, s", "CPU s", "whole, s", "CPU s", "requests a file", "set-up, s", "peak, MiB"]
    rows = []
    for side, runs in found.items():
        columns = [statistics.median(column) for column in zip(*map(_figures, runs), strict=True)]
        rows.append([side, *(f"{middle:.2f}" for middle in columns[:-1]), f"{columns[-1]:.0f}"])
    show(["", *titles], rows)


def _figures(one: dict[str, Any]) -> tuple[float, ...]:
    """A process' row of the table."""
    (heads, heads_cpu, _), (whole, whole_cpu, _) = one["passes"].values()
    requests = one["requests"] / one["files"]
    return heads, heads_cpu, whole, whole_cpu, requests, one["set_up"][0], one["peak"]


if __name__ == "__main__":
    cli.run(main, PROG)
