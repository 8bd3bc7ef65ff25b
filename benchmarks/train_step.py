"""What the input costs a training step, per network and precision, and what precision gives.

A step on batches that come from shards, as in training, against the same step on one batch that is
there already. Both take turns in blocks within one process, so that a machine that slows down does
so for both; each block is one time a step, and the ratio is the median over pairs of blocks.

Limit: real input costs at most 1.05 times the constant batch. Exit code 1: it was missed.

On a CPU mixed_float16 is emulated and slow: it is measured where a GPU is, or asked for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from beam_jobs.common.cli import LIST, items
from beam_jobs.core.manifest import Manifest
from trainer.config.network import MODELS
from trainer.config.run import PRECISIONS, TrainConfig
from trainer.training.environment import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.datasets import write_dataset

LIMIT = 1.05
# One of each family; --networks takes others.
NETWORKS = ("seed_cnn", "resnet10", "densenet121", "efficientnet_b0", "slice_cnn")


class Measured(NamedTuple):
    """Seconds a step, and how they compare."""

    constant: float
    real: float
    ratio: float


def measure(
    data: Path, manifest: Manifest, network: str, precision: str, args: argparse.Namespace
) -> Measured:
    """Takes turns between the two inputs."""
    import keras
    import tensorflow as tf

    from trainer.data.records import open_records
    from trainer.training.step import FoldSetup, Trainee

    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    config = TrainConfig.from_json(
        {"network": network, "modalities": ["T1w"], "batch_size": args.batch_size}
    )
    setup = FoldSetup(manifest.schema, (1.0, 1.0, 1.0), precision, 100, (1.0, 1.0), 0)
    trainee = Trainee(config, setup, strategy=tf.distribute.get_strategy(), cluster=Cluster())
    records = open_records(str(data), manifest, [0, 1], modalities=("T1w",), cache="none")
    batches: Iterator[Any] = iter(
        records.training_batches(batch_size=args.batch_size, seed=0, epochs=10_000)
    )
    constant = next(batches)
    number = 0

    def block(real: bool) -> float:
        """Seconds a step; the loss of the last one is waited for."""
        nonlocal number
        started = time.perf_counter()
        for _ in range(args.steps):
            batch = next(batches) if real else constant
            loss = trainee.step(batch, number, args.batch_size)
            number += 1
        float(loss)
        return (time.perf_counter() - started) / args.steps

    block(True)  # makes the graph, fills the prefetch
    pairs = []
    for turn in range(args.rounds):
        first = bool(turn % 2)
        times = {first: block(first), not first: block(not first)}
        pairs.append((times[False], times[True]))
    return Measured(
        statistics.median(constant for constant, _ in pairs),
        statistics.median(real for _, real in pairs),
        statistics.median(real / constant for constant, real in pairs),
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", default=list(NETWORKS), **LIST)
    parser.add_argument("--precisions", default=None, **LIST)
    parser.add_argument("--shape", type=int, nargs=3, default=(48, 48, 24))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="a block")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of blocks")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    gpu = bool(tf.config.list_physical_devices("GPU"))
    precisions = (
        items(args.precisions)
        if args.precisions
        else (PRECISIONS[1:] if gpu else ("float32", "mixed_bfloat16"))
    )
    networks = items(args.networks)
    if unknown := {*networks} - {*MODELS} | {*precisions} - {*PRECISIONS[1:]}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    shape = tuple(args.shape)
    size = "×".join(map(str, shape))
    table = Table(title=f"{'GPU' if gpu else 'CPU'}, {size}×1, batch {args.batch_size}, a step")
    for name in ("network", "precision", "constant ms", "real ms", "real / constant", "float32 /"):
        table.add_column(name, justify="left" if name in ("network", "precision") else "right")
    missed = []
    with tempfile.TemporaryDirectory() as directory:
        manifest = write_dataset(
            Path(directory), patients=64, folds=2, shape=shape, modalities=("T1w",), signal=0.0
        )
        for network in networks:
            plain = None
            for precision in precisions:
                found = measure(Path(directory), manifest, network, precision, args)
                plain = found.constant if precision == "float32" else plain
                told = f"{network} {precision}: {found.ratio:.3f}"
                print(told, file=sys.stderr)  # the table comes last
                faster = "" if plain is None else f"{plain / found.constant:.2f}×"
                table.add_row(
                    network,
                    precision,
                    f"{1e3 * found.constant:.1f}",
                    f"{1e3 * found.real:.1f}",
                    f"{found.ratio:.3f}",
                    faster,
                )
                if found.ratio > LIMIT:
                    missed.append(f"{network} {precision}: {found.ratio:.3f}, at most {LIMIT}")
    Console().print(table)
    for line in missed:
        print(f"missed: {line}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
