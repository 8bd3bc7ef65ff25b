"""What the input costs a training step, per network and precision, and what precision gives.

A step on batches that come from shards, as in training, against the same step on one batch that is
there already. Both take turns in blocks within one process, so that a machine that slows down does
so for both; each block is one time a step, and the ratio is the median over pairs of blocks.

Limit: real input costs at most 1.05 times the constant batch. Exit code 1: it was missed.

On a CPU mixed_float16 is emulated and slow: it is measured where a GPU is, or where requested.
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

from _harness import Limit, conclude, parser, ratio, show

from beam_jobs.common import cli
from beam_jobs.core.manifest import Manifest
from tests.datasets import write_dataset
from trainer.config.network import MODELS
from trainer.config.run import PRECISIONS, TrainConfig
from trainer.training.environment import Cluster

PROG = "python benchmarks/train_step.py"
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
        {
            "network": network,
            "modalities": ["T1w"],
            "batch_size": args.batch_size,
            "optimizer": {"ema": None},  # PyTorch's step has no moving average either
        }
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
        seconds: float = (time.perf_counter() - started) / args.steps
        return seconds

    block(True)  # makes the graph, fills the prefetch
    pairs = []
    for turn in range(args.rounds):
        first = bool(turn % 2)
        times = {first: block(first), not first: block(not first)}
        pairs.append((times[False], times[True]))
    return Measured(
        statistics.median(constant for constant, _ in pairs),
        statistics.median(real for _, real in pairs),
        ratio((real for _, real in pairs), (constant for constant, _ in pairs)),
    )


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser("train_step.py", __doc__ or "", examples=f"  {PROG} --networks resnet10\n")
    made.add_argument("--networks", default=list(NETWORKS), **cli.LIST)
    made.add_argument("--precisions", default=None, **cli.LIST)
    made.add_argument("--shape", type=int, nargs=3, default=(48, 48, 24))
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--steps", type=int, default=4, help="a block")
    args = made.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    gpu = bool(tf.config.list_physical_devices("GPU"))
    on_device = PRECISIONS[1:] if gpu else ("float32", "mixed_bfloat16")
    precisions = cli.items(args.precisions) if args.precisions else on_device
    networks = cli.items(args.networks)
    if unknown := {*networks} - {*MODELS} | {*precisions} - {*PRECISIONS[1:]}:
        made.error(f"unknown: {', '.join(sorted(unknown))}")
    limits, rows = [], []
    with tempfile.TemporaryDirectory() as directory:
        manifest = write_dataset(
            Path(directory),
            patients=64,
            folds=2,
            shape=tuple(args.shape),
            modalities=("T1w",),
            signal=0.0,
        )
        for network in networks:
            plain = None
            for precision in precisions:
                found = measure(Path(directory), manifest, network, precision, args)
                plain = found.constant if precision == "float32" else plain
                name = f"{network} {precision}"
                print(f"{name}: {found.ratio:.3f}", file=sys.stderr)  # the table comes last
                limits.append(Limit(figure=name, value=found.ratio, at_most=LIMIT))
                rows.append(
                    (
                        network,
                        precision,
                        f"{1e3 * found.constant:.1f}",
                        f"{1e3 * found.real:.1f}",
                        f"{found.ratio:.3f}",
                        "" if plain is None else f"{plain / found.constant:.2f}×",
                    )
                )
    size = "×".join(map(str, args.shape))
    print(f"{'GPU' if gpu else 'CPU'}, {size}×1, batch {args.batch_size}, a step\n")
    show(("network", "precision", "constant ms", "real ms", "real / constant", "float32 /"), rows)
    return conclude(limits, {"device": "GPU" if gpu else "CPU", "shape": size}, args.json)


if __name__ == "__main__":
    cli.run(main, PROG)
