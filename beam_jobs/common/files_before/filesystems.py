"""Paths and files: local ones by the operating system, stores' (`gs://`, `s3://`) by `stores`.

`stores` imports Beam when a store's path is first used: commands on local data do without.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import IO

from beam_jobs.common.files_before import store_streams
from beam_jobs.common.files_before.storage import (
    is_input,
    is_remote,
    list_local_files,
    register_remote_opener,
)
from beam_jobs.common.files_before.stores import Entry
from beam_jobs.common.files_before.stores import store_of as _store


def join(directory: str, name: str) -> str:
    """`directory/name` on either kind of path."""
    return f"{directory.rstrip('/')}/{name}"


def list_files(root: str) -> list[str]:
    """Every file below `root`, sorted; hidden files and DICOMDIR are left out.

    Raises:
      OSError: `root` is not there.
    """
    if not is_remote(root):
        return list_local_files(root)
    return [entry.path for entry in list_entries(root)]


def list_entries(root: str) -> list[Entry]:
    """The files of `list_files`, with what a store's listing says of them."""
    if not is_remote(root):
        return [Entry(path) for path in list_local_files(root)]
    prefix = join(root, "")
    return sorted(
        entry
        for entry in _store(root).entries(prefix)
        if _is_input_below(entry.path[len(prefix) :])
    )


def _is_input_below(name: str) -> bool:
    """Whether a name below a root is read: as on a disk, nothing in hidden directories is."""
    *directories, file = name.split("/")
    return is_input(file) and not any(part.startswith(".") for part in directories)


def holds_files(root: str) -> bool:
    """Whether `list_files` of a store's prefix would find any."""
    prefix = join(root, "")
    entries = _store(root).entries(prefix)
    return any(_is_input_below(entry.path[len(prefix) :]) for entry in entries)


def list_names(directory: str) -> list[str]:
    """Names of the files directly in `directory`, sorted; none when it is not there."""
    if not is_remote(directory):
        if not os.path.isdir(directory):
            return []
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    prefix = join(directory, "")
    names = (entry.path[len(prefix) :] for entry in _store(prefix).entries(prefix, deep=False))
    return sorted(name for name in names if name)


def open_read(path: str) -> IO[bytes]:
    """Opens a file for reading as it is, whatever its extension says of compression."""
    if not is_remote(path):
        return open(path, "rb")
    return store_streams.open_read(path)


def open_write(path: str) -> IO[bytes]:
    """Opens a file for writing as it is; its directory is made."""
    if not is_remote(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return open(path, "wb")
    return store_streams.open_write(path)


def exists(path: str) -> bool:
    """Whether a file or directory is there."""
    if not is_remote(path):
        return os.path.exists(path)
    if _store(path).size(path) is not None:
        return True
    below = _store(path).entries(join(path, ""))
    return bool(list(itertools.islice(below, 1)))


def replace(source: str, target: str) -> None:
    """Renames `source` to `target`, which it replaces at once; stores copy and delete."""
    if not is_remote(target):
        os.replace(source, target)
        return
    _store(target).copy(source, target)
    _store(source).delete([source])


def write_text(path: str, text: str) -> None:
    """Writes a text file whole: no reader ever finds half of it."""
    if is_remote(path):
        _store(path).put(path, text.encode())
        return
    temporary = f"{path}.part"
    with open_write(temporary) as stream:
        stream.write(text.encode())
    replace(temporary, path)


def write_new_text(path: str, text: str) -> bool:
    """Writes a store's object unless there is one; whether it was written."""
    return _store(path).put_new(path, text.encode()) or read_text(path) == text


def read_text(path: str) -> str:
    """Reads a text file."""
    with open_read(path) as stream:
        return stream.read().decode()


def delete(paths: list[str]) -> None:
    """Deletes files; one that is gone already is no error."""
    remote = [path for path in paths if is_remote(path)]
    for path in paths:
        if not is_remote(path) and os.path.lexists(path):
            os.unlink(path)
    if remote:
        _store(remote[0]).delete(remote)


def fetched_ahead(entries: Iterable[Entry], length: int) -> AbstractContextManager[None]:
    """Fetches the begins of objects while they are worked through; see `store_streams.ahead`.

    Without it every file of a store would be waited for in turn. Local files are left alone.
    """
    entries = list(entries)
    if not any(is_remote(entry.path) for entry in entries):
        return nullcontext()
    return store_streams.ahead(entries, length)


def use_remote_paths_in_core() -> None:
    """Lets the pure core open `gs://` and `s3://` paths in this process."""

    def opener(path: str) -> IO[bytes]:
        return store_streams.StoreFile(path)  # type: ignore[return-value]

    register_remote_opener(opener)
