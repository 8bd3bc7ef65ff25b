"""Whole runs of classes, findings and values, with covariates: what they leave, and restarts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import trainer.training.fold
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import read_manifest
from tests.datasets import AGE_AND_SITE, TARGETS, write_dataset
from tests.trainer.training.test_restart import TIMES, Killed
from trainer.api import open_records, train
from trainer.config.run_layout import history_columns
from trainer.metrics.tasks.measure import measure_of
from trainer.metrics.tasks.oof_table import oof_columns
from trainer.training.checkpoint import FoldState, save_state
from trainer.training.epoch import learn
from trainer.training.fold_result import FoldResult
from trainer.training.predict_fold import inference, predict
from trainer.training.run_files import Run

TASKS = [pytest.param(task, marks=pytest.mark.slow) for task in TARGETS]
# Whatever has a state of its own: dropout, schedule, moving average, augmentation, mixup.
SETTINGS: dict[str, Any] = {
    "network": {"name": "seed_cnn", "width": 0.1},
    "modalities": ["T1wCE"],
    "covariates": ["site"],
    "outer_fold": 1,
    "epochs": 3,
    "epoch_choice": "crossfit",
    "augment": {"mixup_alpha": 0.4},
    "optimizer": {
        **{"learning_rate": 3e-3, "schedule": "cosine", "warmup_epochs": 1, "ema": 0.8},
        **{"weight_decay": 1e-3, "clip_norm": 1.0},
    },
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("datasets")
    for task, target in TARGETS.items():
        write_dataset(
            directory / task,
            patients=24,
            folds=3,
            unlabelled=1,
            shape=(10, 10, 10),
            target=target,
            covariates=AGE_AND_SITE,
        )
    return directory


def _told(directory: Path) -> dict[str, Any]:
    """All that a run leaves to be read, but for times."""
    found: dict[str, Any] = {"oof": (directory / "oof_predictions.csv").read_bytes()}
    for file in sorted(directory.rglob("history.csv")):
        with file.open(newline="") as stream:
            rows = [
                {k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)
            ]
        found[f"{file.parent.name}/history"] = rows
    for file in sorted(directory.rglob("network.keras")):
        found[file.parent.name] = file.read_bytes()
        result = json.loads((file.parent / "result.json").read_text())
        found[f"{file.parent.name}/result"] = result["held_out"], result["optimistic"]
    data = Run.load(directory).to_json()
    return {
        **found,
        **{name: data[name] for name in data if "seconds" not in name and name != "input_wait"},
    }


@pytest.fixture(scope="module")
def whole(datasets: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a task that was left alone, trained when it is first asked for."""
    directory = tmp_path_factory.mktemp("whole")

    def run(task: str) -> Path:
        if not (directory / task).exists():
            train(datasets / task, directory / task, SETTINGS)
        return directory / task

    return run


@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_a_run_stopped_in_each_fold_leaves_what_one_left_alone_does(
    task: str,
    datasets: Path,
    whole: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between an epoch's network and its state, and amid an epoch."""

    def save_or_die(directory: Path, state: FoldState, *args: Any, **more: Any) -> None:
        if (directory.name, state.epoch) == ("fold-0", 3):
            raise Killed
        save_state(directory, state, *args, **more)

    def learn_or_die(*args: Any, label: str, **more: Any) -> Any:
        learnt = learn(*args, label=label, **more)
        if label == "fold-2, epoch 2":
            raise Killed
        return learnt

    for name, function in (("save_state", save_or_die), ("learn", learn_or_die)):
        with monkeypatch.context() as patch:
            patch.setattr(trainer.training.fold, name, function)
            with pytest.raises(Killed):
                train(datasets / task, tmp_path, SETTINGS)
        assert not (tmp_path / "run.json").exists()
    train(datasets / task, tmp_path, SETTINGS)
    assert _told(tmp_path) == _told(whole(task))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_each_patients_answer_and_networks_that_give_it_again(
    task: str, datasets: Path, whole: Callable[[str], Path]
) -> None:
    target, manifest, directory = TARGETS[task], read_manifest(datasets / task), whole(task)
    run = Run.load(directory)
    assert (run.target, run.covariates) == (target, AGE_AND_SITE[1:])
    assert [one.fold for one in run.members] == [0, 2]  # fold 1 is the outer one
    assert len(run.prior) == target.outputs
    assert run.trained_on["patients"] == 16 == len(run.trained_ids)
    with (directory / "oof_predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == (*oof_columns(target), "covariate_site")
    assert {row["covariate_site"] for row in rows} == {"A", "B", ""}
    scored = {name for name, _, fold in manifest.patients if fold in (0, 2)}
    assert {row["patient_id"] for row in rows} == scored
    measure = measure_of(target)
    for place, member in enumerate(run.members):
        folder = (directory / member.path).parent
        columns = (folder / "history.csv").read_text().splitlines()[0]
        assert tuple(columns.split(",")) == history_columns(measure.name)
        result = FoldResult.load(folder, target)
        assert result is not None
        answers = result.held_out.logits[result.epochs.index(member.epoch)]
        with open_records(
            datasets / task, folds=[member.fold], modalities=["T1wCE"], covariates=["site"]
        ) as records:
            ids, truth, again = predict(inference(run.load_member(place)), records, batch_size=8)
        assert ids == result.held_out.patient_ids
        np.testing.assert_array_equal(truth, result.held_out.labels)
        np.testing.assert_array_equal(again, answers)
        assert member.score == pytest.approx(measure.score(truth, again))


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_permuted_and_covariates_stay_with_their_patient(
    task: str, datasets: Path, tmp_path: Path
) -> None:
    network = {"name": "seed_cnn", "width": 0.1}
    config = {"network": network, "modalities": ["T1w"], "epochs": 1, "fold": 0, "repeats": 2}
    tables = []
    for permuted in (False, True):
        run = train(
            datasets / task, tmp_path / str(permuted), {**config, "permute_labels": permuted}
        )
        assert run is not None
        assert run.no_claim == (("permuted",) if permuted else ())
        assert [one.seed for one in run.members] == [0, 1]
        with (tmp_path / str(permuted) / "oof_predictions.csv").open(newline="") as stream:
            tables.append({row["patient_id"]: row for row in csv.DictReader(stream)})
    labels = [
        {one: [v for k, v in row.items() if k.startswith("label")] for one, row in table.items()}
        for table in tables
    ]
    assert labels[0] != labels[1]
    assert sorted(labels[0].values()) == sorted(labels[1].values())
    for one, row in tables[0].items():
        covariates = {k: v for k, v in row.items() if k.startswith("covariate_")}
        assert covariates.items() <= tables[1][one].items()
        assert len(covariates) == 2


@pytest.mark.slow
def test_a_run_without_covariates_is_another_run_and_its_networks_take_volumes_alone(
    datasets: Path, tmp_path: Path
) -> None:
    config = {"network": {"name": "seed_cnn", "width": 0.1}, "epochs": 1, "fold": 0}
    data = datasets / "multiclass"
    train(data, tmp_path / "run", {**config, "covariates": []})
    assert Run.load(tmp_path / "run").covariates == ()
    assert len(Run.load(tmp_path / "run").load_member(0).inputs) == 1
    with pytest.raises(ContractError, match=r"config\.covariates"):
        train(data, tmp_path / "run", config)
    # A network of other inputs than run.json says is refused.
    file = tmp_path / "run" / "run.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "config": {**told["config"], "covariates": ["age"]}}))
    with pytest.raises(ContractError, match=r"run.json says volumes .* and 1 covariates"):
        Run.load(tmp_path / "run").load_member(0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_values_are_answered_in_their_unit_under_any_precision(
    precision: str, datasets: Path, tmp_path: Path
) -> None:
    config = {"network": {"name": "seed_cnn", "width": 0.1}, "modalities": ["T1w"], "epochs": 1}
    run = train(datasets / "regression", tmp_path, {**config, "precision": precision, "fold": 0})
    assert run is not None
    assert run.precision == precision
    with (tmp_path / "oof_predictions.csv").open(newline="") as stream:
        values = [float(row["value"]) for row in csv.DictReader(stream)]
    mean, sd = run.trained_on["mean"], run.trained_on["sd"]
    assert all(abs(value - mean) < 4 * sd for value in values)
    assert np.ptp(values) > 0
    keras.config.set_dtype_policy("float32")
