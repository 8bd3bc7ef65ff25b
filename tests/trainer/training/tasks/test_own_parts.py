"""A user's own network and loss through whole runs of classes, findings and values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from tests.datasets import AGE_AND_SITE, TARGETS, write_dataset
from tests.trainer.networks.own_networks import HERE
from trainer.task import main
from trainer.training.run_files import Run

FOCAL = {
    "multiclass": "keras.losses:CategoricalFocalCrossentropy",
    "multilabel": "keras.losses:BinaryFocalCrossentropy",
    "regression": "keras.losses:LogCosh",
}
CLASSES = ("--class_weights", "balanced", "--label_smoothing", "0.1")


def _dataset(directory: Path, task: str) -> Path:
    made_of: dict[str, Any] = {"target": TARGETS[task], "covariates": AGE_AND_SITE}
    write_dataset(
        directory / "data", patients=24, folds=2, shape=(8, 8, 6), modalities=("T1wCE",), **made_of
    )
    return directory / "data"


@pytest.mark.slow
@pytest.mark.parametrize("task", FOCAL)
def test_a_run_of_ones_own_network_and_loss_comes_back_as_it_was(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = _dataset(tmp_path, task), tmp_path / "run"
    argv = ["--data", str(data), "--output_dir", str(run), "--fold", "0", "--epochs", "2"]
    argv += ["--model", f"{HERE}:labelled", "--loss", FOCAL[task], "--augment", "strong"]
    argv += ["--ema", "0.9", *(CLASSES if task != "regression" else ())]
    assert main(argv) == 0, capsys.readouterr()
    found = Run.load(str(run))
    network = found.load_member(0)
    volumes = np.zeros((2, 8, 8, 6, 1), np.uint8)
    known = np.array([[50.0, 0.0], [np.nan, np.nan]], np.float32)
    answers = np.asarray(network([volumes, known]))
    assert answers.shape == (2, TARGETS[task].outputs)
    assert np.isfinite(answers).all()
    if task == "regression":
        value = network.get_layer("value")
        trained = json.loads((run / "run.json").read_text())["trained_on"]
        assert float(value.offset[0]) == pytest.approx(trained["mean"], rel=1e-5)
        assert float(value.scale[0]) == pytest.approx(trained["sd"], rel=0.1)
    assert float(network.get_layer("known").mean[0]) > 40


@pytest.mark.slow
def test_what_values_cannot_have_ends_a_run_in_one_line(tmp_path: Path) -> None:
    data = _dataset(tmp_path, "regression")
    argv = ["--data", str(data), "--output_dir", str(tmp_path / "run"), "--fold", "0"]
    argv += ["--model", f"{HERE}:labelled"]
    for more, said in (
        (("--label_smoothing", "0.1"), "--label_smoothing 0.1: labels are values, not classes"),
        (("--loss", "keras.losses:BinaryCrossentropy"), "it is one of logits"),
        (("--model", f"{HERE}:squashed"), "1 output behind a sigmoid: one value is needed"),
    ):
        with pytest.raises(UsageError, match=said) as raised:
            main([*argv, *more])
        assert "\n" not in str(raised.value)
