"""Objects in a store (`gs://`, `s3://`): few requests, each retried, errors told in one line.

Here is what all stores have in common; `store_clients` has the stores, `store_streams` the streams.

A missing object is FileNotFoundError. Any other failure outlasted the retries, or would outlast any
(no permission, no such bucket): `StoreError`, which ends the job, for files that a store does not
hand out now must not count as unreadable ones.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from beam_jobs.common.cli import CommandError, UsageError

# A DICOM header almost always fits; less costs no less time to fetch.
HEAD_BYTES = 64 << 10
STREAM_BYTES = 8 << 20
AT_ONCE = 8  # requests of one process


class StoreError(CommandError):
    """A store does not do what it is asked; the message is one line."""


class Entry(NamedTuple):
    """A file of a listing.

    Attributes:
      path: its path.
      size: in bytes, None where the listing does not say.
      stamp: changes when the content does, 0 where the listing does not say.
    """

    path: str
    size: int | None = None
    stamp: int = 0


class Upload(Protocol):
    """An object on its way into a store."""

    def send(self, data: bytes) -> None:
        """Sends the next `STREAM_BYTES` bytes; fewer only as the last ones."""

    def finish(self) -> None:
        """Makes what was sent the object, at once."""

    def abandon(self) -> None:
        """Forgets what was sent."""


class Store(Protocol):
    """What is done with objects; paths are whole ones, `gs://bucket/name`."""

    def read(self, path: str, start: int, length: int) -> bytes:
        """At most `length` bytes; fewer only at the end."""

    def size(self, path: str) -> int | None:
        """Bytes of an object, None when there is none."""

    def entries(self, prefix: str, *, deep: bool = True) -> Iterator[Entry]:
        """Objects whose path begins so, in order; without `deep` none past a further "/"."""

    def upload(self, path: str) -> Upload:
        """Begins the upload of a large object."""

    def put(self, path: str, data: bytes) -> None:
        """Writes an object, at once or not at all."""

    def put_new(self, path: str, data: bytes) -> bool:
        """Writes an object unless there is one, which no other writer can come between."""

    def copy(self, source: str, target: str) -> None:
        """Copies within the store."""

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects; one that is gone already is no error."""


def split(path: str) -> tuple[str, str]:
    """(bucket, name) of a path."""
    bucket, _, name = path.partition("://")[2].partition("/")
    if not bucket:
        raise UsageError(f"{path} names no bucket")
    return bucket, name


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a client's error, where there is one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # boto3's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "code", None) or getattr(response, "status_code", None)
    return int(found) if found is not None else None


@contextmanager
def told(path: str, errors: tuple[type[BaseException], ...], of: str = "object") -> Iterator[None]:
    """Turns a client's errors into FileNotFoundError or StoreError, one line each.

    Args:
      path: of the object.
      errors: the client's.
      of: what it is that a store does not find, "object" or "bucket".
    """
    try:
        yield
    except errors as error:
        cause: BaseException = getattr(error, "cause", None) or error  # of "deadline exceeded"
        status = status_of(cause)
        scheme, _, rest = path.partition("://")
        bucket = f"{scheme}://{rest.partition('/')[0]}"
        if status == 404 and of == "object":
            raise FileNotFoundError(errno.ENOENT, "no such object or bucket", path) from error
        if status == 404:
            raise StoreError(f"bucket {bucket} does not exist") from error
        if status in (401, 403):
            raise StoreError(f"{path}: access denied ({status})") from error
        text = " ".join(str(cause).split()) or type(cause).__name__
        if status is not None and status in set(HTTPStatus):
            text = f"the store answered {status} ({HTTPStatus(status).phrase})"
        raise StoreError(f"{path}: {text if len(text) <= 200 else text[:199] + '…'}") from error


_made: dict[str, tuple[Any, Any, Store]] = {}
_making = threading.Lock()


def store_of(path: str) -> Store:
    """The store a path lies in; one client a process, made anew when Beam's options change.

    Raises:
      UsageError: no such kind of store.
      StoreError: its client library is not installed.
    """
    from apache_beam.io.filesystems import FileSystems

    from beam_jobs.common.files_before.store_clients import KINDS

    scheme = path.partition("://")[0]
    if scheme not in KINDS:
        raise UsageError(f"{path}: stores are gs:// and s3://, not {scheme}://")
    # Beam sets them in every process it starts.
    options = getattr(FileSystems, "_pipeline_options", None)
    places = (os.environ.get("STORAGE_EMULATOR_HOST"), os.environ.get("AWS_ENDPOINT_URL"))
    with _making:
        made = _made.get(scheme)
        if made is None or made[0] is not options or made[1] != places:
            kind, extra = KINDS[scheme]
            try:
                made = (options, places, kind(options))
            except (ImportError, AssertionError) as error:
                raise StoreError(
                    f"{scheme}:// needs more packages: pip install 'voxelbeam[{extra}]'"
                ) from error
            _made[scheme] = made
    return made[2]
