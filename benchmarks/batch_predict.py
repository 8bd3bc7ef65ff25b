"""What batch prediction costs over a bare loop on the same SavedModel, and its memory.

    loop   one Python process: records read, batches of 8 given to `serving_default`; no Beam
    job    python -m serving.batch_predict on the same dataset, skew and tables included

Each is a process of its own, interleaved over several rounds. "Start-up" is the same command on one
record; the ratio compares what is left without it. Memory is compared on a network that costs next
to nothing, so that many records can be given. Exit code 1: a limit missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from beam_overhead import run  # beside this script
from rich.console import Console
from rich.table import Table

from beam_jobs.core.manifest import Manifest, ShardEntry, ShardPatient
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.record import PreparedCase
from beam_jobs.core.tfrecord import encode_case, write_record

LIMIT_RATE = 0.9  # the job's volumes a second over the loop's, at least
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
def ask():
    answer(examples=tf.constant(batch))["probability"].numpy()
    batch.clear()
for path in sorted(glob.glob(sys.argv[2] + "/*.tfrecord")):
    with open(path, "rb") as stream:
        for record in read_records(stream):
            batch.append(record)
            if len(batch) == {BATCH}:
                ask()
if batch:
    ask()
"""

# The networks are made in a process of their own: TensorFlow must not be in this one's memory.
MODELS = """
import sys
from pathlib import Path
import keras
from beam_jobs.core.preprocess import PreprocessSpec
from beam_jobs.core.tfrecord import decode_case, read_records
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
    members=({"run": "none", "model": "bench", "fold": 0, "seed": 0, "best_epoch": 0,
              "val_auc": 0.5},),
    ensemble="logits", calibration=Calibration(), prevalence=0.5, cohort={}, training=(),
    versions={},
)
for name in ("reference", "cheap"):
    output = Path(sys.argv[1]) / name
    write_model([network(name == "cheap")], contract, output, statistics=counted)
"""


def write_records(directory: Path, records: int) -> None:
    """A dataset of default records; one volume under many ids, the work is the same."""
    directory.mkdir()
    schema = SPEC.schema
    volume = np.random.default_rng(0).integers(0, 256, schema.volume_shape, np.uint8)
    volume[:32] = 0
    entries = []
    count = -(-records // PER_SHARD)
    for number in range(count):
        ids = [f"{n:05d}" for n in range(number, records, count)]
        name = f"unlabelled-{number:05d}-of-{count:05d}.tfrecord"
        with (directory / name).open("wb") as stream:
            for patient in ids:
                case = PreparedCase(
                    patient_id=patient, volume=volume, affine=np.eye(4), present=(True,) * 4
                )
                write_record(stream, encode_case(case, schema))
        data = (directory / name).read_bytes()
        entries.append(
            ShardEntry(
                name=name,
                fold=None,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                patients=tuple(ShardPatient(patient_id=patient, label=None) for patient in ids),
            )
        )
    manifest = Manifest(
        schema=schema, spec=SPEC.to_json(), folds=2, seed=0, id_policy="keep", counts={},
        shards=tuple(entries),
    )  # fmt: skip
    (directory / "manifest.json").write_text(manifest.dumps())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each method, interleaved")
    parser.add_argument("--records", type=int, default=64, help="of 128x128x32x4, for the ratio")
    parser.add_argument(
        "--few", type=int, default=32, help="records whose peak 10 times is held to"
    )
    parser.add_argument("--json", help="write the figures to this file")
    flags = parser.parse_args()
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

    def command(method: str, size: str, model: str = "reference") -> list[str]:
        if method == "loop":
            return [sys.executable, str(loop), str(scratch / model), str(scratch / size)]
        return [
            *(sys.executable, "-m", "serving.batch_predict", "--model", str(scratch / model)),
            *("--input", str(scratch / size), "--output", str(scratch / "out.csv")),
            *("--batch_size", str(BATCH)),
        ]

    methods = ("loop", "job")
    times: dict[str, list[float]] = {method: [] for method in methods}
    starts: dict[str, list[float]] = {method: [] for method in methods}
    for method in methods:
        run(command(method, "one"))  # warms the page cache and compiled files
    for _ in range(flags.rounds):
        for method in methods:
            starts[method].append(run(command(method, "one"))[0])
            times[method].append(run(command(method, "all"))[0])
    start = {method: statistics.median(starts[method]) for method in methods}
    rates = {
        method: [(flags.records - 1) / (seconds - start[method]) for seconds in times[method]]
        for method in methods
    }
    ratio = statistics.median(a / b for a, b in zip(rates["job"], rates["loop"], strict=True))
    peaks = {size: run(command("job", size, "cheap"))[1] for size in ("few", "many")}

    checks = [
        ("volumes a second, job / loop", ratio, "at least", LIMIT_RATE),
        ("peak on 10 x records / peak", peaks["many"] / peaks["few"], "at most", LIMIT_FLAT),
    ]
    console = Console(width=None if sys.stdout.isatty() else 100)
    told = Table("method", "start-up s", "volumes/s", title=f"{flags.records} volumes 128x128x32x4")
    for method in methods:
        told.add_row(method, f"{start[method]:.2f}", f"{statistics.median(rates[method]):.2f}")
    console.print(told)
    console.print(
        f"peak memory: {peaks['few']:.0f} MB on {sizes['few']} records, "
        f"{peaks['many']:.0f} MB on {sizes['many']}"
    )
    limits = Table("figure", "measured", "limit", "verdict")
    missed = 0
    for name, value, word, limit in checks:
        holds = value <= limit if word == "at most" else value >= limit
        missed += not holds
        limits.add_row(name, f"{value:.2f}", f"{word} {limit:g}", "holds" if holds else "MISSED")
    console.print(limits)
    if flags.json:
        figures = {
            "start": start,
            "rates": rates,
            "peaks": peaks,
            "checks": {c[0]: c[1] for c in checks},
        }
        Path(flags.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
