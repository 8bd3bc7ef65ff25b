"""Times the trainer's input pipeline on one core: records on disk to batches, ways in turn.

Every way gets the same volumes in the page cache and runs in turn with the others, so that what
else the machine does falls on all of them. Ratios of CPU time are taken within each round and the
median of the rounds is shown.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is loaded

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _harness import Clock, Limit, conclude, on_one_core, parser, ratio, show, take_turns

from beam_jobs.common import cli
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import PreparedCase
from tests.datasets import make_schema, write_cases

_PROG = "python benchmarks/input_pipeline.py"
_MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")
_SHARDS = 2
_EPOCHS = 4  # in one stream, as training reads them: starting one costs some 40 ms of graph making
_SEED = 20210713


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """One size of volume.

    Attributes:
      shape: (rows, columns, slices, channels).
      records: in the dataset.
      batch: records a batch.
      at_least: times faster than the plain way, as docs/explanation/speed.md says.
    """

    shape: tuple[int, int, int, int]
    records: int
    batch: int
    at_least: float

    @property
    def name(self) -> str:
        return "×".join(map(str, self.shape))


SIZES = (
    Size(shape=(128, 128, 32, 1), records=96, batch=8, at_least=8.0),
    Size(shape=(256, 256, 64, 4), records=8, batch=2, at_least=5.5),
)
AT_MOST_BARE = 1.3  # times the bare TFRecordDataset


def head(shape: Sequence[int], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """An ellipsoid of noise on black: about as compressible as a prepared head."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape[:3]), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    noise = rng.normal(110, 25, shape).clip(0, 255).astype(np.uint8)
    return np.where(np.asarray(inside)[..., None], noise, np.uint8(0))


def write_dataset(folder: Path, size: Size) -> tuple[Manifest, list[Path]]:
    """The same volumes as shards with their manifest, and as compressed npz files."""
    modalities = _MODALITIES[: size.shape[3]]
    schema = make_schema(shape=size.shape[:3], modalities=modalities)
    rng = np.random.default_rng(_SEED)
    cases, files = [], []
    for number in range(size.records):
        name, volume = f"{number:05d}", head(size.shape, rng)
        cases.append(
            PreparedCase(
                patient_id=name, volume=volume, affine=np.eye(4), label=number % 2, fold=0,
                present=(True,) * size.shape[3],
            )
        )  # fmt: skip
        files.append(folder / f"{name}.npz")
        np.savez_compressed(files[-1], volume=volume, label=number % 2)
    return write_cases(folder, cases, schema, folds=1, shards=_SHARDS), files


def ways(folder: Path, size: Size, manifest: Manifest, files: Sequence[Path]) -> dict[str, Any]:
    """Name → a function that gives the epochs' batches; an epoch has every volume once."""
    import tensorflow as tf

    from trainer.data.records import open_records

    paths = [str(folder / entry.name) for entry in manifest.shards]
    options = tf.data.Options()
    options.autotune.enabled = False

    def records(cache: str) -> tf.data.Dataset:
        opened = open_records(
            folder, manifest, [0], modalities=manifest.schema.modalities, cache=cache
        )
        return opened.training_batches(batch_size=size.batch, seed=1, epochs=_EPOCHS)

    def load(path: tf.Tensor) -> tuple[npt.NDArray[np.float32], np.float32]:
        with np.load(path.numpy().decode()) as arrays:
            return arrays["volume"].astype(np.float32) / 255, np.float32(arrays["label"])

    plain = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    plain = (
        plain.shuffle(len(files))
        .repeat(_EPOCHS)
        .map(
            lambda path: tf.py_function(load, [path], [tf.float32, tf.float32]),
            num_parallel_calls=2,
        )
    )
    wanted = {
        "volume": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, wanted)
        voxels = tf.io.decode_raw(parsed["volume"], tf.uint8)
        return tf.reshape(voxels, (-1, *size.shape)), parsed["label"]

    bare = tf.data.TFRecordDataset(paths).repeat(_EPOCHS).with_options(options)
    parsed = tf.data.TFRecordDataset(paths).shuffle(size.records).repeat(_EPOCHS).batch(size.batch)
    parsed = parsed.map(parse, num_parallel_calls=2).prefetch(2).with_options(options)
    found: dict[str, Any] = {
        "ours": records("none").__iter__,
        "ours, in memory": records("memory").__iter__,
        "ours, float32 on the host": records("none")
        .map(lambda batch: tf.cast(batch["volume"], tf.float32) / 255)
        .__iter__,
        "plain": plain.batch(size.batch).prefetch(2).with_options(options).__iter__,
        "torch": None,
        "parse_example": parsed.__iter__,
        "bare TFRecordDataset": bare.__iter__,
        "sequential read": lambda: sequential(paths * _EPOCHS),
    }
    if (loader := torch_loader(files, size.batch)) is not None:
        found["torch"] = lambda: (batch for _ in range(_EPOCHS) for batch in loader)
    return found


def torch_loader(files: Sequence[Path], batch: int) -> Iterable[Any] | None:
    """PyTorch's DataLoader on the npz files, in this process; None without PyTorch."""
    try:
        import torch
        from torch.utils.data import DataLoader
    except (ImportError, OSError, ValueError):
        return None
    torch.set_num_threads(1)

    class Volumes:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            with np.load(files[index]) as arrays:
                volume = torch.from_numpy(arrays["volume"]).to(torch.float32) / 255
                return volume, torch.tensor(float(arrays["label"]))

    loader: Iterable[Any] = DataLoader(Volumes(), batch_size=batch, shuffle=True)
    return loader


def sequential(paths: Sequence[str]) -> Iterator[int]:
    """The floor: every shard read, a megabyte at a time into one buffer."""
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                yield count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured at one size: clocks of all epochs, a round each."""

    size: Size
    clocks: Mapping[str, list[Clock]]

    def milliseconds(self, way: str) -> float:
        """CPU time an example, the median of the rounds."""
        cpu = statistics.median(clock.cpu for clock in self.clocks[way])
        return 1e3 * cpu / (self.size.records * _EPOCHS)

    def rate(self, way: str) -> float:
        """Examples a second by the clock, the median of the rounds."""
        wall = statistics.median(clock.wall for clock in self.clocks[way])
        return self.size.records * _EPOCHS / wall

    def ratio(self, one: str, other: str) -> float:
        """CPU time of `one` over that of `other`, the median of the rounds' ratios."""
        return ratio(*((clock.cpu for clock in self.clocks[way]) for way in (one, other)))


def measure(size: Size, folder: Path, rounds: int) -> Figures:
    """Writes the dataset, then times every way in turn, `rounds` times."""
    from trainer.data import record_reader

    manifest, files = write_dataset(folder, size)
    epochs = ways(folder, size, manifest, files)

    def opening() -> Iterator[Any]:
        for _ in range(_EPOCHS):
            record_reader._left_in_place.clear()
            store = record_reader.ShardStore("none", folder)
            yield store.open(str(folder), manifest.shards, manifest.schema)

    epochs["opening: hash, check, index"] = opening

    def emptied(epoch: Callable[[], Iterator[Any]]) -> Callable[[], None]:
        def run() -> None:
            for _ in epoch():
                pass

        return run

    present = {way: emptied(epoch) for way, epoch in epochs.items() if epoch is not None}
    return Figures(size=size, clocks=take_turns(present, rounds))


def print_times(measured: Sequence[Figures]) -> None:
    """The table of docs/explanation/speed.md: one row a way."""
    ways_seen = list(dict.fromkeys(way for figures in measured for way in figures.clocks))
    show(
        ["CPU ms an example (examples/s)", *(figures.size.name for figures in measured)],
        [
            [way, *(f"{f.milliseconds(way):.3g} ({f.rate(way):,.0f})" for f in measured)]
            for way in ways_seen
        ],
    )
    if "torch" not in ways_seen:
        print("\nPyTorch is not installed: its DataLoader was not measured.")


def judge(measured: Sequence[Figures]) -> list[Limit]:
    """Each limit beside its figure."""
    return [
        limit
        for figures in measured
        for limit in (
            Limit(
                figure=f"{figures.size.name}: plain / ours",
                value=figures.ratio("plain", "ours"),
                at_least=figures.size.at_least,
            ),
            Limit(
                figure=f"{figures.size.name}: ours / bare TFRecordDataset",
                value=figures.ratio("ours", "bare TFRecordDataset"),
                at_most=AT_MOST_BARE,
            ),
        )
    ]


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser(
        "input_pipeline.py",
        "Time records on disk → batches on one core: the trainer's pipeline, as it is\n"
        "and in memory, against np.load of compressed npz under tf.py_function (the plain way),\n"
        "PyTorch's DataLoader where it is installed, TFRecordDataset with and without parsing,\n"
        "and reading the shards. Ours delivers the stored integers, which the network casts; the\n"
        "plain way and PyTorch deliver float32. Files are written to a temporary folder (300 MB)\n"
        "and removed.",
        examples=f"  {_PROG} --rounds 15 --json input_pipeline.json\n",
    )
    made.add_argument("--core", type=int, metavar="N", help="to work on (default: the first)")
    flags = made.parse_args(argv)
    on_one_core(flags.core)
    start = time.perf_counter()
    measured = []
    for size in SIZES:
        print(f"{size.name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="voxelbeam-input-") as folder:
            measured.append(measure(size, Path(folder), flags.rounds))
    print_times(measured)
    print(f"\n{time.perf_counter() - start:.0f} s")
    figures = [{"size": f.size.name, "clocks": f.clocks} for f in measured]
    return conclude(judge(measured), {"sizes": figures}, flags.json)


if __name__ == "__main__":
    cli.run(main, _PROG)
