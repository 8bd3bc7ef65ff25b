"""What batch prediction costs over a bare loop on the same SavedModel, and its memory.

    loop   one Python process: records read, batches of 8 given to `serving_default`; no Beam
    job    python -m serving.batch_predict on the same dataset, skew and tables included

Each is a process of its own, interleaved over several rounds. "Start-up" is the same command on one
record; the ratio compares what is left without it. Memory is compared on a network that costs next
to nothing, so that many records can be given. Exit code 1: a limit missed.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _harness import Limit, conclude, parser, ratios, run, show, take_turns

from beam_jobs.common import cli
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import PreparedCase
from tests.datasets import write_cases

PROG = "python benchmarks/batch_predict.py"
LIMIT_RATE = 0.95  # the job's volumes a second over the loop's, at least
LIMIT_START = 1.25  # the job's start-up over the loop's, at most
LIMIT_FLAT = 1.1  # peak memory on 10 times the records over the peak, at most
BATCH = 8
PER_SHARD = 16
SPEC = PreprocessSpec()

LOOP = f"""
import glob, sys
import tensorflow as tf
from beam_jobs.core.tfrecord import read_records
answer = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
batch = []
def answer_batch():
    answer(examples=tf.constant(batch))["probability"].numpy()
    batch.clear()
for path in sorted(glob.glob(sys.argv[2] + "/*.tfrecord")):
    with open(path, "rb") as stream:
        for record in read_records(stream):
            batch.append(record)
            if len(batch) == {BATCH}:
                answer_batch()
if batch:
    answer_batch()
"""

# The networks are made in a process of their own: TensorFlow must not be in this one's memory.
MODELS = """
import sys
from pathlib import Path
import keras
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.tfrecord import read_records
from beam_jobs.core.example import decode_case
from serving.model.contract import Contract
from serving.model.calibration import Calibration
from serving.model.saved_model import write_model
from beam_jobs.core.drift import NONE, of_case
from keras import layers
spec = PreprocessSpec()
shape = spec.schema.volume_shape
def network(cheap):
    volume = keras.Input(shape, dtype=spec.dtype)
    x = layers.Rescaling(1 / 255)(volume)
    if cheap:
        x = layers.AveragePooling3D(16)(x)
    else:  # the reference network's layers
        for _ in range(2):
            x = layers.Conv3D(64, 3, activation="relu")(x)
            x = layers.BatchNormalization()(layers.MaxPooling3D(2)(x))
        for filters in (128, 256):
            x = layers.BatchNormalization()(layers.Conv3D(filters, 3, activation="relu")(x))
    return keras.Model(volume, layers.Dense(1)(layers.GlobalAveragePooling3D()(x)))
counted = NONE
with open(next(Path(sys.argv[2]).glob("*.tfrecord")), "rb") as stream:
    for record in read_records(stream):
        counted += of_case(decode_case(record, spec.schema), spec.schema)
contract = Contract(
    schema=spec.schema, spec=spec.to_json(), modalities=spec.modalities,
    members=({"run": "none", "model": "bench", "fold": 0, "seed": 0, "epoch": 0,
              "epoch_choice": "last", "val_auc": 0.5},),
    ensemble="logits", calibration=Calibration(), prior=(0.5,), cohort={}, training=(),
    versions={},
)
for name in ("reference", "cheap"):
    output = Path(sys.argv[1]) / name
    write_model([network(name == "cheap")], contract, output, statistics=counted)
"""


def write_records(directory: Path, records: int) -> None:
    """A dataset of default records; one volume under many ids, the work is the same."""
    volume = np.random.default_rng(0).integers(0, 256, SPEC.schema.volume_shape, np.uint8)
    volume[:32] = 0
    write_cases(
        directory,
        [
            PreparedCase(
                patient_id=f"{number:05d}", volume=volume, affine=np.eye(4), present=(True,) * 4,
                label=number % 2, fold=0,
            )
            for number in range(records)
        ],
        SPEC.schema,
        folds=1,
        shards=-(-records // PER_SHARD),
        spec=SPEC.to_json(),
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measures and prints; returns 1 if a limit is missed."""
    made = parser("batch_predict.py", __doc__ or "", rounds=5)
    add = made.add_argument
    add("--records", type=int, default=96, help="of 128x128x32x4, for the ratio")
    add("--few", type=int, default=32, help="records whose peak 10 times is held to")
    flags = made.parse_args(argv)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch), flags)


def measure(scratch: Path, flags: argparse.Namespace) -> int:
    sizes = {"one": 1, "all": flags.records, "few": flags.few, "many": 10 * flags.few}
    for name, records in sizes.items():
        write_records(scratch / name, records)
    loop = scratch / "loop.py"
    loop.write_text(LOOP)
    run([sys.executable, "-c", MODELS, str(scratch), str(scratch / "few")])

    def peak_of(method: str, size: str, model: str = "reference") -> float:
        """Runs a method on a dataset; its peak memory in MB."""
        if method == "loop":
            command = [sys.executable, str(loop), str(scratch / model), str(scratch / size)]
        else:
            command = [
                *(sys.executable, "-m", "serving.batch_predict", "--model", str(scratch / model)),
                *("--input", str(scratch / size), "--output", str(scratch / "out.csv")),
                *("--batch_size", str(BATCH)),
            ]
        return run(command).peak_mb

    methods = ("loop", "job")
    times = take_turns(
        {
            (method, size): functools.partial(peak_of, method, size)
            for method in methods
            for size in ("one", "all")
        },
        flags.rounds,
    )
    start = {m: statistics.median(clock.wall for clock in times[m, "one"]) for m in methods}
    rates = {
        m: [(flags.records - 1) / (clock.wall - start[m]) for clock in times[m, "all"]]
        for m in methods
    }
    peaks = {size: peak_of("job", size, "cheap") for size in ("few", "many")}
    print(f"{flags.records} volumes 128x128x32x4\n")
    show(
        ("method", "start-up s", "volumes/s"),
        [(m, f"{start[m]:.2f}", f"{statistics.median(rates[m]):.2f}") for m in methods],
    )
    print("\npeak MB: " + ", ".join(f"{peaks[s]:.0f} on {sizes[s]} records" for s in peaks))
    return conclude(
        (
            Limit.of_median(
                "volumes a second, job / loop",
                ratios(rates["job"], rates["loop"]),
                at_least=LIMIT_RATE,
            ),
            Limit.of_median(
                "start-up, job / loop",
                ratios(*([clock.wall for clock in times[m, "one"]] for m in ("job", "loop"))),
                at_most=LIMIT_START,
            ),
            Limit(
                figure="peak on 10 x records / peak",
                value=peaks["many"] / peaks["few"],
                at_most=LIMIT_FLAT,
            ),
        ),
        {"start": start, "rates": rates, "peaks": peaks},
        flags.json,
    )


if __name__ == "__main__":
    cli.run(main, PROG)
