"""Networks of a user's own code through every command: trained, searched, exported, explained.

One of ten lines, which the how-to shows, beside the commands' working directory; and one of another
package. Nothing of either is needed by the model that comes out.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets import write_dataset
from trainer.training.run_files import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).resolve().parents[2]
HOW_TO = ROOT / "docs" / "how-to" / "own-network.md"
SETTINGS = ("--modalities", "T1wCE", "--epochs", "2", "--learning_rate", "1e-3", "--ema", "0.8")
# What answers volumes with TensorFlow and the model's directory alone.
ALONE = """
import json, sys
for name in ("keras", "medicai", "mynetwork", "trainer", "serving", "beam_jobs"):
    sys.modules[name] = None
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
volumes = np.load(sys.argv[2])
print(json.dumps(model.signatures["volumes"](tf.constant(volumes))["logit"].numpy().tolist()))
"""


@dataclasses.dataclass(frozen=True)
class Place:
    """A working directory with a dataset, and what trains there.

    Attributes:
      directory: of the commands.
      name: of the network.
    """

    directory: Path
    name: str

    def start(self, module: str, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *argv],
            cwd=self.directory,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, *argv: str, code: int = 0) -> str:
        process = self.start(module, *argv)
        out, err = process.communicate()
        assert process.returncode == code, f"{out}\n{err}"
        assert "Traceback" not in err
        return out if code == 0 else err

    def train(self, run: str) -> tuple[str, ...]:
        given = ("--data", "dataset", "--output_dir", run, "--cross_validate", "--model", self.name)
        return (*given, *SETTINGS)


@pytest.fixture(
    scope="module",
    params=[("mynetwork:small", (16, 16, 12), 24), ("medicai.models:DenseNet121", (32, 32, 32), 4)],
    ids=lambda param: param[0],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    name, shape, patients = request.param
    if name.startswith("medicai"):
        pytest.importorskip("medicai")
    directory: Path = tmp_path_factory.mktemp("place")
    write_dataset(
        directory / "dataset", patients=patients, folds=2, shape=shape, modalities=("T1wCE",)
    )
    code = HOW_TO.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    (directory / "mynetwork.py").write_text(code)
    made = Place(directory, name)
    made.run("trainer.task", *made.train("run"))
    return made


def test_a_killed_run_ends_as_one_that_was_left_alone(place: Place) -> None:
    process = place.start("trainer.task", *place.train("killed"))
    while not (place.directory / "killed" / "fold-0" / "state.npz").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not list((place.directory / "killed").glob("fold-*/network.*"))
    assert "resumes after epoch" in place.run("trainer.task", *place.train("killed"))
    runs = [place.directory / name for name in ("run", "killed")]
    for name in ("fold-0/network.weights.h5", "fold-1/network.weights.h5", "oof_predictions.csv"):
        first, second = ((run / name).read_bytes() for run in runs)
        assert first == second, name
    assert not list((place.directory / "killed").glob("fold-*/.*"))


def test_it_is_exported_and_answers_without_its_code(place: Place) -> None:
    place.run("serving.export", "--runs", "run", "--data", "dataset", "--output", "model")
    place.run(
        *("serving.batch_predict", "--model", "model", "--input", "dataset"),
        *("--output", "submission.csv"),
    )
    with (place.directory / "submission.csv").open(newline="") as stream:
        assert len(list(csv.reader(stream))) > 4
    trained = Run.load(place.directory / "run")
    volumes = np.random.default_rng(0).integers(0, 255, (2, *trained.schema.shape, 1))
    np.save(place.directory / "volumes.npy", volumes.astype(np.uint8))
    elsewhere = place.directory / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, "../model", "../volumes.npy"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert np.isfinite(json.loads(done.stdout)).all()


@pytest.mark.parametrize("method", ["integrated_gradients", "gradcam"])
def test_it_is_explained(place: Place, method: str) -> None:
    out = place.run(
        *("trainer.saliency", "--run", "run", "--data", "dataset"),
        *("--method", method, "--output", f"saliency-{method}"),
    )
    assert "rank correlation with random weights" in out


def test_it_is_searched_and_the_best_settings_train(place: Place) -> None:
    space: dict[str, Any] = {"network": place.name}
    space |= {"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}}
    if place.name.startswith("mynetwork"):
        space["options.growth"] = {"min": 4, "max": 8}
    (place.directory / "space.json").write_text(json.dumps(space))
    place.run(
        *("trainer.tune", "--data", "dataset", "--output_dir", "study", "--tuner", "random"),
        *("--max_trials", "2", "--epochs", "1", "--folds", "1", "--space", "space.json"),
    )
    with (place.directory / "study" / "trials.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 2
    best = json.loads((place.directory / "study" / "best_hyperparameters.json").read_text())
    assert best["network"]["name"] == place.name
    place.run(
        *("trainer.task", "--data", "dataset", "--output_dir", "best", "--fold", "0"),
        *("--hyperparameters", "study/best_hyperparameters.json", "--epochs", "1"),
    )
    assert Run.load(place.directory / "best").model == place.name


def test_code_that_is_gone_is_named_in_a_line(place: Place) -> None:
    if not place.name.startswith("mynetwork"):
        pytest.skip("an installed package stays")
    code = place.directory / "mynetwork.py"
    gone = code.rename(code.with_suffix(".txt"))
    try:
        for argv in (
            ("serving.export", "--runs", "run", "--output", "other"),
            ("trainer.saliency", "--run", "run", "--data", "dataset", "--output", "other"),
        ):
            said = place.run(*argv, code=1)
            assert "mynetwork:small: no such module" in said
            assert len(said.splitlines()) == 1
    finally:
        gone.rename(code)
