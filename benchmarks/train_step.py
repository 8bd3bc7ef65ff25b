"""What the input costs a training step, per network and precision, and what precision gives.

Or, with `--against torch`, what PyTorch's step of the same network takes.

A step on batches that come from shards, as in training, against the same step on one batch that is
there already. Both take turns in blocks within one process, so that a machine that slows down does
so for both; each block is one time a step, and the ratio is the median over pairs of blocks.

Limit: real input costs at most 1.05 times the constant batch. Exit code 1: it was missed.

On a CPU mixed_float16 is emulated and slow: it is measured where a GPU is, or where requested.

Against PyTorch: a step of float32 on one batch that is there already, without augmentation, beside
PyTorch's step of MONAI's network of as many parameters, in its faster memory format, with its fused
Adam. Each is a process of its own, and one runs while the others wait; all have as many threads.
Limit: PyTorch's step takes at least as long.

On a GPU (`--device gpu`): a step of every network, precision and XLA on one batch that is there
already, what compiling took, and memory. No limit.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _against_torch as against
import _gpu_steps as gpu_steps
from _harness import Limit, conclude, parser, ratio, show

from beam_jobs.common import cli
from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import RecordSchema
from tests.datasets import make_schema, write_dataset
from trainer.config.network import MODELS
from trainer.config.run import PRECISIONS, TrainConfig
from trainer.training.environment import Cluster

PROG = "python benchmarks/train_step.py"
LIMIT = 1.05
# One of each family; --networks takes others.
NETWORKS = ("seed_cnn", "resnet10", "densenet121", "efficientnet_b0", "slice_cnn")
_EXAMPLES = f"""\
  {PROG} --networks resnet10
  {PROG} --against torch --torch_python ../torch/bin/python --steps 2
  {PROG} --device gpu --shape 128 128 32 --json gpu.json
"""


class Measured(NamedTuple):
    """Seconds a step, and how they compare."""

    constant: float
    real: float
    ratio: float


def trainee_of(network: str, precision: str, schema: RecordSchema, **settings: Any) -> Any:
    """A network in training, of all modalities of a schema; other settings are a run's."""
    import keras
    import tensorflow as tf

    from trainer.training.step import FoldSetup, Trainee

    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    config = TrainConfig.from_json(
        {
            "network": network,
            "modalities": schema.modalities,
            "optimizer": {"ema": None},  # PyTorch's step has no moving average either
            **settings,
        }
    )
    setup = FoldSetup(schema, (1.0, 1.0, 1.0), precision, 100, (1.0, 1.0), 0)
    return Trainee(config, setup, strategy=tf.distribute.get_strategy(), cluster=Cluster())


def batch_of(rows: int, *shape: int) -> dict[str, Any]:
    """Noise of so many patients, with labels: a batch that is there already.

    Args:
      rows: patients.
      shape: of a volume, channels last.
    """
    import numpy as np
    import tensorflow as tf

    volumes = np.random.default_rng(0).integers(0, 256, (rows, *shape))
    return {
        "volume": tf.constant(volumes.astype(np.uint8)),
        "label": tf.constant(np.arange(rows)[:, None] % 2, tf.float32),
    }


def measure(
    data: Path, manifest: Manifest, network: str, precision: str, args: argparse.Namespace
) -> Measured:
    """Takes turns between the two inputs."""
    from trainer.data.records import open_records

    trainee = trainee_of(network, precision, manifest.schema, batch_size=args.batch_size)
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


def beside_torch(args: argparse.Namespace) -> int:
    """Measures and prints every network on every grid; returns 1 if PyTorch is faster anywhere."""
    import numpy as np
    import tensorflow as tf

    networks = cli.items(args.networks or against.NETWORKS)
    if unknown := {*networks} - {*against.TWINS}:
        raise cli.UsageError(f"--networks: PyTorch has no twin of {', '.join(sorted(unknown))}")
    grids = [against.grid_of(text) for text in args.grids] or against.GRIDS
    against.require_torch(args.torch_python)
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    tf.config.experimental.enable_op_determinism()  # as `prepare_devices` does for a run
    limits, rows, version = [], [], ""
    for grid in grids:
        batch = batch_of(grid.batch, *grid[:4])
        names = tuple(f"M{number}" for number in range(grid.channels))
        schema = make_schema(shape=grid.shape, modalities=names)
        for network in networks:
            trainee = trainee_of(network, "float32", schema, batch_size=grid.batch, augment="none")
            numbers = itertools.count()
            found = against.beside(
                network,
                grid,
                lambda: float(trainee.step(batch, next(numbers), grid.batch)),  # noqa: B023
                parameters=sum(
                    int(np.prod(weight.shape)) for weight in trainee.network.trainable_variables
                ),
                python=args.torch_python,
                threads=args.threads,
                steps=args.steps,
                rounds=args.rounds,
            )
            version, name = found.version, f"{network}, {grid.name}"
            wall, cpu = statistics.median(found.wall), statistics.median(found.cpu)
            print(f"{name}: {wall:.2f} (CPU {cpu:.2f})", file=sys.stderr)  # the table comes last
            limits.append(Limit.of_median(name, found.wall, at_least=1.0))
            ours, theirs = (
                f"{1e3 * statistics.median(clock.wall for clock in clocks):.0f}"
                for clocks in (found.ours, found.theirs)
            )
            rows.append(
                (grid.name, network, ours, theirs, found.layout, f"{wall:.2f}", f"{cpu:.2f}")
            )
    print(f"PyTorch {version}, {args.threads} threads, a step\n")
    titles = ("grid", "network", "ours ms", "PyTorch's ms", "its format", "times", "CPU times")
    show(titles, rows)
    return conclude(limits, {"torch": version, "threads": args.threads, "rows": rows}, args.json)


def on_gpu(args: argparse.Namespace, networks: Sequence[str], precisions: Sequence[str]) -> int:
    """Measures and prints networks × precisions × XLA."""
    import tensorflow as tf

    name, rows = gpu_steps.gpu_name(), args.batch_size
    schema = make_schema(shape=tuple(args.shape), modalities=("T1w",))
    batch = batch_of(rows, *args.shape, 1)

    def measure(network: str, precision: str, xla: str) -> gpu_steps.Steps:
        return gpu_steps.measured(
            lambda: trainee_of(
                network, precision, schema, batch_size=rows, augment="none", xla=xla
            ),
            batch,
            rows,
            steps=args.steps,
            rounds=args.rounds,
        )

    table = list(gpu_steps.rows_of(networks, precisions, measure))
    size = "×".join(map(str, args.shape))
    print(f"{name}, TensorFlow {tf.__version__}, {size}×1, batch {rows}\n")
    show(gpu_steps.TITLES, table)
    figures = {"device": name, "tensorflow": tf.__version__, "shape": size, "rows": table}
    return conclude([], figures, args.json)


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser("train_step.py", __doc__ or "", examples=_EXAMPLES)
    made.add_argument("--networks", default=None, **cli.LIST)
    made.add_argument("--precisions", default=None, **cli.LIST)
    made.add_argument("--shape", type=int, nargs=3, default=(48, 48, 24))
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--steps", type=int, default=4, help="a block")
    made.add_argument("--against", choices=("torch",), help="PyTorch's step instead of the input")
    made.add_argument("--torch_python", default=sys.executable, metavar="FILE", help="its Python")
    made.add_argument(
        "--grids", default=(), help="of it: 48x48x32x1x4 ends in the batch", **cli.LIST
    )
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both")
    made.add_argument("--device", choices=("gpu",), help="its steps, with XLA and without")
    args = made.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if args.against:
        return beside_torch(args)
    import tensorflow as tf

    gpu = bool(tf.config.list_physical_devices("GPU"))
    on_device = PRECISIONS[1:] if gpu or args.device else ("float32", "mixed_bfloat16")
    precisions = cli.items(args.precisions) if args.precisions else on_device
    networks = cli.items(args.networks or NETWORKS)
    if unknown := {*networks} - {*MODELS} | {*precisions} - {*PRECISIONS[1:]}:
        made.error(f"unknown: {', '.join(sorted(unknown))}")
    if args.device:
        return on_gpu(args, networks, precisions)
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
