"""Several processes, or several devices of one, train to the weights of one alone.

How near is measured by how far training moved each weight tensor, in root mean squares. Sums over a
batch in other parts round otherwise: after nine steps that is 1e-4 of the way or less. Only biases
whose gradient is next to nothing show more: those of convolutions that BatchNormalization follows,
which takes a constant out again. What is left of such a gradient is mostly rounding, and Adam makes
full steps of it (0.5 % of the way here, several times that on other processors). Devices that keep
statistics of their own end 100 % of the way off.
"""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from beam_jobs.common.files import interface as files
from tests.datasets import write_dataset
from tests.stores import s3
from trainer.config.network import NetworkConfig
from trainer.config.run_layout import NETWORK_NAME
from trainer.networks.registry import build_model
from trainer.training.environment import Cluster

# Dropout's masks are drawn by each device for its own rows: without it there is one right answer.
SETTINGS = (
    *("--fold", "0", "--modalities", "T1wCE", "T2w", "--epochs", "3", "--batch_size", "8"),
    *("--dropout", "0", "--augment", "none", "--clip_norm", "1", "--ema", "0.9"),
)


SHAPE = (12, 11, 10)
ROUNDING = 1e-3
VANISHING = 5e-2

# Trains on two devices of one process.
TWO_DEVICES = """
import sys
import tensorflow as tf
import trainer.training.devices, trainer.training.step, trainer.task
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = lambda cluster: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
trainer.training.devices.make_strategy = mirrored
{change}
sys.exit(trainer.task.main(sys.argv[1:]))
"""
UNSYNCHRONISED = """
build_model = trainer.training.step.build_model
trainer.training.step.build_model = lambda *made_of, **_: build_model(*made_of)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """19 patients to train on: the last batch has 3, which two processes share unevenly."""
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=38, folds=2, shape=SHAPE, signal=1.0)
    return directory


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("alone") / "run"
    _finish([_start(dataset, directory)])
    return directory


def _start(
    data: Path, directory: str | Path, *, environ: dict[str, str] | None = None, code: str = ""
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


def _apart(run: Path, alone: Path) -> dict[str, float]:
    """Path of a weight tensor → how far two runs are apart, as a share of the way it was moved."""
    keras.utils.set_random_seed(0)
    model = build_model(NetworkConfig(dropout=0.0), SHAPE, 2)
    before = [np.asarray(weight, np.float64) for weight in model.weights]
    found, expected = (
        keras.saving.load_model(directory / "fold-0" / NETWORK_NAME, compile=False).get_weights()
        for directory in (run, alone)
    )
    shares = {}
    for weight, start, one, other in zip(model.weights, before, found, expected, strict=True):
        moved = np.sqrt(np.mean((other - start) ** 2))
        assert moved > 0, weight.path
        shares[weight.path] = float(np.sqrt(np.mean((one - other) ** 2)) / moved)
    return shares


def _assert_same(run: Path, alone: Path) -> None:
    for path, share in _apart(run, alone).items():
        vanishing = re.fullmatch(r"conv3d(_\d+)?/bias", path) is not None
        assert share < (VANISHING if vanishing else ROUNDING), path
    losses = []
    for directory in (run, alone):
        with (directory / "fold-0" / "history.csv").open(newline="") as stream:
            losses.append([float(row["loss"]) for row in csv.DictReader(stream)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def _train_in_two(dataset: Path, run: str | Path, **environ: str) -> None:
    addresses = _addresses(2)
    processes = [
        _start(
            dataset,
            run,
            environ={"TF_CONFIG": Cluster(workers=addresses, index=index).tf_config(), **environ},
        )
        for index in range(2)
    ]
    chief, worker = _finish(processes)
    assert "epoch 3/3" in chief
    assert worker == ""


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    _train_in_two(dataset, tmp_path / "run")
    _assert_same(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.filterwarnings("ignore")  # moto's own
def test_two_processes_train_into_a_store_which_the_chief_alone_writes(
    dataset: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        _train_in_two(dataset, store.path("run"))
        assert "fold-0" in files.read_text(files.join(store.path("run"), "run.json"))
        with files.fetched(store.path("run")) as run:
            _assert_same(run, alone)


@pytest.mark.slow
def test_two_devices_of_one_process_train_to_the_weights_of_one(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    code = TWO_DEVICES.format(change="")
    _finish([_start(dataset, tmp_path / "run", code=code)])
    _assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_devices_with_statistics_of_their_own_are_not_taken_for_one(
    dataset: Path, alone: Path, tmp_path: Path
) -> None:
    """The comparison can fail: it finds the commonest mistake of distributed training."""
    code = TWO_DEVICES.format(change=UNSYNCHRONISED)
    _finish([_start(dataset, tmp_path / "run", code=code)])
    # The averages of the statistics are themselves averaged over the devices, and little off.
    learnt = {
        path: share
        for path, share in _apart(tmp_path / "run", alone).items()
        if "moving" not in path
    }
    assert min(learnt.values()) > 2 * VANISHING
