"""Shards opened for reading by record, in any order: verified, indexed, and cached if wanted.

    shard → whole, once: sha256 against the manifest → where each record and its voxels lie
          → kept in memory, copied to a cache file, or left where it is
    row   → one scattering read: head of the record | voxels, into their batch | tail → CRC32C

Voxels so reach their batch in one copy, where TensorFlow's reader, parser and decoder make three;
and an order of records is an order of numbers: nothing is held back to shuffle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import CommandError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.core.example import (
    covariates_of,
    features_of,
    label_of,
    only_value,
    voxels_offset,
)
from beam_jobs.core.manifest import ShardEntry
from beam_jobs.core.record import RecordSchema
from beam_jobs.core.tfrecord import (
    HEAD_BYTES,
    TAIL_BYTES,
    RecordFrame,
    masked_crc,
    read_records,
    record_frames,
)

_AT_ONCE = 4  # shards fetched and hashed side by side; each takes its size in memory


class VoxelSpan(NamedTuple):
    """Where a record and its voxels lie in their shard.

    Attributes:
      frame: of the record.
      voxels: byte offset of the first voxel.
    """

    frame: RecordFrame
    voxels: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """A shard that is what the manifest says.

    Attributes:
      path: where it comes from.
      spans: of its records, in order.
      covariates: (records, covariates) float32, NaN where one is not known.
      content: the bytes, where they are kept in memory.
      cached: (file, offset) of the copy in a cache file, if there is one.
    """

    path: str
    spans: tuple[VoxelSpan, ...]
    covariates: npt.NDArray[np.float32]
    content: npt.NDArray[np.uint8] | None = None
    cached: tuple[CacheFile, int] | None = None

    def read_voxels(self, number: int, voxels: npt.NDArray[np.uint8]) -> None:
        """Fills `voxels` (bytes,) with those of a record.

        Raises:
          ContractError: the record is not, or no longer, what was written.
        """
        frame, at = self.spans[number]
        if self.content is not None:
            voxels[:] = self.content[at : at + len(voxels)]
            return
        head = np.empty(at - frame.start, np.uint8)
        tail = np.empty(frame.end - at - len(voxels), np.uint8)
        try:
            if self.cached is not None:
                file, offset = self.cached
                _read_whole(file.descriptor, [head, voxels, tail], offset + frame.start)
            else:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _read_whole(descriptor, [head, voxels, tail], frame.start)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise ContractError(f"{self.path}: {error.strerror or error}") from error
        found = masked_crc(head[HEAD_BYTES:], voxels, tail[:-TAIL_BYTES])
        if found != int.from_bytes(tail[-TAIL_BYTES:].tobytes(), "little"):
            raise ContractError(
                f"{self.path}: corrupt record at byte {frame.start}: damaged when it was written, "
                "changed since this run began, or the disk errs"
            )


class CacheFile:
    """A file without a name: what a killed run used is free at once, and no run meets another's.

    It is closed when the last shard in it is forgotten.

    Args:
      directory: where there is room for it.
    """

    def __init__(self, directory: Path) -> None:
        try:
            with tempfile.TemporaryFile(buffering=0, dir=directory) as file:
                self.descriptor = os.dup(file.fileno())
        except OSError as error:
            raise CommandError(f"cache file in {directory}: {error.strerror}") from error
        weakref.finalize(self, os.close, self.descriptor)
        self._directory = directory
        self._end = 0
        self._lock = threading.Lock()

    def append(self, content: bytes) -> int:
        """Puts a shard into the file; returns its offset there.

        Raises:
          CommandError: there is no room for it.
        """
        with self._lock:
            offset, self._end = self._end, self._end + len(content)
        rest, at = memoryview(content), offset
        try:
            while rest:
                written = os.pwrite(self.descriptor, rest, at)
                rest, at = rest[written:], at + written
        except OSError as error:
            raise CommandError(
                f"cache file in {self._directory}, {at >> 20} MB so far: {error.strerror}"
            ) from error
        return offset


class _WrongShardError(ContractError):
    """A shard whose hash or count of records is not the manifest's; the message names it."""


# Verified local files by path, hash and time of change: folds and epochs do not hash them again.
_left_in_place: dict[tuple[Any, ...], Shard] = {}


class ShardStore:
    """The opened shards of one dataset; all who open them while it lives share them.

    Args:
      cache: "memory", "file" or "none".
      cache_dir: takes the cache file.
    """

    _living: ClassVar[weakref.WeakValueDictionary[tuple[str, str, str], ShardStore]] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, cache: str, cache_dir: Path) -> None:
        self._keeps = cache == "memory"
        self._file = CacheFile(cache_dir) if cache == "file" else None
        self._shards: dict[tuple[Any, ...], Shard] = {} if cache != "none" else _left_in_place

    @classmethod
    def of(cls, data: str, cache: str, cache_dir: Path) -> ShardStore:
        """The living store of this dataset and kind of cache, or a new one."""
        key = (data, cache, str(cache_dir))
        store = cls._living.get(key)
        if store is None:
            store = cls._living[key] = cls(cache, cache_dir)
        return store

    def open(
        self, data: str, entries: Sequence[ShardEntry], schema: RecordSchema
    ) -> tuple[Shard, ...]:
        """Shards of the dataset, verified: whole and by hash, then record by record.

        Raises:
          ContractError: shards that are missing, of a wrong size, hash or count, or with records
            that are not what manifest and schema say; the message names each with both sides.
          CommandError: a store or the cache file fails.
        """
        paths = [files.join(data, entry.name) for entry in entries]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            sizes = list(pool.map(_size, paths))
            for path, found, entry in zip(paths, sizes, entries, strict=True):
                if found != entry.bytes:
                    raise ContractError(f"{path}: {found} bytes, the manifest says {entry.bytes}")
            opened = [
                pool.submit(self._open, path, entry, schema)
                for path, entry in zip(paths, entries, strict=True)
            ]
        errors = [future.exception() for future in opened]
        if wrong := [str(error) for error in errors if isinstance(error, _WrongShardError)]:
            raise ContractError(f"shards with a wrong hash or count: {'; '.join(wrong)}")
        return tuple(future.result() for future in opened)

    def _open(self, path: str, entry: ShardEntry, schema: RecordSchema) -> Shard:
        """One shard of `open`.

        Raises:
          _WrongShardError: its hash or count is not the manifest's.
        """
        key = (path, entry, schema, _stamp(path))
        if shard := self._shards.get(key):
            return shard
        try:
            whole = files.read(path, limit=entry.bytes)
        except files.TooLargeError as error:
            raise _WrongShardError(
                f"{path} (more than {entry.bytes} bytes, which the manifest says)"
            ) from error
        if (found := hashlib.sha256(whole).hexdigest()) != entry.sha256:
            raise _WrongShardError(
                f"{path} ({_damage(whole)}sha256 {found}, the manifest says {entry.sha256})"
            )
        try:
            frames = list(record_frames(memoryview(whole)))
            wrong = len(frames) != entry.count
            spans, covariates = ((), ()) if wrong else _rows_of(whole, frames, entry, schema)
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from error
        if wrong:
            raise _WrongShardError(
                f"{path} ({len(frames)} records, the manifest says {entry.count})"
            )
        shard = self._shards[key] = Shard(
            path=path,
            spans=spans,
            covariates=np.array(covariates, np.float32).reshape(len(spans), len(schema.covariates)),
            content=np.frombuffer(whole, np.uint8) if self._keeps else None,
            cached=None if self._file is None else (self._file, self._file.append(whole)),
        )
        return shard


def _stamp(path: str) -> tuple[int, ...]:
    """Separates a local file from what it was before."""
    if files.is_remote(path):
        return ()
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _size(path: str) -> int:
    try:
        return files.size(path)
    except FileNotFoundError as error:
        raise ContractError(f"{path}: the manifest lists this shard, it does not exist") from error


def _rows_of(
    content: bytes, frames: Sequence[RecordFrame], entry: ShardEntry, schema: RecordSchema
) -> tuple[tuple[VoxelSpan, ...], tuple[tuple[float, ...], ...]]:
    """Where the voxels of a shard's records lie, and the records' covariates.

    Each record is held against schema and manifest.

    Raises:
      ContractError: names the patients whose records differ, and in what.
    """
    spans, covariates, odd = [], [], []
    for frame, patient in zip(frames, entry.patients, strict=True):
        data = content[frame.data]
        try:
            features = features_of(data)
        except ContractError as error:
            raise ContractError(f"record at byte {frame.start}: {error}") from error
        expected = {
            "schema_version": ("int64_list", schema.version),
            "spec_fingerprint": ("bytes_list", schema.spec_fingerprint.encode()),
            "fold": ("int64_list", entry.fold),
        }
        for name, (kind, value) in expected.items():
            if (found := only_value(features, name, kind)) != value:
                raise ContractError(
                    f"record off its contract: {name} {found!r} in the record of "
                    f"{patient.patient_id}, {value!r} in the manifest"
                )
        volume = only_value(features, "volume", "bytes_list")
        if volume is None or len(volume) != schema.volume_bytes:
            raise ContractError(
                f"record off its contract: {len(volume or b'')} bytes of voxels in the "
                f"record of {patient.patient_id}, {schema.volume_bytes} in the manifest"
            )
        own_id = only_value(features, "patient_id", "bytes_list")
        label = label_of(features, schema.target)
        if (own_id, label) != (patient.patient_id.encode(), patient.label):
            odd.append(patient.patient_id)
        spans.append(VoxelSpan(frame, frame.data.start + voxels_offset(data, volume)))
        covariates.append(covariates_of(features))
        if len(covariates[-1]) != len(schema.covariates):
            raise ContractError(
                f"record off its contract: {len(covariates[-1])} covariates in the record of "
                f"{patient.patient_id}, {len(schema.covariates)} in the manifest"
            )
    if odd:
        raise ContractError(
            f"records and manifest differ in patients or labels: {', '.join(odd[:5])}"
        )
    return tuple(spans), tuple(covariates)


def _damage(content: bytes) -> str:
    """The first damaged record, for a message; "" where every checksum fits."""
    try:
        for _ in read_records(io.BytesIO(content)):
            pass
    except ContractError as error:
        return f"{error}; "
    return ""


def _read_whole(descriptor: int, parts: Sequence[npt.NDArray[np.uint8]], offset: int) -> None:
    """Fills all of `parts` in turn, in one system call where the file system plays along.

    Raises:
      OSError: the file ends before.
    """
    views = [part.data for part in parts if part.size]
    while views:
        count = os.preadv(descriptor, views, offset)
        if count == 0:
            raise OSError("the file ends within a record: cut since this run began")
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]
