"""Paths and files, local or in an object store, through Beam's filesystems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from beam_jobs.core.storage import is_input, is_remote, list_local_files, register_remote_opener


def join(directory: str, name: str) -> str:
    """`directory/name` on either kind of path."""
    return f"{directory.rstrip('/')}/{name}"


def list_files(root: str) -> list[str]:
    """Every file below `root`, sorted; hidden files and DICOMDIR are left out.

    Raises:
      OSError: `root` is not there.
    """
    if is_remote(root):
        pattern = join(root, "**")
        found = [entry.path for entry in FileSystems.match([pattern])[0].metadata_list]
        return sorted(path for path in found if is_input(path.rsplit("/", 1)[-1]))
    return list_local_files(root)


def open_read(path: str) -> IO[bytes]:
    """Opens a file for reading as it is, whatever its extension says of compression."""
    stream: Any = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return stream  # type: ignore[no-any-return]


def open_write(path: str) -> IO[bytes]:
    """Opens a file for writing as it is; its directory is made."""
    if not is_remote(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    stream: Any = FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return stream  # type: ignore[no-any-return]


def exists(path: str) -> bool:
    """Whether a file or directory is there."""
    if not is_remote(path):
        return os.path.exists(path)
    return bool(FileSystems.exists(path)) or any(True for _ in _below(path))


def _below(path: str) -> Iterator[str]:
    for entry in FileSystems.match([join(path, "*")])[0].metadata_list:
        yield entry.path


def replace(source: str, target: str) -> None:
    """Renames `source` to `target`, which it replaces; atomic on a local disk."""
    if not is_remote(target):
        os.replace(source, target)
        return
    if FileSystems.exists(target):
        FileSystems.delete([target])
    FileSystems.rename([source], [target])


def write_text(path: str, text: str) -> None:
    """Writes a text file whole: under a temporary name, then renamed."""
    temporary = f"{path}.part"
    with open_write(temporary) as stream:
        stream.write(text.encode())
    replace(temporary, path)


def read_text(path: str) -> str:
    """Reads a text file."""
    with open_read(path) as stream:
        return stream.read().decode()


def delete(paths: list[str]) -> None:
    """Deletes files."""
    if paths:
        FileSystems.delete(paths)


def use_remote_paths_in_core() -> None:
    """Lets the pure core open `gs://` and `s3://` paths in this process."""
    register_remote_opener(open_read)


def list_names(directory: str) -> list[str]:
    """Names of the files directly in `directory`, sorted; none when it is not there."""
    if not is_remote(directory):
        return sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    return sorted(path.rsplit("/", 1)[-1] for path in _below(directory))
