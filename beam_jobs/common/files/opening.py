"""Which kind of file a path names, and what lies below a root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from beam_jobs.common.files import local, objects
from beam_jobs.common.files.names import Entry, is_input_below, is_remote, join
from beam_jobs.common.files.sources import ByteSource, ObjectBytes


@contextmanager
def open_bytes(path: str) -> Iterator[ByteSource]:
    """Opens a file for reading at any place."""
    source = open_source(path)
    try:
        yield source
    finally:
        source.close()


def open_source(path: str) -> ByteSource:
    """`open_bytes` without the block; who calls it closes it."""
    return ObjectBytes(path) if is_remote(path) else local.LocalBytes(path)


def entries(root: str) -> list[Entry]:
    """The files below a root that are read, sorted by their path."""
    if not is_remote(root):
        return [Entry(path) for path in local.list_files(root)]
    prefix = join(root, "")
    return sorted(
        entry for entry in objects.entries(prefix) if is_input_below(entry.path[len(prefix) :])
    )


def holds_files(root: str) -> bool:
    """Whether `entries` would find any."""
    if not is_remote(root):
        return bool(entries(root))
    prefix = join(root, "")
    return any(is_input_below(entry.path[len(prefix) :]) for entry in objects.entries(prefix))
