"""A study over a hypermodel of somebody else's package: killed, resumed, trained, exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.json_file import read_json
from tests.datasets import write_dataset
from tests.trainer.search.searches import rows_of
from trainer.training.run_files import Run

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = '''
"""As KerasTuner's guide has it: nothing here knows of the trainer."""

import keras
import keras_tuner
from keras import layers


class Volumes(keras_tuner.HyperModel):
    def __init__(self, input_shape, num_classes=1):
        super().__init__()
        self.shape, self.classes = input_shape, num_classes

    def build(self, hp):
        print("building")
        x = volume = keras.Input(self.shape)
        kind = hp.Choice("activation", ["relu", "elu"])
        for i in range(hp.Int("layers", 1, 2)):
            filters = hp.Int(f"filters_{i}", 4, 16, sampling="log")
            x = layers.Conv3D(filters, 3, padding="same", activation=kind)(x)
        x = layers.GlobalAveragePooling3D()(x)
        with hp.conditional_scope("activation", ["elu"]):
            if kind == "elu":
                x = layers.Dropout(hp.Float("rate", 0.1, 0.5, step=0.1))(x)
        x = layers.Dense(self.classes, activation="sigmoid")(x)
        model = keras.Model(volume, x)
        rate = hp.Float("lr", 1e-4, 1e-1, sampling="log")
        model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
        return model
'''


def started(place: Path, *argv: str) -> subprocess.Popen[str]:
    """One of our commands, where only the working directory leads to the package."""
    return subprocess.Popen(
        [sys.executable, "-m", *argv],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(place: Path, *argv: str) -> str:
    """A command to its end; what it says."""
    process = started(place, *argv)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def results_of(study: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in study.glob("trials/*/result.json")}


def require_within(values: dict[str, Any]) -> None:
    """Every value is one that the package's ranges have, and stands where it means something."""
    assert 1e-4 <= values["options.lr"] <= 1e-1
    assert values["options.layers"] in (1, 2)
    assert ("options.filters_1" in values) == (values["options.layers"] == 2)
    assert ("options.rate" in values) == (values["options.activation"] == "elu")
    assert values.get("options.rate", 0.1) in (0.1, 0.2, 0.3, 0.4, 0.5)
    for name in ("options.filters_0", "options.filters_1"):
        assert isinstance(values.get(name, 4), int)
        assert 4 <= values.get(name, 4) <= 16


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband", "grid"])
def test_a_foreign_hypermodel_is_searched_over_kills_and_its_best_trained_and_exported(
    tmp_path: Path, tuner: str
) -> None:
    (tmp_path / "somebodys.py").write_text(PACKAGE)
    study = tmp_path / "study"
    write_dataset(tmp_path / "data", folds=2, modalities=("T1wCE",), signal=0.6)
    argv: Sequence[str] = (
        *("trainer.tune", "--data", "data", "--output_dir", "study", "--tuner", tuner),
        *("--hypermodel", "somebodys:Volumes", "--max_trials", "4", "--epochs", "3"),
    )
    process, before = started(tmp_path, *argv), {}
    while len(before := results_of(study)) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate()
    assert before, said
    said = run(tmp_path, *argv)
    assert "trials are finished already" in said
    plan = " ".join(said.split())  # its lines are as long as the terminal is wide
    assert "options.filters_1 4 to 16, log (where options.layers is 2)" in plan
    assert before.items() <= results_of(study).items()
    rows = rows_of(study)
    assert [int(row["trial"]) for row in rows] == [0, 1, 2, 3]
    assert all(row["objective"] for row in rows)
    tried = set()
    for name in results_of(study):
        request = json.loads((study / "trials" / name / "request.json").read_text())
        require_within(request["values"])
        options = request["config"]["network"]["options"]
        assert {f"options.{key}": value for key, value in options.items()} == {
            key: value for key, value in request["values"].items() if key.startswith("options.")
        }
        tried.add(json.dumps([options, request["config"]["epochs"]], sort_keys=True))
    assert len(tried) == 4  # nothing twice
    if tuner == "bayesian":
        best = "study/best_hyperparameters.json"
        run(tmp_path, "trainer.task", "--data", "data", "--output_dir", "run", "--cross_validate",
            "--hyperparameters", best)  # fmt: skip
        auc = max(float(row["objective"]) for row in rows)
        trained = Run.load(tmp_path / "run")
        assert trained.metrics["auc"] == pytest.approx(auc, abs=1e-9)
        assert read_json(tmp_path / best)["network"] == trained.config["network"]
        run(tmp_path, "serving.export", "--runs", "run", "--output", "model")
        (tmp_path / "somebodys.py").unlink()
        run(tmp_path, "serving.batch_predict", "--model", "model", "--input", "data",
            "--output", "predicted.csv")  # fmt: skip
        assert len((tmp_path / "predicted.csv").read_text().splitlines()) == 25
