"""Shards to batches in tf.data, top to bottom; an epoch has one order, whenever it is read.

shard files of the wanted folds (manifest)
  → interleaved reads, in a fixed order       serialized Examples
  → cache in memory where they fit
  → shuffle, seeded by (seed, epoch)          bytes, not voxels: cheap to move
  → batch
  → parse_example + decode_raw, vectorised    checked against the schema
  → choice of channels                        stored integers until the device
  → prefetch
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import ContractError, RecordSchema

_READERS = 4  # shards open at a time
_MISMATCH = "record off its contract"
_DAMAGE = re.compile(r"(?:corrupted|truncated) record at \d+")  # in TensorFlow's message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """The records of some folds, ready to be iterated over.

    Attributes:
      serialized: one scalar string a record, in a fixed order, cached where it fits.
      count: records.
      folds: the folds they must say they belong to (None: unlabelled).
      schema: the contract they are parsed by.
      channels: index of each chosen modality in the record, in the order wanted.
      labels: patient_id → label that replaces the record's own (label permutation).
    """

    serialized: tf.data.Dataset
    count: int
    folds: tuple[int | None, ...]
    schema: RecordSchema
    channels: tuple[int, ...]
    labels: Mapping[str, int] | None = None

    def training_batches(
        self, *, batch_size: int, seed: int, epochs: int, first_epoch: int = 0
    ) -> tf.data.Dataset:
        """(volume, label) of epochs first_epoch … epochs - 1, one stream without pauses between.

        Every epoch holds each record once, in an order that depends on `seed` and the epoch alone.
        Volumes are (batch, row, column, slice, channel) as stored, labels float32 (batch, 1).
        """

        def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
            tf.random.set_seed(seed + 1)  # of this function's graph only; 0 would mean "unseeded"
            shuffled = self.serialized.shuffle(
                self.count, seed=epoch, reshuffle_each_iteration=False
            )
            return shuffled.batch(batch_size)

        def volume_and_label(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            parsed = parse(serialized)
            return parsed["volume"], tf.cast(parsed["label"], tf.float32)[:, None]

        parse = self._parser()
        batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch_batches)
        return _finish(batches.map(volume_and_label, num_parallel_calls=2))

    def evaluation_batches(self, *, batch_size: int) -> tf.data.Dataset:
        """{"patient_id", "volume", "label"} of every record once, in shard order.

        The label is -1 where the record has none.
        """
        batches = self.serialized.batch(batch_size)
        return _finish(batches.map(self._parser(), num_parallel_calls=2))

    def steps(self, batch_size: int) -> int:
        """Batches an epoch; the last may be smaller."""
        return -(-self.count // batch_size)

    def _parser(self) -> Any:
        """A function from serialized Examples (batch,) to their checked, decoded features."""
        schema = self.schema
        scalar = {
            "volume": tf.io.FixedLenFeature([], tf.string),
            "patient_id": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
            "fold": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
            "schema_version": tf.io.FixedLenFeature([], tf.int64),
            "spec_fingerprint": tf.io.FixedLenFeature([], tf.string),
        }
        folds = tf.constant([-1 if fold is None else fold for fold in self.folds], tf.int64)
        table = None
        if self.labels is not None:
            table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant(list(self.labels)),
                    tf.constant(list(self.labels.values()), tf.int64),
                ),
                default_value=-1,
            )

        def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            features = tf.io.parse_example(serialized, scalar)
            fits = (
                (features["schema_version"] == schema.version)
                & (features["spec_fingerprint"] == schema.spec_fingerprint)
                & (tf.strings.length(features["volume"]) == schema.volume_bytes)
                & tf.reduce_any(features["fold"][:, None] == folds, axis=1)
                & ((features["label"] >= 0) == (features["fold"] >= 0))
            )
            odd = tf.boolean_mask(features["patient_id"], ~fits)
            check = tf.debugging.Assert(tf.reduce_all(fits), [f"{_MISMATCH}: patients", odd])
            with tf.control_dependencies([check]):
                voxels = tf.io.decode_raw(features["volume"], tf.as_dtype(schema.dtype))
            volume = tf.reshape(voxels, (-1, *schema.volume_shape))
            label = features["label"]
            if table is not None:
                label = table.lookup(features["patient_id"])
            return {
                "patient_id": features["patient_id"],
                "volume": _choose_channels(volume, self.channels),
                "label": label,
            }

        return parse


def open_records(
    directory: Path,
    manifest: Manifest,
    folds: Iterable[int | None],
    *,
    modalities: tuple[str, ...],
    labels: Mapping[str, int] | None = None,
    cache_bytes: int | None = None,
) -> Records:
    """Opens the shards of some folds; None among them stands for the unlabelled.

    Args:
      directory: the dataset's.
      manifest: the dataset's.
      folds: which to read.
      modalities: channels to deliver, in this order; each must be in the schema.
      labels: replaces the records' labels.
      cache_bytes: keep the serialized records in memory if they take at most so much; default a
        quarter of the machine's memory.

    Raises:
      ContractError: a shard is missing or its size is not what the manifest says.
    """
    folds = tuple(folds)
    shards = manifest.shards_of(folds)
    for shard in shards:
        file = directory / shard.name
        if not file.is_file():
            raise ContractError(f"{file}: the manifest lists this shard, it does not exist")
        if file.stat().st_size != shard.bytes:
            raise ContractError(
                f"{file}: {file.stat().st_size} bytes, the manifest says {shard.bytes}"
            )
    files = [str(directory / shard.name) for shard in shards]
    readers = min(_READERS, max(len(files), 1))
    serialized = tf.data.Dataset.from_tensor_slices(tf.constant(files, tf.string)).interleave(
        tf.data.TFRecordDataset,
        cycle_length=readers,
        num_parallel_calls=min(readers, 2),
        deterministic=True,
    )
    if cache_bytes is None:
        cache_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    if sum(shard.bytes for shard in shards) <= cache_bytes:
        serialized = serialized.cache()
    return Records(
        serialized=serialized,
        count=sum(shard.count for shard in shards),
        folds=folds,
        schema=manifest.schema,
        channels=tuple(manifest.schema.modalities.index(name) for name in modalities),
        labels=labels,
    )


def contract_error(
    error: tf.errors.OpError, *, directory: Path, manifest: Manifest
) -> ContractError | None:
    """What a TensorFlow error says about the records; None when it is about something else.

    TensorFlow tells where in a shard a checksum failed, but not in which one: each is hashed and
    held against the manifest.

    Args:
      error: met while records were read.
      directory: the dataset's.
      manifest: the dataset's.
    """
    if isinstance(error, tf.errors.DataLossError):
        found = _DAMAGE.search(error.message)
        damage = found[0] if found else "a record cannot be read"
        differing = [
            str(directory / shard.name)
            for shard in manifest.shards
            if _sha256(directory / shard.name) != shard.sha256
        ]
        if not differing:
            return ContractError(
                f"corrupt shard: {damage}, though every shard of {directory} is what the manifest "
                "says: damaged when it was written, or the disk errs now and then"
            )
        return ContractError(
            f"corrupt shard: {damage}; not what the manifest says: {', '.join(differing)}"
        )
    if _MISMATCH in error.message:
        start = error.message.index(_MISMATCH)
        return ContractError(
            f"{error.message[start:].splitlines()[0]}: schema version, spec fingerprint, size, "
            "fold or label is not what the manifest says"
        )
    return None


def _sha256(file: Path) -> str:
    """Of the file, hex; "" where it cannot be read."""
    found = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                found.update(chunk)
    except OSError:
        return ""
    return found.hexdigest()


def _choose_channels(volume: tf.Tensor, channels: tuple[int, ...]) -> tf.Tensor:
    """The chosen channels of (batch, row, column, slice, channel), copied only if need be."""
    first, count = channels[0], len(channels)
    if channels == tuple(range(volume.shape[-1])):
        return volume
    if channels == tuple(range(first, first + count)):
        return volume[..., first : first + count]
    return tf.gather(volume, channels, axis=-1)


def _finish(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Prefetches, in a fixed order, without autotune: its thread holds up epochs' ends."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)
