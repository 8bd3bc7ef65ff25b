"""Paths and files: local ones by the operating system, stores' (`gs://`, `s3://`) through Beam.

Beam is imported when a store's path is first used, so that commands on local data do without.
"""

from __future__ import annotations

import os
from typing import IO, Any

from beam_jobs.core.storage import is_input, is_remote, list_local_files, register_remote_opener


def _stores() -> Any:
    """Beam's FileSystems."""
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def _as_it_is() -> str:
    """Beam's word for: do not guess a compression from the name."""
    from apache_beam.io.filesystem import CompressionTypes

    return str(CompressionTypes.UNCOMPRESSED)


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
    found = [entry.path for entry in _stores().match([join(root, "**")])[0].metadata_list]
    return sorted(path for path in found if is_input(path.rsplit("/", 1)[-1]))


def list_names(directory: str) -> list[str]:
    """Names of the files directly in `directory`, sorted; none when it is not there."""
    if not is_remote(directory):
        if not os.path.isdir(directory):
            return []
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    found = _stores().match([join(directory, "*")])[0].metadata_list
    return sorted(entry.path.rsplit("/", 1)[-1] for entry in found)


def open_read(path: str) -> IO[bytes]:
    """Opens a file for reading as it is, whatever its extension says of compression."""
    if not is_remote(path):
        return open(path, "rb")
    stream: IO[bytes] = _stores().open(path, compression_type=_as_it_is())
    return stream


def open_write(path: str) -> IO[bytes]:
    """Opens a file for writing as it is; its directory is made."""
    if not is_remote(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return open(path, "wb")
    stream: IO[bytes] = _stores().create(path, compression_type=_as_it_is())
    return stream


def exists(path: str) -> bool:
    """Whether a file or directory is there."""
    if not is_remote(path):
        return os.path.exists(path)
    return bool(_stores().exists(path)) or bool(list_names(path))


def replace(source: str, target: str) -> None:
    """Renames `source` to `target`, which it replaces; atomic on a local disk."""
    if not is_remote(target):
        os.replace(source, target)
        return
    if _stores().exists(target):
        _stores().delete([target])
    _stores().rename([source], [target])


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
    """Deletes files; one that is gone already is no error."""
    remote = [path for path in paths if is_remote(path)]
    for path in paths:
        if not is_remote(path) and os.path.lexists(path):
            os.unlink(path)
    if remote:
        _stores().delete(remote)


def use_remote_paths_in_core() -> None:
    """Lets the pure core open `gs://` and `s3://` paths in this process."""
    register_remote_opener(open_read)
