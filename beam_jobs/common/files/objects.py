"""What is done with objects: each function one request where one does; each request retried.

Paths are whole ones, `gs://bucket/name`.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.files import settings
from beam_jobs.common.files.clients import StoreError, call, client_of, in_pool, pool, translated
from beam_jobs.common.files.names import READ_ONLY, Entry, Status, split
from beam_jobs.common.files.writer import Target, Writer

# What is fetched of a large object at once, and sent.
PART_BYTES = 8 << 20
# Stores copy an object of up to 5 GB by one request.
_COPY_BYTES = 4 << 30

_PAST_THE_END = re.compile(r"status code: 416|Wanted range starting at \d+, but object was only")


class Piece(NamedTuple):
    """Some bytes of an object.

    Attributes:
      data: the bytes; fewer than requested only at the end.
      size: of the whole object, None where the request lay past its end.
      tag: of the version they were read from, "" where that is unknown.
    """

    data: bytes
    size: int | None
    tag: str


def stamp_of(tag: object) -> int:
    """A number for what a listing says of an object's content."""
    return int.from_bytes(hashlib.sha256(str(tag).encode()).digest()[:7], "big")


def read(path: str, start: int, length: int, tag: str = "", client: Any = None) -> Piece:
    """Reads a part of an object.

    Args:
      path: of the object.
      start, length: of the part, in bytes.
      tag: of the version it has to be, "" for any.
      client: of the object's bucket, where many are read; None finds it by the environment.

    Raises:
      FileNotFoundError: no such object.
      StoreError: the object is another than `tag` now, or the store fails.
    """
    if length <= 0:
        return Piece(b"", None, "")
    return call(lambda: _read(path, start, length, tag, client))


def _read(path: str, start: int, length: int, tag: str, client: Any) -> Piece:
    import obstore
    from obstore.exceptions import BaseError, NotSupportedError, PreconditionError

    if client is None:
        client, name = client_of(path)
    else:
        name = split(path)[2]
    options: dict[str, Any] = {"range": (start, start + length)}
    if tag:
        options["if_match"] = tag
    try:
        found = obstore.get(client, name, options=options)  # type: ignore[arg-type]
        meta = found.meta
        return Piece(found.bytes().to_bytes(), meta["size"], _tag_of(meta))
    except (BaseError, OSError, ValueError) as error:
        with translated(path):
            if isinstance(error, PreconditionError):
                raise StoreError(f"{path}: was replaced while it was read") from error
            if isinstance(error, NotSupportedError) and not start:
                # A plain web server, which gives files whole.
                data = obstore.get(client, name).bytes().to_bytes()
                return Piece(data[:length], len(data), "")
            if isinstance(error, BaseError) and _PAST_THE_END.search(str(error)):
                return Piece(b"", None, "")
            raise


def _tag_of(meta: Any) -> str:
    # Quoted in an answer, bare in Azure's listings. A weak one is no condition.
    tag = meta["e_tag"] or ""
    bare = "" if tag.startswith("W/") else tag.strip('"')
    return f'"{bare}"' if bare else ""


def read_range(path: str, start: int, length: int, tag: str = "", client: Any = None) -> Piece:
    """`read` of any length: a long part in several requests, of which some run at once."""
    first = read(path, start, min(length, PART_BYTES), tag, client)
    if first.size is None or length <= PART_BYTES:
        return first
    starts = range(start + PART_BYTES, min(start + length, first.size), PART_BYTES)

    def part(begin: int) -> bytes:
        return read(path, begin, min(PART_BYTES, start + length - begin), first.tag).data

    rest = map(part, starts) if in_pool() else pool().map(part, starts)
    return first._replace(data=b"".join([first.data, *rest]))


def read_whole(path: str, require: Callable[[int], None]) -> bytes:
    """A whole object.

    Args:
      path: of the object.
      require: is told the size after the first request; what it raises ends the reading.

    Raises:
      FileNotFoundError: no such object.
    """
    first = read(path, 0, PART_BYTES)
    size = len(first.data) if first.size is None else first.size
    require(size)
    rest = read_range(path, PART_BYTES, size - PART_BYTES, first.tag).data
    return first.data + rest if rest else first.data


def stat(path: str) -> Status | None:
    """Size, time and tag of an object, None when there is none."""

    def head() -> Status | None:
        import obstore

        client, name = client_of(path)
        if not name:
            return None
        try:
            with translated(path):
                meta = obstore.head(client, name)
        except FileNotFoundError:
            return None
        modified = int(meta["last_modified"].timestamp() * 1e9)
        return Status(meta["size"], modified, _tag_of(meta))

    return call(head)


def entries(prefix: str) -> Iterator[Entry]:
    """The objects below a prefix, whatever their names, as the store lists them.

    Placeholders that consoles make for empty folders are left out.

    Raises:
      StoreError: no such bucket, or a name below that cannot be requested (`a//b`, `..`, a line
        break): the listing would be incomplete.
      UsageError: a web server, which lists nothing.
    """
    scheme, bucket, _ = split(prefix)
    empty = []
    for meta in _listed(prefix):
        path = f"{scheme}://{bucket}/{meta['path']}"
        entry = Entry(path, meta["size"], stamp_of(_tag_of(meta)))
        if meta["size"]:
            yield entry
        else:
            empty.append(entry)
    # "a/b/" is listed as "a/b": only an object of that name is a file.
    there = pool().map(stat, [entry.path for entry in empty])
    yield from (entry for entry, status in zip(empty, there, strict=True) if status is not None)


def any_below(prefix: str) -> bool:
    """Whether there is an object below a prefix."""
    return any(True for _ in _listed(prefix, page=1))


def names(directory: str) -> list[str]:
    """Names of the objects directly below a prefix, sorted."""
    import obstore

    def listed() -> Any:
        client, name = client_of(directory)
        with _listing(directory):
            return obstore.list_with_delimiter(client, name.rstrip("/") or None)

    found = call(listed)
    folders = {path.rstrip("/") for path in (*found["common_prefixes"], split(directory)[2])}
    return sorted(
        meta["path"].rpartition("/")[2]
        for meta in found["objects"]
        if meta["size"] or meta["path"] not in folders
    )


def _listed(prefix: str, page: int = 1000) -> Iterator[Any]:
    import obstore

    client, name = client_of(prefix)
    with _listing(prefix):
        stream = iter(obstore.list(client, name.rstrip("/") or None, chunk_size=page))
    while True:
        with _listing(prefix):
            metas = call(lambda: next(stream, None))
        if metas is None:
            return
        yield from metas


@contextmanager
def _listing(prefix: str) -> Iterator[None]:
    scheme = split(prefix)[0]
    if scheme in READ_ONLY:
        raise UsageError(f"{prefix}: {scheme}:// gives single files and archives, no directory")
    try:
        with translated(prefix.rstrip("/"), of="bucket"):
            yield
    except OSError as error:
        raise StoreError(
            f"{prefix.rstrip('/')} holds an object that has to be renamed first: {error.strerror}"
        ) from error


def put(path: str, data: bytes) -> None:
    """Writes an object, at once or not at all.

    Raises:
      StoreError: no such bucket, or the store fails; what was there before still is.
    """
    if len(data) > PART_BYTES:
        with open_write(path) as stream:
            stream.write(data)
    else:
        call(lambda: _put(path, data, "overwrite"))


def put_new(path: str, data: bytes) -> bool:
    """Writes an object unless there is one, which no other writer can come between.

    A retried request may find the object that its first try wrote, so what is there is compared.
    """
    return call(lambda: _put(path, data, "create")) or _is_there(path, data)


COMPARED_BYTES = 4096


def put_over(path: str, data: bytes, over: bytes) -> bool:
    """Replaces an object that holds `over`; False where it holds something else, or is gone.

    Of two writers who replace the same content, one gets True. Of an object longer than
    `COMPARED_BYTES` these are held against `over`.
    """

    def replaced() -> bool:
        import obstore

        client, name = _writable(path)
        try:
            with translated(path):
                found = obstore.get(client, name)
                content = found.bytes().to_bytes()
        except FileNotFoundError:
            return False
        if content[:COMPARED_BYTES] != over:
            return False
        # S3 and Azure go by the tag, Google by the version.
        expected = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
        return _put(path, data, {name: value for name, value in expected.items() if value})

    return call(replaced) or _is_there(path, data)


def _put(path: str, data: bytes, mode: Any) -> bool:
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    client, name = _writable(path)
    with translated(path, of="bucket"):
        try:
            obstore.put(client, name, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
    return True


def _is_there(path: str, data: bytes) -> bool:
    try:
        found = read(path, 0, len(data) + 1)
    except FileNotFoundError:
        return False
    return found.data == data


def _writable(path: str) -> tuple[Any, str]:
    client, name = client_of(path)
    if not name:
        raise OSError(errno.EISDIR, "names a bucket, not an object", path)
    if split(path)[0] == "gs" and settings.is_set("GOOGLE_SKIP_SIGNATURE"):
        raise StoreError(f"{path}: GOOGLE_SKIP_SIGNATURE is set, and without a name one only reads")
    return client, name


class _Upload(Target):
    """An object on its way: small, it is one request; else parts are sent as they are written."""

    def __init__(self, path: str) -> None:
        super().__init__()
        import obstore

        self._path = path
        client, name = _writable(path)
        with translated(path, of="bucket"):
            self._stream: Any = obstore.open_writer(
                client, name, buffer_size=PART_BYTES, max_concurrency=4
            )

    def write(self, data: Any) -> int:
        # A copy: what is sent later must not be the buffer that is filled again by then.
        part = bytes(data)

        def send() -> None:
            with translated(self._path, of="bucket"):
                self._stream.write(part)

        call(send)
        return len(part)

    def publish(self) -> None:
        def finish() -> None:
            with translated(self._path, of="bucket"):
                self._stream.close()

        call(finish)
        super().close()

    def abandon(self) -> None:
        super().close()
        stream, self._stream = self._stream, None
        if stream is not None:
            # As its own block left by an error: the store forgets the parts.
            with suppress(CommandError, OSError), translated(self._path, of="bucket"):
                stream.__exit__(InterruptedError, InterruptedError(), None)


def open_write(path: str) -> Writer:
    """A stream that becomes the object when it is closed."""
    return Writer(_Upload(path))


def copy(source: str, target: str) -> None:
    """Copies an object; within a bucket the store does it.

    Raises:
      FileNotFoundError: no such source.
    """
    import obstore

    def request() -> None:
        client, name = client_of(source)
        _, new = _writable(target)
        with translated(source):
            obstore.copy(client, name, new)

    status = stat(source)
    if status is None:
        raise FileNotFoundError(errno.ENOENT, "no such object or bucket", source)
    if split(source)[:2] == split(target)[:2] and status.size <= _COPY_BYTES:
        call(request)
        return
    with open_write(target) as stream:
        for start in range(0, status.size, PART_BYTES):
            stream.write(read(source, start, PART_BYTES, status.tag).data)


def delete(paths: Iterable[str]) -> None:
    """Deletes objects, several at once; one that is gone already is no error."""
    by_bucket: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        by_bucket.setdefault(split(path)[:2], []).append(path)
    groups = []
    for (scheme, _), found in by_bucket.items():
        # S3 takes many at a time; the others' clients stop at the first that is gone already.
        step = 1000 if scheme == "s3" else 1
        groups += [found[start : start + step] for start in range(0, len(found), step)]
    if len(groups) == 1:
        call(lambda: _delete(groups[0]))
    else:
        list(pool().map(_delete, groups))


def _delete(paths: list[str]) -> None:
    import obstore

    found = [_writable(path) for path in paths]
    with suppress(FileNotFoundError), translated(paths[0]):
        obstore.delete(found[0][0], [name for _, name in found])
