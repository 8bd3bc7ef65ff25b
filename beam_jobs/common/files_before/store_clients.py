"""The stores: Google Cloud Storage and S3, each behind the same few operations (`stores.Store`).

Beam makes the clients, from its own options (`--s3_endpoint_url`, ...) and the environment, so
that credentials are found as its runners find them. Beam's filesystems themselves are not used:
they make a client for every call and fetch 16 MiB where a header's 64 KiB are wanted.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from beam_jobs.common.files_before.stores import (
    AT_ONCE,
    STREAM_BYTES,
    Entry,
    StoreError,
    Upload,
    split,
    status_of,
    told,
)

_RETRY_S = 120.0
_BINARY = "application/octet-stream"


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
        return told(path, self._errors, of)

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
                "wb", chunk_size=STREAM_BYTES, retry=self._retry, ignore_flush=True
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

        with ThreadPoolExecutor(AT_ONCE) as pool:
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
        with told("s3://", self._errors):
            self._client = boto3_client.Client(options=options or {}).client

    def _told(self, path: str, of: str = "object") -> Any:
        return told(path, self._errors, of)

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
                if status_of(error) == 416:
                    return b""
                raise
        return data

    def size(self, path: str) -> int | None:
        with self._told(path):
            try:
                return int(self._client.head_object(**self._target(path))["ContentLength"])
            except self._refused as error:
                if status_of(error) == 404:
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
                if status_of(error) == 404:
                    raise StoreError(f"bucket s3://{bucket} does not exist") from error
                raise

    def upload(self, path: str) -> Upload:
        guard = functools.partial(self._told, path, of="bucket")
        return _S3Upload(self._client, self._target(path), guard)

    def put(self, path: str, data: bytes) -> None:
        with self._told(path, of="bucket"):
            self._client.put_object(**self._target(path), Body=data)

    def put_new(self, path: str, data: bytes) -> bool:
        with self._told(path, of="bucket"):
            try:
                self._client.put_object(**self._target(path), Body=data, IfNoneMatch="*")
            except self._refused as error:
                if status_of(error) in (409, 412):
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

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(one, paths))


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


# Scheme → the store, and the extra that brings its client.
KINDS: dict[str, tuple[type[Any], str]] = {"gs": (_Gcs, "gcp"), "s3": (_S3, "aws")}
