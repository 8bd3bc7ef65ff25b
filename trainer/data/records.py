"""Shards to batches in tf.data; an epoch has one order, whoever reads it and whenever.

    (seed, epoch) → a permutation of the records' numbers
      → batch                              the same whatever the number of processes
      → this process' rows of each batch   the others' are not even read
      → voxels, each from its shard straight into its place in the batch (`record_reader`)
      → choice of channels                 stored integers until the device
      → prefetch

Records were parsed and held against the manifest when the shards were opened; what is read later
are voxels, under the record's checksum.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.target import Label
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import RecordSchema
from trainer.config.run import CACHES
from trainer.data.record_reader import Shard, ShardStore
from trainer.data.targets import targets_of, truth_of

_READS = 2  # batches read at a time
_AHEAD = 2  # batches that wait for the device
# As a Python function's exception stands in TensorFlow's message.
_REFUSAL = re.compile(r"ContractError: (.+)")


@dataclasses.dataclass(kw_only=True, eq=False)
class Records:
    """The records of some folds, ready to be iterated over.

    A context manager: at its end, or by `close()`, memory and cache file are given back, unless
    other records of the dataset still use them. TensorFlow may keep a dataset for ever; without
    `close()` it would keep these too.

    Attributes:
      count: records.
      schema: the contract they were checked by.
      channels: index of each chosen modality in the record, in the order wanted.
      patient_ids: (count,) bytes.
      labels: `targets.truth_of` the records' labels: of a binary (count,) int64, -1 where none is.
      covariates: (count, chosen) float32, in the order wanted; NaN where one is not known.
    """

    count: int
    schema: RecordSchema
    channels: tuple[int, ...]
    patient_ids: npt.NDArray[np.object_]
    labels: npt.NDArray[Any]
    covariates: npt.NDArray[np.float32]
    _rows: tuple[tuple[Shard, int], ...]
    _store: ShardStore | None

    def training_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        epochs: int,
        first_epoch: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """Batches of epochs first_epoch … epochs - 1, one stream without pauses between.

        Every epoch holds each record once, in an order that depends on `seed` and the epoch alone.

        Args:
          batch_size: rows of a batch, all processes' together.
          seed: of the order.
          epochs: after the last.
          first_epoch: to begin with, as if those before had been read.
          part: (i, n): the i-th of n processes, which gets rows b*i//n to b*(i+1)//n of each batch
            of b. A last batch with fewer rows than processes is left out.

        Returns:
          dicts of "volume": (rows, row, column, slice, channel) as stored, "label": float32
          (rows, outputs), `targets.targets_of` the labels, "patient_id": string (rows,), and,
          where there are any, "covariates": float32 (rows, covariates).

        Raises:
          UsageError: a batch has fewer rows than there are processes.
          ContractError: records without a label.
        """
        index, parts = part
        if batch_size < parts:
            raise UsageError(f"--batch_size {batch_size} is less than the {parts} processes")
        targets = targets_of(self.schema.target, self.labels)
        unlabelled = np.isnan(targets).all(axis=1)
        if unlabelled.any():
            names = b", ".join(self.patient_ids[unlabelled][:5]).decode()
            raise ContractError(f"records without a label cannot be trained on: {names}")

        def own_rows(epoch: tf.Tensor) -> tf.data.Dataset:
            # Stateless: TensorFlow's global seed, and what else was drawn from it, do not matter.
            keys = tf.random.stateless_uniform(
                [self.count], tf.stack([tf.cast(seed, tf.int64), epoch]),
                minval=None, maxval=None, dtype=tf.int32, alg="philox",
            )  # fmt: skip
            batches = tf.data.Dataset.from_tensor_slices(tf.argsort(keys, stable=True))
            batches = batches.batch(batch_size).take(self.steps(batch_size, parts))
            return batches.map(
                lambda rows: rows[
                    tf.size(rows) * index // parts : tf.size(rows) * (index + 1) // parts
                ]
            )

        return self._read(tf.data.Dataset.range(first_epoch, epochs).flat_map(own_rows), targets)

    def evaluation_batches(self, *, batch_size: int) -> tf.data.Dataset:
        """{"patient_id", "volume", "label"[, "covariates"]} of every record once, in shard order.

        The label is as in `labels`: of a binary int64 (rows,), -1 where the record has none.
        """
        rows = tf.data.Dataset.range(self.count, output_type=tf.int32).batch(batch_size)
        return self._read(rows, self.labels)

    def steps(self, batch_size: int, parts: int = 1) -> int:
        """Batches an epoch; the last may be smaller, but not than `parts`."""
        whole, rest = divmod(self.count, batch_size)
        return whole + (rest >= parts and rest > 0)

    def close(self) -> None:
        """Lets go of memory and cache file; batches that are read afterwards fail."""
        self._rows, self._store = (), None

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, rows: tf.data.Dataset, labels: npt.NDArray[Any]) -> tf.data.Dataset:
        """Numbers of records (rows,) → their batches, prefetched in a fixed order.

        Args:
          rows: of the batches.
          labels: of all records, (count, ...).

        Without autotune: its thread holds up epochs' ends.
        """
        shape, volume_bytes = self.schema.volume_shape, self.schema.volume_bytes

        def read(numbers: npt.NDArray[np.int32]) -> tuple[Any, ...]:
            rows = self._rows
            if not rows:
                raise ValueError("these records are closed")
            voxels = np.empty((len(numbers), volume_bytes), np.uint8)
            for row, number in enumerate(numbers.tolist()):
                shard, place = rows[number]
                shard.read_voxels(place, voxels[row])
            volume = voxels.view(self.schema.dtype).reshape(-1, *shape)
            known = [self.covariates[numbers]] if self.covariates.shape[1] else []
            return volume, labels[numbers], self.patient_ids[numbers], *known

        def batch_of(numbers: tf.Tensor) -> dict[str, tf.Tensor]:
            kinds = [tf.as_dtype(self.schema.dtype), tf.as_dtype(labels.dtype), tf.string]
            covariates = self.covariates.shape[1]
            if covariates:
                kinds.append(tf.float32)
            volume, label, patient_id, *known = tf.numpy_function(read, [numbers], kinds)
            volume = tf.ensure_shape(volume, (None, *shape))
            batch = {
                "volume": _choose_channels(volume, self.channels),
                "label": tf.ensure_shape(label, (None, *labels.shape[1:])),
                "patient_id": tf.ensure_shape(patient_id, (None,)),
            }
            if covariates:
                batch["covariates"] = tf.ensure_shape(known[0], (None, covariates))
            return batch

        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        # Every process has its own rows already.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        batches = rows.map(batch_of, num_parallel_calls=_READS)
        return batches.prefetch(_AHEAD).with_options(options)


def open_records(
    data: files.StrPath,
    manifest: Manifest,
    folds: Iterable[int | None],
    *,
    modalities: tuple[str, ...],
    covariates: tuple[str, ...] = (),
    labels: Mapping[str, Label] | None = None,
    cache: str = "auto",
    cache_dir: Path | None = None,
) -> Records:
    """Opens the shards of some folds and holds every record against the manifest.

    Every shard is read whole and hashed the first time a process opens it. Records that are open
    at a time share what they cache, so a run that keeps all folds open fetches each shard once.

    Args:
      data: the dataset's directory, local or in a store.
      manifest: the dataset's.
      folds: which to read; None among them stands for patients of no fold.
      modalities: channels to deliver, in this order; each must be in the schema.
      covariates: to deliver, in this order; each must be in the schema.
      labels: replaces the records' labels.
      cache: "memory" keeps the shards' bytes, "file" a copy on a local disk, "none" reads local
        shards where they are. "auto": memory where they fit into a quarter of it; else a file for
        shards in a store, none for local ones.
      cache_dir: where the cache file goes (default: the system's directory for temporary files).

    Raises:
      UsageError: a cache that cannot be.
      ContractError: shards or records are not what the manifest says.
      CommandError: a store refuses or fails.
    """
    data, folds = files.text(data), tuple(folds)
    entries = manifest.shards_of(folds)
    cache = _resolve_cache(cache, cache_dir, data, sum(entry.bytes for entry in entries))
    store = ShardStore.of(data, cache, cache_dir or Path(tempfile.gettempdir()))
    shards = store.open(data, entries, manifest.schema)
    patients = [patient for entry in entries for patient in entry.patients]
    columns = [manifest.schema.covariate_names.index(name) for name in covariates]
    known = [
        patient.label if labels is None else labels.get(patient.patient_id) for patient in patients
    ]
    return Records(
        count=len(patients),
        schema=manifest.schema,
        channels=tuple(manifest.schema.modalities.index(name) for name in modalities),
        patient_ids=np.array([patient.patient_id.encode() for patient in patients], object),
        labels=truth_of(manifest.schema.target, known),
        covariates=np.concatenate(
            [
                np.empty((0, len(columns)), np.float32),
                *(one.covariates[:, columns] for one in shards),
            ]
        ),
        _rows=tuple((shard, number) for shard in shards for number in range(len(shard.spans))),
        _store=store,
    )


def contract_error(
    error: tf.errors.OpError, *, data: files.StrPath, manifest: Manifest
) -> ContractError | None:
    """What a TensorFlow error says about the records; None when it is about something else.

    Args:
      error: met while records were read.
      data: the dataset's directory.
      manifest: the dataset's.
    """
    if found := _REFUSAL.search(error.message):
        return ContractError(found[1])
    if isinstance(error, tf.errors.DataLossError):
        return ContractError(
            f"a shard of {data} ({len(manifest.shards)} in the manifest) cannot be read: "
            f"{' '.join(error.message.split())}"
        )
    return None


def _resolve_cache(cache: str, cache_dir: Path | None, data: str, total: int) -> str:
    """The kind of cache that "auto" means, or the one requested.

    Raises:
      UsageError: there is no such kind, or not for this data.
    """
    remote = files.is_remote(data)
    if cache not in CACHES:
        raise UsageError(f"--cache {cache}: known: {', '.join(CACHES)}")
    if cache == "none" and remote:
        raise UsageError(
            f"--cache none is for local data: records of {data} are read in an order of their own, "
            "and each would be fetched alone, every epoch"
        )
    if cache_dir is not None and cache not in ("file", "auto"):
        raise UsageError(f"a cache directory is for --cache file, not for --cache {cache}")
    if cache == "auto":
        fits = total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        cache = "memory" if fits else "file" if remote else "none"
    if cache == "file" and cache_dir is not None and not cache_dir.is_dir():
        raise UsageError(f"cache directory {cache_dir}: no such directory")
    return cache


def _choose_channels(volume: tf.Tensor, channels: tuple[int, ...]) -> tf.Tensor:
    """The chosen channels of (batch, row, column, slice, channel), copied only if need be."""
    first, count = channels[0], len(channels)
    if channels == tuple(range(volume.shape[-1])):
        return volume
    if channels == tuple(range(first, first + count)):
        return volume[..., first : first + count]
    return tf.gather(volume, channels, axis=-1)
