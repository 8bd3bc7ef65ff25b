"""Every command with every input and output in a store gives what it gives on a disk."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.common.files import interface as files
from tests import azurite, stores
from tests.stores import Emulator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from revisions.compare import FAILING, Expected, compare_file  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.emulator, pytest.mark.timeout(3600)]

SPACE = '{"network": "slice_cnn", "precision": "float32", "augment": "none"}'
# In the order in which their inputs come to be; {at} is the place.
COMMANDS = (
    "beam_jobs.phantoms --output {at}/cohort --patients 24 --test_patients 4 --seed 3"
    " --matrix 40,44 --slices 12,14 --workers 1",
    "beam_jobs.survey {at}/cohort/train --output {at}/survey.csv",
    "beam_jobs.dicom_to_tfrecord --input {at}/cohort/train --labels {at}/cohort/train_labels.csv"
    " --output {at}/dataset --shape 16,16,12 --folds 2",
    "beam_jobs.verify {at}/dataset",
    "beam_jobs.report {at}/dataset --output {at}/report.html",
    "trainer.task --data {at}/dataset --output_dir {at}/run --cross_validate --model slice_cnn"
    " --epochs 2 --learning_rate 1e-3 --precision float32",
    "trainer.baseline --data {at}/dataset --output_dir {at}/forest --trees 20",
    "trainer.evaluate --predictions {at}/run/oof_predictions.csv {at}/forest/oof_predictions.csv"
    " --series {at}/dataset/series.csv --run {at}/run --output {at}/evaluation",
    "trainer.saliency --run {at}/run --data {at}/dataset --method gradcam --output {at}/saliency"
    " --dicom_pm {at}/maps --dicom {at}/cohort/train",
    "trainer.tune --data {at}/dataset --output_dir {at}/study --tuner random --max_trials 2"
    " --epochs 1 --space {at}/space.json",
    "trainer.task --data {at}/dataset --output_dir {at}/best --fold 0"
    " --hyperparameters {at}/study/best_hyperparameters.json",
    "serving.export --runs {at}/run --data {at}/dataset --output {at}/model",
    "serving.batch_predict --model {at}/model --input {at}/cohort/test"
    " --ids {at}/cohort/sample_submission.csv --output {at}/submission.csv",
    "serving.batch_predict --model {at}/model --input {at}/dataset --output {at}/all.jsonl"
    " --output_shards 2",
    "serving.batch_predict --model {at}/model --input {at}/dataset/fold-*.tfrecord"
    " --output {at}/all.parquet",
    "serving.check_submission {at}/submission.csv --sample {at}/cohort/sample_submission.csv",
    "trainer.evaluate --predictions {at}/submission.csv"
    " --labels {at}/cohort/truth/test_labels.csv --output {at}/verdict",
)
# What says when and by whom a file was written, or which version of an input a store handed out.
LEFT_OUT = ("*/.state/*", "*.lock", "*/lock")
EXPECTED = (
    Expected(
        file="study/trials/*/request.json",
        place="logs",
        why="a trial's process writes TensorBoard's files to a disk, from where they are pushed",
    ),
)


def run_all(at: str, cwd: Path, environment: dict[str, str]) -> None:
    for command in COMMANDS:
        module, *argv = command.format(at=at).split()
        done = subprocess.run(
            [sys.executable, "-m", module, *argv],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{command}\n{done.stderr}"


def named(names: Iterator[str]) -> dict[str, str]:
    """Name → file; TensorBoard puts time, host and process into its files' names."""
    found = {}
    for name in names:
        parent, slash, base = name.rpartition("/")
        if base.startswith("events.out.tfevents."):
            base = f"events.out.tfevents.*.{base.split('.')[-2]}.v2"
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT):
            found[f"{parent}{slash}{base}"] = name
    return found


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("everywhere")
    (root / "space.json").write_text(SPACE)
    run_all(str(root), root, {})
    return root


@contextlib.contextmanager
def emulated(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    start = {"s3": stores.s3, "gs": stores.gs, "az": azurite.az}[kind]
    with start() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.mark.parametrize("kind", ["s3", "gs", "az"])
def test_every_command_gives_the_same_bytes_in_a_store(
    kind: str, on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulated(kind, monkeypatch) as store:
        at = store.path("everywhere")
        files.write_text(files.join(at, "space.json"), SPACE)
        run_all(at, tmp_path, store.environment)
        assert not any(tmp_path.iterdir()), "a command wrote into its working directory"
        prefix = files.join(at, "")
        with files.fetched(at) as fetched:
            here = named(str(p.relative_to(fetched)) for p in files_below(fetched))
            there = named(str(p.relative_to(on_disk)) for p in files_below(on_disk))
            assert here.keys() == there.keys()
            roots = (str(on_disk), prefix.rstrip("/"))
            differing = {}
            for name in sorted(here):
                data = ((on_disk / there[name]).read_bytes(), (fetched / here[name]).read_bytes())
                verdict = compare_file(name, data, roots, EXPECTED)
                if verdict.word in FAILING:
                    differing[name] = verdict.detail
    assert not differing


def files_below(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())
