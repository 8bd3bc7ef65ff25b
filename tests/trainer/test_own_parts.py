"""A user's own augmentation, loss and encoder through the commands; what is kept of the code."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.datasets import write_dataset
from tests.trainer.test_own_network import ALONE, ROOT, Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
HOW_TO = ROOT / "docs" / "how-to" / "own-parts.md"
# Beside what the how-to shows, and in a file of its own that the other one imports.
ENCODER = """
from layers_of_mine import norm

def encoder(slices, config):
    return norm()(keras.layers.Conv2D(4, 3, strides=2, activation="relu")(slices))
"""
BESIDE = "import keras\n\ndef norm():\n    return keras.layers.BatchNormalization()\n"
PARTS = ("--encoder", "mine:encoder", "--augment", "mine:noise", "--loss", "mine:focal")
SETTINGS = ("--modalities", "T1wCE", "--epochs", "2", "--ema", "0.8")
FUNCTIONS = ["mine:encoder", "mine:noise", "mine:focal"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory: Path = tmp_path_factory.mktemp("place")
    write_dataset(
        directory / "dataset", patients=24, folds=2, shape=(12, 12, 3), modalities=("T1wCE",)
    )
    code = HOW_TO.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    (directory / "mine.py").write_text(code + ENCODER)
    (directory / "layers_of_mine.py").write_text(BESIDE)
    made = Place(directory, "slice_cnn")
    made.run("trainer.task", *_train("run"))
    return made


def _train(run: str) -> tuple[str, ...]:
    given = ("--data", "dataset", "--output_dir", run, "--cross_validate", "--model", "slice_cnn")
    return (*given, *PARTS, *SETTINGS)


def _json(file: Path) -> Any:
    return json.loads(file.read_text())


def test_a_killed_run_ends_as_one_that_was_left_alone(place: Place) -> None:
    process = place.start("trainer.task", *_train("killed"))
    while not (place.directory / "killed" / "fold-0" / "state.npz").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert "resumes after epoch" in place.run("trainer.task", *_train("killed"))
    for name in ("fold-0/network.weights.h5", "fold-1/network.weights.h5", "oof_predictions.csv"):
        first, second = ((place.directory / run / name).read_bytes() for run in ("run", "killed"))
        assert first == second, name


def test_run_model_and_card_tell_of_the_code_and_the_model_needs_none_of_it(place: Place) -> None:
    config = _json(place.directory / "run" / "config.json")
    told = _json(place.directory / "run" / "run.json")["code"]
    assert [one["function"] for one in told] == FUNCTIONS
    assert config["code"] == told
    place.run("serving.export", "--runs", "run", "--data", "dataset", "--output", "model")
    contract = _json(place.directory / "model" / "assets" / "contract.json")
    assert contract["training"][0]["code"] == told
    card = (place.directory / "model" / "assets" / "MODEL_CARD.md").read_text()
    assert f"`mine:focal` (source sha256 `{told[0]['sha256'][:12]}`)" in card
    # Shape (patients, row, column, slice, channel), as text of a program of its own.
    volumes = "np.zeros((1, 12, 12, 3, 1), np.uint8)"
    program = ALONE.replace("np.load(sys.argv[2])", volumes).replace("mynetwork", "mine")
    answered = subprocess.run(
        [sys.executable, "-c", program, str(place.directory / "model")],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(answered.stdout.splitlines()[-1])) == 1


def test_a_retraining_runs_with_the_parts_in_a_process_of_its_own(place: Place) -> None:
    place.run("trainer.task", *_train("run"), "--permutations", "1")
    rows = (place.directory / "run" / "permutations.csv").read_text().splitlines()
    assert len(rows) == 2


def test_other_code_is_refused_by_name_whoever_meets_it(place: Place) -> None:
    file = place.directory / "layers_of_mine.py"
    told = _json(place.directory / "run" / "config.json")["code"]
    settings = _json(place.directory / "run" / "config.json")["config"]
    # What a run tells the processes that it starts.
    (place.directory / "settings.json").write_text(
        json.dumps({**settings, "provenance": {"code": told}})
    )
    child = ("--data", "dataset", "--output_dir", "child", "--cross_validate")
    file.write_text(f"{BESIDE}# edited\n")
    try:
        for argv, message in (
            (("trainer.task", *_train("run")), "code.mine:encoder.sha256: "),
            (
                ("trainer.task", *child, "--hyperparameters", "settings.json"),
                "mine:encoder is not what the run was begun with (sha256 ",
            ),
            (
                ("serving.export", "--runs", "run", "--output", "other"),
                "run/run.json: mine:encoder is not what the run was begun with (sha256 ",
            ),
        ):
            assert message in place.run(*argv, code=1)
    finally:
        file.write_text(BESIDE)
    assert "finished already" in place.run("trainer.task", *_train("run"))


def test_a_function_that_failed_may_be_mended_without_overwriting(place: Place) -> None:
    file = place.directory / "soon.py"
    train = [
        *("trainer.task", "--data", "dataset", "--output_dir", "soon", "--fold", "0"),
        *(*SETTINGS, "--model", "slice_cnn", "--augment", "soon:f"),
    ]
    file.write_text("def f(volume, seed):\n    return volume[:, 1:]\n")
    assert "gives 2x11x12x3x1 for 2x12x12x3x1" in place.run(*train, code=2)
    file.write_text("def f(volume, seed):\n    return volume\n")
    place.run(*train)


def test_a_search_over_parts_is_not_resumed_with_other_code(place: Place) -> None:
    space = {
        "network": "slice_cnn", "width": 1, "depth": 1, "head": "mean", "fusion": "early",
        "augment": ["mine:noise", "none"], "loss": "mine:focal",
        **dict.fromkeys(("dropout", "learning_rate", "schedule", "batch_size")),
    }  # fmt: skip
    (place.directory / "space.json").write_text(json.dumps(space))
    tune = [
        *("trainer.tune", "--data", "dataset", "--output_dir", "study", "--space", "space.json"),
        *("--tuner", "grid", "--epochs", "1", "--max_trials"),
    ]
    place.run(*tune, "1")
    file = place.directory / "layers_of_mine.py"
    file.write_text(f"{BESIDE}# edited\n")
    try:
        assert "code.mine:noise.sha256: " in place.run(*tune, "2", code=1)
    finally:
        file.write_text(BESIDE)
    place.run(*tune, "2")
    rows = (place.directory / "study" / "trials.csv").read_text().splitlines()
    assert len(rows) == 3
    assert all(",completed," in row for row in rows[1:])


def test_what_lies_beside_a_script_is_found_by_the_processes_that_it_starts(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "beside.py").write_text("def same(volume, seed):\n    return volume\n")
    (tmp_path / "script.py").write_text(
        "from trainer.api import train\n"
        "train('dataset', 'scripted', {'network': 'slice_cnn', 'epochs': 1, 'fold': 0,\n"
        "      'augment': 'beside:same'}, permutations=1)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        cwd=place.directory,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (place.directory / "scripted" / "permutations.csv").is_file()
