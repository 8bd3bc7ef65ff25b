"""Several processes, or several devices of one, train to the weights of one alone."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import trainer.networks.registry  # noqa: F401  registers the custom layers
from tests.datasets import write_dataset
from trainer.training.environment import Cluster

# Dropout's masks are drawn by each device for its own rows: without it there is one right answer.
SETTINGS = (
    *("--fold", "0", "--modalities", "T1wCE", "T2w", "--epochs", "3", "--batch_size", "8"),
    *("--dropout", "0", "--augment", "none", "--clip_norm", "1", "--ema", "0.9"),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 patients to train on: the last batch has 3, which two processes share unevenly."""
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=38, folds=2, shape=(12, 11, 10), signal=1.0)
    return directory


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("alone") / "run"
    _finish([_start(dataset, directory)])
    return directory


def _start(
    data: Path, directory: Path, *, environ: dict[str, str] | None = None, code: str = ""
) -> subprocess.Popen[str]:
    argv = ["--data", str(data), "--output_dir", str(directory), *SETTINGS]
    program = code or "import sys, trainer.task as task; sys.exit(task.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", program, *argv],
        env={**os.environ, **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    printed = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        printed.append(out)
    return printed


def _addresses(count: int) -> tuple[str, ...]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = tuple(f"localhost:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    return addresses


def _assert_same(run: Path, alone: Path) -> None:
    for name in ("last.keras", "best.keras"):
        pair = [
            keras.saving.load_model(directory / "fold-0" / name, compile=False).get_weights()
            for directory in (run, alone)
        ]
        for found, expected in zip(*pair, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    losses = []
    for directory in (run, alone):
        with (directory / "fold-0" / "history.csv").open(newline="") as stream:
            losses.append([float(row["loss"]) for row in csv.DictReader(stream)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    addresses = _addresses(2)
    processes = [
        _start(
            dataset,
            tmp_path / "run",
            environ={"TF_CONFIG": Cluster(workers=addresses, index=index).tf_config()},
        )
        for index in range(2)
    ]
    chief, worker = _finish(processes)
    assert "epoch 3/3" in chief
    assert worker == ""
    _assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_devices_of_one_process_train_to_the_weights_of_one(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    code = """
import sys
import tensorflow as tf
import trainer.training.devices, trainer.task
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = lambda cluster: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
trainer.training.devices.make_strategy = mirrored
sys.exit(trainer.task.main(sys.argv[1:]))
"""
    _finish([_start(dataset, tmp_path / "run", code=code)])
    _assert_same(tmp_path / "run", alone)
