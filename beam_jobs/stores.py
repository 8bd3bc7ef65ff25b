"""Objects in a store (`gs://`, `s3://`): few requests, each retried, errors told in one line.

Beam makes the clients, from its own options (`--s3_endpoint_url`, ...) and the environment, so
that credentials are found as its runners find them. Beam's filesystems themselves are not used:
they make a client for every call and fetch 16 MiB where a header's 64 KiB are wanted.

A missing object is FileNotFoundError. Any other failure outlasted the retries, or would outlast any
(no permission, no such bucket): `StoreError`, which ends the job, for files that a store does not
hand out now must not count as unreadable ones.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import IO, Any, NamedTuple, Protocol

from beam_jobs.core.cli import CommandError, UsageError

# A DICOM header almost always fits; less costs no less time to fetch.
HEAD_BYTES = 64 << 10
_STREAM_BYTES = 8 << 20
_RETRY_S = 120.0
_AT_ONCE = 8
_WINDOW = 2 * _AT_ONCE


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
        """Sends the next `_STREAM_BYTES` bytes; fewer only as the last ones."""

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


def _stamp(text: object) -> int:
    return int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:7], "big")


class _Gcs:
    """Google Cloud Storage."""

    def __init__(self, options: Any) -> None:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
        from google.cloud.storage.exceptions import InvalidResponse
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._errors = (
            exceptions.GoogleAPIError,
            GoogleAuthError,
            InvalidResponse,
            OSError,  # requests' are of that kind
        )
        self._missing = exceptions.NotFound
        self._exists = exceptions.PreconditionFailed
        self._past_the_end = exceptions.RequestRangeNotSatisfiable
        self._retry = DEFAULT_RETRY.with_timeout(_RETRY_S)
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            # Looking for credentials takes 20 s where there are none.
            self._client = storage.Client.create_anonymous_client()
        else:
            from apache_beam.io.gcp.gcsio import create_storage_client
            from apache_beam.options.pipeline_options import PipelineOptions

            self._client = create_storage_client(options or PipelineOptions([]))

    def _blob(self, path: str) -> Any:
        bucket, name = split(path)
        return self._client.bucket(bucket).blob(name)

    def _told(self, path: str, of: str = "object") -> Any:
        return _told(path, self._errors, of)

    def read(self, path: str, start: int, length: int) -> bytes:
        with self._told(path):
            try:
                data: bytes = self._blob(path).download_as_bytes(
                    start=start,
                    end=start + length - 1,
                    raw_download=True,
                    checksum=None,  # a range has none
                    retry=self._retry,
                )
            except self._past_the_end:
                return b""
        return data

    def size(self, path: str) -> int | None:
        with self._told(path):
            bucket, name = split(path)
            blob = self._client.bucket(bucket).get_blob(name, retry=self._retry)
        return None if blob is None else int(blob.size)

    def entries(self, prefix: str, *, deep: bool = True) -> Iterator[Entry]:
        bucket, name = split(prefix)
        with self._told(prefix):
            try:
                for blob in self._client.list_blobs(
                    bucket,
                    prefix=name,
                    delimiter=None if deep else "/",
                    fields="items(name,size,md5Hash,crc32c,generation),prefixes,nextPageToken",
                    retry=self._retry,
                ):
                    content = blob.md5_hash or blob.crc32c or blob.generation
                    yield Entry(f"gs://{bucket}/{blob.name}", int(blob.size), _stamp(content))
            except self._missing as error:
                raise StoreError(f"bucket gs://{bucket} does not exist") from error

    def upload(self, path: str) -> Upload:
        return _GcsUpload(
            self._blob(path).open(
                "wb", chunk_size=_STREAM_BYTES, retry=self._retry, ignore_flush=True
            ),
            functools.partial(self._told, path, of="bucket"),
        )

    def put(self, path: str, data: bytes) -> None:
        with self._told(path, of="bucket"):
            self._blob(path).upload_from_string(data, _BINARY, retry=self._retry)

    def put_new(self, path: str, data: bytes) -> bool:
        with self._told(path, of="bucket"):
            try:
                self._blob(path).upload_from_string(
                    data, _BINARY, if_generation_match=0, retry=self._retry
                )
            except self._exists:
                return False
        return True

    def copy(self, source: str, target: str) -> None:
        with self._told(source):
            old, new, token = self._blob(source), self._blob(target), None
            while True:
                token, _, _ = new.rewrite(old, token=token, retry=self._retry)
                if token is None:
                    return

    def delete(self, paths: Iterable[str]) -> None:
        def one(path: str) -> None:
            with self._told(path), suppress(self._missing):
                self._blob(path).delete(retry=self._retry)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(one, paths))


class _S3:
    """Amazon S3, or a store that speaks like it."""

    def __init__(self, options: Any) -> None:
        from apache_beam.io.aws.clients.s3 import boto3_client
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        self._errors = (BotoCoreError, Boto3Error, ClientError)
        self._refused = ClientError
        # Beam makes the client without a word on retries; boto3 by itself gives up within a second.
        os.environ.setdefault("AWS_RETRY_MODE", "standard")
        os.environ.setdefault("AWS_MAX_ATTEMPTS", "10")
        with _told("s3://", self._errors):
            self._client = boto3_client.Client(options=options or {}).client

    def _told(self, path: str, of: str = "object") -> Any:
        return _told(path, self._errors, of)

    def _target(self, path: str) -> dict[str, str]:
        bucket, name = split(path)
        return {"Bucket": bucket, "Key": name}

    def read(self, path: str, start: int, length: int) -> bytes:
        with self._told(path):
            try:
                data: bytes = self._client.get_object(
                    **self._target(path), Range=f"bytes={start}-{start + length - 1}"
                )["Body"].read()
            except self._refused as error:
                if _status(error) == 416:
                    return b""
                raise
        return data

    def size(self, path: str) -> int | None:
        with self._told(path):
            try:
                return int(self._client.head_object(**self._target(path))["ContentLength"])
            except self._refused as error:
                if _status(error) == 404:
                    return None
                raise

    def entries(self, prefix: str, *, deep: bool = True) -> Iterator[Entry]:
        bucket, name = split(prefix)
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=name, **({} if deep else {"Delimiter": "/"})
        )
        with self._told(prefix):
            try:
                for page in pages:
                    for found in page.get("Contents", ()):
                        path = f"s3://{bucket}/{found['Key']}"
                        yield Entry(path, int(found["Size"]), _stamp(found["ETag"]))
            except self._refused as error:
                if _status(error) == 404:
                    raise StoreError(f"bucket s3://{bucket} does not exist") from error
                raise

    def upload(self, path: str) -> Upload:
        told = functools.partial(self._told, path, of="bucket")
        return _S3Upload(self._client, self._target(path), told)

    def put(self, path: str, data: bytes) -> None:
        with self._told(path, of="bucket"):
            self._client.put_object(**self._target(path), Body=data)

    def put_new(self, path: str, data: bytes) -> bool:
        with self._told(path, of="bucket"):
            try:
                self._client.put_object(**self._target(path), Body=data, IfNoneMatch="*")
            except self._refused as error:
                if _status(error) in (409, 412):
                    return False
                raise
        return True

    def copy(self, source: str, target: str) -> None:
        with self._told(source):
            to = self._target(target)
            self._client.copy(self._target(source), to["Bucket"], to["Key"])

    def delete(self, paths: Iterable[str]) -> None:
        def one(path: str) -> None:
            with self._told(path):
                self._client.delete_object(**self._target(path))

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(one, paths))


_BINARY = "application/octet-stream"
_KINDS: dict[str, tuple[type[Any], str]] = {"gs": (_Gcs, "gcp"), "s3": (_S3, "aws")}


def _status(error: BaseException) -> int | None:
    """The HTTP status of a client's error, where there is one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # boto3's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "code", None) or getattr(response, "status_code", None)
    return int(found) if found is not None else None


@contextmanager
def _told(path: str, errors: tuple[type[BaseException], ...], of: str = "object") -> Iterator[None]:
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
        status = _status(cause)
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


class _GcsUpload:
    """A resumable upload."""

    def __init__(self, stream: Any, told: Callable[[], Any]) -> None:
        self._stream = stream
        self._told = told

    def send(self, data: bytes) -> None:
        with self._told():
            self._stream.write(data)

    def finish(self) -> None:
        with self._told():
            self._stream.close()

    def abandon(self) -> None:
        with self._told():
            self._stream.terminate()


class _S3Upload:
    """A multipart upload."""

    def __init__(self, client: Any, target: dict[str, str], told: Callable[[], Any]) -> None:
        self._client = client
        self._told = told
        self._parts: list[dict[str, Any]] = []
        with told():
            upload = client.create_multipart_upload(**target)["UploadId"]
        self._target = {**target, "UploadId": upload}

    def send(self, data: bytes) -> None:
        number = len(self._parts) + 1
        with self._told():
            answer = self._client.upload_part(**self._target, PartNumber=number, Body=data)
        self._parts.append({"ETag": answer["ETag"], "PartNumber": number})

    def finish(self) -> None:
        with self._told():
            self._client.complete_multipart_upload(
                **self._target, MultipartUpload={"Parts": self._parts}
            )

    def abandon(self) -> None:
        with self._told():
            self._client.abort_multipart_upload(**self._target)


class _Writer(io.RawIOBase):
    """A stream that becomes the object when it is closed; not when its block is left by an error.

    A small object is one request.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._upload: Upload | None = None
        self._path = path
        self._store = store_of(path)
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._waiting += data
        while len(self._waiting) > _STREAM_BYTES:
            self._upload = self._upload or self._store.upload(self._path)
            self._upload.send(bytes(self._waiting[:_STREAM_BYTES]))
            del self._waiting[:_STREAM_BYTES]
        return len(data)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._upload is None:
            self._store.put(self._path, bytes(self._waiting))
            return
        try:
            self._upload.send(bytes(self._waiting))
            self._upload.finish()
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        super().close()
        if self._upload is not None:
            with suppress(CommandError, OSError):
                self._upload.abandon()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None:
            self._abandon()
        self.close()

    def __del__(self) -> None:
        self._abandon()


_made: dict[str, tuple[Any, Any, Store]] = {}
_making = threading.Lock()


def store_of(path: str) -> Store:
    """The store a path lies in; one client a process, made anew when Beam's options change.

    Raises:
      UsageError: no such kind of store.
      StoreError: its client library is not installed.
    """
    from apache_beam.io.filesystems import FileSystems

    scheme = path.partition("://")[0]
    if scheme not in _KINDS:
        raise UsageError(f"{path}: stores are gs:// and s3://, not {scheme}://")
    # Beam sets them in every process it starts.
    options = getattr(FileSystems, "_pipeline_options", None)
    told = (os.environ.get("STORAGE_EMULATOR_HOST"), os.environ.get("AWS_ENDPOINT_URL"))
    with _making:
        made = _made.get(scheme)
        if made is None or made[0] is not options or made[1] != told:
            kind, extra = _KINDS[scheme]
            try:
                made = (options, told, kind(options))
            except (ImportError, AssertionError) as error:
                raise StoreError(
                    f"{scheme}:// needs more packages: pip install 'voxelbeam[{extra}]'"
                ) from error
            _made[scheme] = made
    return made[2]


class _Known(threading.local):
    """What this thread knows of objects before it opens them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.ahead: _Ahead | None = None


_known = _Known()


class _Ahead:
    """Begins of objects, fetched a few at a time before they are asked for, in a given order."""

    def __init__(self, wanted: Sequence[tuple[str, int]], pool: ThreadPoolExecutor) -> None:
        self._wanted = wanted
        self._order = {path: index for index, (path, _) in enumerate(wanted)}
        self._pool = pool
        self._fetched: dict[str, Future[bytes]] = {}
        self._sent = 0
        self._send(_WINDOW)

    def _send(self, end: int) -> None:
        for path, length in self._wanted[self._sent : end]:
            self._fetched[path] = self._pool.submit(store_of(path).read, path, 0, length)
        self._sent = max(self._sent, min(end, len(self._wanted)))

    def take(self, path: str) -> Future[bytes] | None:
        """An object's begin, which is forgotten, as are those that were passed over."""
        place = self._order.get(path)
        if place is None:
            return None
        for passed in [other for other in self._fetched if self._order[other] < place]:
            self._fetched.pop(passed).cancel()
        self._sent = max(self._sent, place)
        self._send(place + 1 + _WINDOW)
        return self._fetched.pop(path, None)


@contextmanager
def ahead(entries: Iterable[Entry], length: int) -> Iterator[None]:
    """For the time of the block, this thread finds the entries' first `length` bytes fetched.

    Args:
      entries: what will be opened, in that order; opening others, or in another order, costs time.
      length: how much of each; the listing's size and stamp are known with it.
    """
    remote = [entry for entry in entries if "://" in entry.path]
    if not remote:
        yield
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        wanted = [(entry.path, min(length, entry.size or length)) for entry in remote]
        _known.entries = {entry.path: entry for entry in remote}
        _known.ahead = _Ahead(wanted, pool)
        try:
            yield
        finally:
            _known.entries, _known.ahead = {}, None
            pool.shutdown(wait=True, cancel_futures=True)


class StoreFile(io.RawIOBase):
    """An object open for reading at any place; opening costs no request.

    Attributes:
      stamp: of the listing it was found in, 0 without one.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = path
        self._store = store_of(path)
        entry = _known.entries.get(path)
        self.stamp = entry.stamp if entry else 0
        self._size = entry.size if entry else None
        self._at = 0
        self._block, self._start = b"", 0
        self._fetched = _known.ahead.take(path) if _known.ahead else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = 0 if whence == os.SEEK_SET else self._at
        if whence == os.SEEK_END:
            base = self._length()
        self._at = max(0, base + offset)
        return self._at

    def _length(self) -> int:
        self._take_fetched()
        if self._size is None:
            self._size = self._store.size(self.name)
        if self._size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.name)
        return self._size

    def _take_fetched(self) -> None:
        if self._fetched is not None:
            fetched, self._fetched = self._fetched, None
            self._block, self._start = fetched.result(), 0

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        parts = []
        while part := self.read(_STREAM_BYTES):
            parts.append(part)
        return b"".join(parts)

    def read(self, count: int | None = -1) -> bytes:
        if count is None or count < 0:
            return self.readall()
        self._take_fetched()
        if self._size is not None:
            count = min(count, self._size - self._at)
        if count <= 0:
            return b""
        begin = self._at - self._start
        if not 0 <= begin < len(self._block):
            asked = max(count, HEAD_BYTES)
            self._block, self._start, begin = b"", self._at, 0
            self._block = self._store.read(self.name, self._at, asked)
            if len(self._block) < asked:
                self._size = self._at + len(self._block)
        data = self._block[begin : begin + count]
        self._at += len(data)
        return data


def open_read(path: str) -> IO[bytes]:
    """An object as a stream, read from begin to end in large pieces."""
    stream: IO[bytes] = io.BufferedReader(StoreFile(path), buffer_size=_STREAM_BYTES)
    return stream


def open_write(path: str) -> IO[bytes]:
    """A stream that becomes the object when it is closed."""
    return _Writer(path)  # type: ignore[return-value]
