"""obstore's clients: one a process and bucket, errors of one line, calls that can be left.

A missing object is FileNotFoundError, a name that no store takes OSError. Any other failure
outlasted the retries, or would outlast any (no permission, no such bucket): `StoreError`, which
ends the job, for files that a store does not hand out now must not count as unreadable ones.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any, TypeVar

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import settings
from beam_jobs.common.files.names import split

AT_ONCE = 32  # requests of one process
# obstore's own are 30 s for a request, body and all, and 180 s with its retries.
REQUEST_S = 60.0
RETRY_S = 120.0
_CONNECT_S = 10.0
RETRIES = 10

_POOL = "store-pool"
_STATUS = re.compile(r"status code: (\d{3})")
_NO_CREDENTIALS = re.compile(r"169\.254\.169\.254|metadata\.google\.internal|IDENTITY_HEADER")
_HINTS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
    "AWS_SKIP_SIGNATURE=true reads public buckets",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login; "
    "GOOGLE_SKIP_SIGNATURE=true reads public buckets",
    "az": "AZURE_STORAGE_KEY or AZURE_STORAGE_CONNECTION_STRING; "
    "AZURE_SKIP_SIGNATURE=true reads public containers",
}

_Answer = TypeVar("_Answer")


class StoreError(CommandError):
    """A store does not do what is requested; the message is one line."""


class _Process:
    """What one process has of clients and threads."""

    def __init__(self) -> None:
        self.forked_off = False
        self.used = False
        self.clients: dict[tuple[Any, ...], Any] = {}
        self.making = threading.Lock()
        self.pool: ThreadPoolExecutor | None = None
        self.main: ThreadPoolExecutor | None = None


_process = _Process()


def _after_fork() -> None:
    global _process
    used = _process.used or _process.forked_off
    _process = _Process()
    _process.forked_off = used


os.register_at_fork(after_in_child=_after_fork)


def hurry(seconds: float) -> None:
    """From here on requests of this process fail within so long, without a second try."""
    global REQUEST_S, RETRY_S, RETRIES
    REQUEST_S, RETRY_S, RETRIES = seconds, seconds, 0


def client_of(path: str) -> tuple[Any, str]:
    """(obstore's client of a path's bucket, name of the object in it).

    Raises:
      UsageError: the path names no bucket, or has an unknown scheme.
      StoreError: this process was forked off one that had used a store already: the client's
        threads are not in it, and a request would never end.
      CommandError: credentials are named that cannot be read.
    """
    scheme, bucket, name = split(path)
    if _process.forked_off:
        raise StoreError(
            f"{path}: this process was forked off one that already spoke to a store; "
            "start processes by spawn or forkserver"
        )
    variables = settings.VARIABLES.get(scheme, ())
    key = (scheme, bucket, REQUEST_S, RETRY_S, RETRIES, *map(os.environ.get, variables))
    client = _process.clients.get(key)
    if client is None:
        with _process.making:
            client = _process.clients.get(key)
            if client is None:
                client = _process.clients[key] = _made(scheme, bucket)
                _process.used = True
    return client, name


def _made(scheme: str, bucket: str) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    options = settings.store_options(scheme)
    endpoint = f"{scheme}://{bucket}" if scheme in ("http", "https") else ""
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=_CONNECT_S),
        "timeout": timedelta(seconds=REQUEST_S),
    }
    if (endpoint or settings.endpoint_of(options)).startswith("http://"):
        client["allow_http"] = True
    if certificates := settings.certificates():
        client["root_certificate"] = certificates
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", "") if scheme == "s3" else ""
    shared: dict[str, Any] = {
        "client_options": client,
        "retry_config": {
            "max_retries": max(0, int(attempts) - 1) if attempts.isdigit() else RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_S),
        },
    }
    try:
        if endpoint:
            return HTTPStore(endpoint, **shared)
        kind = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
        return kind(bucket, **options, **shared)
    except (BaseError, OSError, ValueError) as error:
        message = str(error).partition("\n\nDebug source")[0]
        raise StoreError(f"{scheme}://{bucket}: {_one_line(message)}") from error


def pool() -> ThreadPoolExecutor:
    """This process's `AT_ONCE` threads for requests; what runs there waits for no other of them."""
    with _process.making:
        if _process.pool is None:
            _process.pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=_POOL)
        return _process.pool


def in_pool() -> bool:
    """Whether this is one of `pool`'s threads."""
    return threading.current_thread().name.startswith(_POOL)


def call(request: Callable[[], _Answer]) -> _Answer:
    """Runs a request so that an interrupt is handled meanwhile.

    obstore does not return to Python before the answer, so the main thread, which alone handles
    Ctrl-C, leaves the request to another.
    """
    if threading.current_thread() is not threading.main_thread():
        return request()
    with _process.making:
        if _process.main is None:
            _process.main = ThreadPoolExecutor(1, thread_name_prefix="store-main")
        main = _process.main
    try:
        return main.submit(request).result()
    except KeyboardInterrupt:
        # What has to be cleared up now does not wait for the request that was left.
        with _process.making:
            _process.main = None
        raise


@contextmanager
def translated(path: str, of: str = "object") -> Iterator[None]:
    """Turns obstore's errors, dozens of lines each, into one line of ours.

    Args:
      path: of the object.
      of: what it is that a store does not find, "object" or "bucket".

    Raises:
      FileNotFoundError: there is no such object, or no such bucket.
      OSError: its name is none that a store's client can request.
      StoreError: anything else.
    """
    from obstore.exceptions import BaseError, InvalidPathError

    try:
        yield
    except (BaseError, OSError, ValueError) as error:  # a writer's are OSError
        message = str(error).partition("\n\nDebug source")[0]
        status = _status_of(error, message)
        if isinstance(error, InvalidPathError | ValueError):
            reason = _one_line(message.rpartition("path: ")[2])
            raise OSError(errno.EINVAL, f"not a usable name in a store ({reason})", path) from error
        if status == 404 and of == "object":
            raise FileNotFoundError(errno.ENOENT, "no such object or bucket", path) from error
        raise StoreError(_line(path, status, message)) from error


def _status_of(error: Exception, message: str) -> int | None:
    found = _STATUS.search(message)
    if found:
        return int(found[1])
    return 404 if isinstance(error, FileNotFoundError) else None


def _line(path: str, status: int | None, message: str) -> str:
    scheme, bucket, _ = split(path)
    if _NO_CREDENTIALS.search(message):
        return f"{path}: no credentials found ({_HINTS[scheme]})"
    if status == 404:
        return f"bucket {scheme}://{bucket} does not exist"
    if status in (401, 403):
        return f"{path}: access denied ({status})"
    if status == 301 or "Received redirect without LOCATION" in message:
        return f"{path}: bucket {bucket} is in another region; AWS_REGION says which"
    if status is not None and status in set(HTTPStatus):
        return f"{path}: the store answered {status} ({HTTPStatus(status).phrase})"
    reason = message.rpartition(" - ")[2] or message
    return f"{path}: {_one_line(reason)}"


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 200 else f"{line[:199]}…"
