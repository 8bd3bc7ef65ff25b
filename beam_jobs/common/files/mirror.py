"""Directories that must be local while they are used: a store's is mirrored in a temporary one.

Keras, TensorFlow and TensorBoard read and write disks only.

    with mirrored("s3://bucket/run", resume=True) as run:
        train(run.local, after_epoch=run.push)

    with fetched("s3://bucket/model") as model:
        tf.saved_model.load(model)

A local path is its own mirror, at no cost.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from beam_jobs.common import interrupts
from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.files import objects
from beam_jobs.common.files.clients import pool
from beam_jobs.common.files.local import require_plain
from beam_jobs.common.files.names import (
    StrPath,
    is_archive,
    is_remote,
    name_of,
    require_writable,
    split_member,
    text,
)
from beam_jobs.common.files.opening import require_names
from beam_jobs.common.files.scratch import scratch, shared
from beam_jobs.common.files.store_lock import LockedError

# What a store may take when a command was interrupted; a second signal ends that too.
_PUSH_S = 30.0


class Mirror:
    """A local directory and the place it stands for.

    Attributes:
      path: the place.
      local: where to write and read.
    """

    def __init__(self, path: str, local: Path) -> None:
        self.path = path
        self.local = local
        # Name → state (`_files`) of the files that are in the store as they are here.
        self._there: dict[str, tuple[int, int, int]] = {}

    def push(self) -> None:
        """Brings the place up to what is here now.

        Files that are gone here go first, then new and changed ones in the order in which they
        were changed, JSON behind all others, so that a marker written last arrives last. Only what
        this mirror put or fetched is ever deleted.

        Raises:
          StoreError: the store refuses; what arrived stays, and the next `push` sends the rest.
        """
        if not is_remote(self.path):
            return
        here = _files(self.local)
        gone = [name for name in self._there if name not in here]
        objects.delete([f"{self.path}/{name}" for name in gone])
        for name in gone:
            del self._there[name]
        changed = [name for name, state in here.items() if self._there.get(name) != state]
        # JSON last, for a marker is: the clock may have gone back before it was written.
        changed.sort(key=lambda name: (name.endswith(".json"), here[name][1], name))
        for _, group in itertools.groupby(changed, key=lambda name: _group(name, here[name][0])):
            sent = {name: self._send(name) for name in group}
            for name, upload in sent.items():
                upload.result()
                self._there[name] = here[name]

    def _send(self, name: str) -> Future[None]:
        return pool().submit(_upload, self.local / name, f"{self.path}/{name}")

    def fetch(self) -> None:
        """Fills the directory with what is in the place."""
        self._there.update(_download(self.path, self.local))


def _group(name: str, size: int) -> tuple[str, ...]:
    """Neighbours that may arrive in any order: small ones of one kind in one directory.

    JSON may be a marker, and several large ones would take memory: they come alone.
    """
    directory, file = os.path.split(name)
    suffix = os.path.splitext(file)[1]
    alone = suffix in ("", ".json") or size > objects.PART_BYTES
    return (directory, suffix, file if alone else "")


@contextmanager
def mirrored(path: StrPath, *, resume: bool = False) -> Iterator[Mirror]:
    """A directory to be written, wherever it is to lie in the end.

    It is pushed when the block ends; when it ends by an error, what there is is pushed too, as it
    would lie on a disk. Only one that lost its lock (`Lock.require`) pushes nothing.

    Args:
      path: the directory.
      resume: begin with what lies there already. Whoever looks at that, be it to refuse another
        run's directory, needs it as well.

    Raises:
      UsageError: nothing can be written there.
      StoreError: the store refuses.
    """
    path = text(path)
    require_writable(path)
    if not is_remote(path):
        yield Mirror(path, Path(path))
        return
    with scratch("mirror") as directory:
        mirror = Mirror(path.rstrip("/"), directory / (name_of(path) or "output"))
        mirror.local.mkdir()
        if resume:
            mirror.fetch()
        try:
            yield mirror
        except LockedError:  # the place is another job's by now
            raise
        except BaseException:
            interrupts.allow(_PUSH_S)
            with contextlib.suppress(CommandError, OSError):
                mirror.push()
            raise
        mirror.push()


@contextmanager
def fetched(path: StrPath) -> Iterator[Path]:
    """A file or directory to be read by something that reads disks only.

    Raises:
      FileNotFoundError: a store has nothing there.
      SpecialFileError: a named pipe, a device or a socket.
      UsageError: an archive, which is never unpacked to a disk, or a DICOMweb service.
      StoreError: the store refuses.
    """
    path = text(path)
    if (there := _on_disk(path)) is not None:
        yield there
        return
    with scratch("mirror") as directory:
        _fetch(path, directory)
        yield directory / _local_name(path)


def fetched_once(path: StrPath, key: str) -> Path:
    """`fetched` until this process ends, and fetched once for all of a machine that live then.

    Args:
      path: the file or directory.
      key: tells what is there from everything else that may be fetched.

    Raises:
      As `fetched`.
    """
    path = text(path)
    if (there := _on_disk(path)) is not None:
        return there
    return shared("mirror", key, lambda directory: _fetch(path, directory)) / _local_name(path)


def _on_disk(path: str) -> Path | None:
    """What needs no fetching; None for what lies in a store."""
    if is_archive(path) or split_member(path) is not None:
        raise UsageError(f"{path}: has to be unpacked first")
    require_names(path)
    if is_remote(path):
        return None
    require_plain(path)
    return Path(path)


def _local_name(path: str) -> str:
    return name_of(path.rstrip("/")) or "input"


def _fetch(path: str, directory: Path) -> None:
    """Puts what lies in a store into a local directory, under its own name."""
    path = path.rstrip("/")
    local = directory / _local_name(path)
    if objects.stat(path) is not None:
        _download_file(path, local)
        return
    local.mkdir()
    if not _download(path, local):
        raise FileNotFoundError(errno.ENOENT, "no such object or bucket", path)


def _files(root: Path) -> dict[str, tuple[int, int, int]]:
    """Name → (bytes, time of change in ns, inode) of every file below a directory.

    A file that replaces another may be of its size, and of its time where the clock went back.
    """
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                state = status.st_size, status.st_mtime_ns, status.st_ino
                found[path.relative_to(root).as_posix()] = state
    return found


def _download(prefix: str, root: Path) -> dict[str, tuple[int, int, int]]:
    prefix = prefix.rstrip("/") + "/"
    paths = {
        entry.path: root / entry.path.removeprefix(prefix) for entry in objects.entries(prefix)
    }
    for directory in {local.parent for local in paths.values()}:
        directory.mkdir(parents=True, exist_ok=True)
    list(pool().map(_download_file, paths.keys(), paths.values()))
    return _files(root)


def _download_file(path: str, local: Path) -> None:
    with local.open("wb") as stream:
        piece = objects.read(path, 0, objects.PART_BYTES)
        stream.write(piece.data)
        for start in range(objects.PART_BYTES, piece.size or 0, objects.PART_BYTES):
            stream.write(objects.read(path, start, objects.PART_BYTES, piece.tag).data)


def _upload(local: Path, path: str) -> None:
    with local.open("rb") as stream, objects.open_write(path) as target:
        while data := stream.read(objects.PART_BYTES):
            target.write(data)
