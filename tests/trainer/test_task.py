"""Training runs, whole: what they learn, what they leave, what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from tests.commands import outcome
from tests.datasets import write_dataset
from trainer.config.run_layout import OOF_COLUMNS
from trainer.metrics.auc import auc
from trainer.metrics.estimate import estimate_of
from trainer.task import main
from trainer.training.run_files import Run

FAST = ("--learning_rate", "1e-3", "--batch_size", "8", "--modalities", "T1wCE")


class Trained(NamedTuple):
    data: Path
    directory: Path
    argv: list[str]
    printed: list[str]


def _train(data: Path, directory: Path, *options: str) -> list[str]:
    return ["--data", str(data), "--output_dir", str(directory), *FAST, *options]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=64, folds=2, unlabelled=2, signal=1.5)
    return directory


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    directory: Path = tmp_path_factory.mktemp("runs") / "run"
    argv = _train(dataset, directory, "--cross_validate", "--epochs", "4")
    command = [sys.executable, "-m", "trainer.task", *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Trained(dataset, directory, argv, done.stdout.splitlines())


def _oof(directory: Path) -> list[dict[str, str]]:
    with (directory / "oof_predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_an_easy_task_is_learnt_for_held_out_patients(trained: Trained) -> None:
    metrics = Run.load(trained.directory).metrics
    assert metrics["n"] == 64
    assert metrics["auc"] >= 0.9
    assert metrics["auc_interval"][0] > 0.5


def test_every_labelled_patient_is_predicted_once_by_a_member_that_did_not_see_it(
    trained: Trained,
) -> None:
    manifest = Manifest.loads((trained.data / MANIFEST_NAME).read_text())
    truth = {name: (str(label), str(fold)) for name, label, fold in manifest.patients}
    rows = _oof(trained.directory)
    assert tuple(rows[0]) == OOF_COLUMNS
    assert {row["patient_id"]: (row["label"], row["fold"]) for row in rows} == {
        name: values for name, values in truth.items() if values[0] != "None"
    }
    assert len(rows) == 64


def _history(directory: Path, fold: int) -> list[dict[str, float]]:
    with (directory / f"fold-{fold}" / "history.csv").open(newline="") as stream:
        rows = csv.DictReader(stream)
        return [{name: float(value) for name, value in row.items()} for row in rows]


def test_the_kept_epoch_is_the_last_whatever_its_own_patients_say(trained: Trained) -> None:
    finished = Run.load(trained.directory)
    assert finished.epoch_choice == "last"
    for member, of_fold in zip(finished.members, finished.metrics["folds"], strict=True):
        history = _history(trained.directory, member.fold)
        assert [row["epoch"] for row in history] == [1, 2, 3, 4]
        assert (member.epoch, member.val_auc) == (4, history[-1]["val_auc"])
        best = max(history, key=lambda row: (row["val_auc"], -row["val_loss"]))
        assert of_fold["optimistic"] == {"epoch": best["epoch"], "auc": best["val_auc"]}
    assert {
        (row["epoch"], row["epoch_choice"], row["no_claim"]) for row in _oof(trained.directory)
    } == {("4", "last", "")}
    assert not any("best" in line for line in trained.printed)


@pytest.mark.slow  # three networks, whose epochs are all kept
@pytest.mark.parametrize("repeats", ["1", "2"])
def test_a_crossfitted_epoch_is_that_of_the_least_loss_on_the_other_folds(
    dataset: Path, tmp_path: Path, repeats: str
) -> None:
    options = ("--cross_validate", "--epochs", "3", "--repeats", repeats, "--width", "0.25")
    assert main(_train(dataset, tmp_path, *options, "--epoch_choice", "crossfit")) == 0
    finished = Run.load(tmp_path)
    losses = {0: np.zeros(3), 1: np.zeros(3)}
    for member in finished.members:
        with (tmp_path / member.path).with_name("history.csv").open(newline="") as stream:
            losses[member.fold] += [float(row["val_loss"]) for row in csv.DictReader(stream)]
    chosen = {fold: int(np.argmin(losses[1 - fold])) + 1 for fold in losses}
    assert {(member.fold, member.epoch) for member in finished.members} == set(chosen.items())
    assert {(row["fold"], row["epoch"], row["epoch_choice"]) for row in _oof(tmp_path)} == {
        (str(fold), str(epoch), "crossfit") for fold, epoch in chosen.items()
    }
    assert {file.name for file in tmp_path.glob("fold-*/*.keras")} == {"network.keras"}
    assert not list(tmp_path.glob("fold-*/.epoch-*"))


@pytest.mark.slow
def test_of_a_single_epoch_there_is_nothing_to_choose(dataset: Path, tmp_path: Path) -> None:
    options = ("--cross_validate", "--epochs", "1", "--width", "0.25", "--epoch_choice", "crossfit")
    assert main(_train(dataset, tmp_path, *options)) == 0
    assert {member.epoch for member in Run.load(tmp_path).members} == {1}


def test_a_member_read_back_repeats_its_out_of_fold_predictions(trained: Trained) -> None:
    from trainer.data.records import open_records
    from trainer.training.predict_fold import inference, predict

    manifest = Manifest.loads((trained.data / MANIFEST_NAME).read_text())
    finished = Run.load(trained.directory)
    logits = {row["patient_id"]: float(row["logit"]) for row in _oof(trained.directory)}
    for index, member in enumerate(finished.members):
        records = open_records(
            trained.data, manifest, [member.fold], modalities=finished.modalities
        )
        ids, _, again = predict(inference(finished.load_member(index)), records, batch_size=8)
        assert dict(zip(ids, again.tolist(), strict=True)) == {name: logits[name] for name in ids}


def test_a_run_says_what_it_was_made_of(trained: Trained) -> None:
    finished = Run.load(trained.directory)
    manifest = Manifest.loads((trained.data / MANIFEST_NAME).read_text())
    assert finished.schema == manifest.schema
    assert finished.spec == manifest.spec
    assert finished.dataset_fingerprint == manifest.dataset_fingerprint
    assert (finished.modalities, finished.precision) == (("T1wCE",), "float32")
    assert finished.prevalence == 0.5
    labelled = {name for name, label, _ in manifest.patients if label is not None}
    assert set(finished.trained_ids) == labelled
    assert finished.step_seconds > 0
    assert list((trained.directory / "logs" / "fold-1").glob("events.*"))


def test_a_finished_run_is_not_trained_again(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained.directory / "run.json").stat().st_mtime_ns
    assert main(trained.argv) == 0
    assert "finished already" in capsys.readouterr().out
    assert (trained.directory / "run.json").stat().st_mtime_ns == before


def test_a_run_of_another_dataset_is_refused(trained: Trained, tmp_path: Path) -> None:
    write_dataset(tmp_path, patients=16, folds=2, seed=9)
    argv = [str(tmp_path) if part == str(trained.data) else part for part in trained.argv]
    with pytest.raises(ContractError, match=r"dataset_fingerprint: .* there, .* requested"):
        main(argv)


@pytest.mark.slow
def test_repeats_give_every_patient_a_row_a_seed_and_one_score(
    dataset: Path, tmp_path: Path
) -> None:
    options = ("--fold", "1", "--epochs", "1", "--repeats", "2", "--seed", "4", "--width", "0.25")
    assert main(_train(dataset, tmp_path, *options)) == 0
    finished, rows = Run.load(tmp_path), _oof(tmp_path)
    assert [(member.fold, member.seed) for member in finished.members] == [(1, 4), (1, 5)]
    assert all((tmp_path / member.path).is_file() for member in finished.members)
    logits: dict[str, list[float]] = {}
    for row in rows:
        logits.setdefault(row["patient_id"], []).append(float(row["logit"]))
    assert {len(values) for values in logits.values()} == {2}
    assert len({tuple(values) for values in logits.values()}) > 1
    labels = {row["patient_id"]: int(row["label"]) for row in rows}
    each = [auc(list(labels.values()), [logits[name][seed] for name in labels]) for seed in (0, 1)]
    assert finished.metrics["n"] == len(logits) == 32
    assert finished.metrics["auc"] == pytest.approx(np.mean(each))
    assert [seed["seed"] for seed in finished.metrics["seeds"]] == [4, 5]
    assert len(finished.trained_ids) == 32
    assert logits.keys().isdisjoint(finished.trained_ids)


def test_settings_come_from_a_file_and_flags_win(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "hyperparameters.json"
    settings = {
        "epochs": 1,
        "batch_size": 16,
        "network": {"name": "seed_cnn", "width": 0.25},
        "optimizer": {"learning_rate": 0.5, "schedule": "constant"},
    }
    file.write_text(json.dumps(settings))
    options = ("--fold", "0", "--hyperparameters", str(file))
    assert main(_train(dataset, tmp_path / "run", *options)) == 0
    config = Run.load(tmp_path / "run").config
    assert (config["epochs"], config["network"]["width"]) == (1, 0.25)
    assert config["optimizer"]["schedule"] == "constant"
    assert (config["batch_size"], config["optimizer"]["learning_rate"]) == (8, 1e-3)  # flags'


def test_tensorboard_gets_scalars_and_slices_of_training_volumes(trained: Trained) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained.directory / "logs" / "fold-0"), {"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert {"loss", "val_auc", "learning_rate", "input_wait", "stored", "augmented"} <= tags
    assert [event.step for event in events.Tensors("val_auc")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_permuted_labels_teach_nothing(tmp_path: Path) -> None:
    data, directory = tmp_path / "data", tmp_path / "run"
    write_dataset(data, patients=160, folds=2, signal=1.5, shape=(10, 10, 10))
    options = ("--fold", "1", "--epochs", "2", "--permute_labels", "--batch_size", "16")
    assert main(_train(data, directory, *options)) == 0
    finished = Run.load(directory)
    rows = _oof(directory)
    scores = [float(row["logit"]) for row in rows]
    low, high = estimate_of([int(row["label"]) for row in rows], scores)["auc_interval"]
    assert low <= 0.5 <= high
    assert finished.no_claim == ("permuted",)
    assert finished.metrics["no_claim"] == ["permuted"]
    assert {row["no_claim"] for row in rows} == {"permuted"}


def test_the_same_seed_gives_the_same_history(trained: Trained, tmp_path: Path) -> None:
    """Whether its fold is one of several in a process or alone in another."""
    assert main(_train(trained.data, tmp_path, "--fold", "0", "--epochs", "4")) == 0
    histories = [
        [(row["loss"], row["val_loss"]) for row in _history(directory, 0)]
        for directory in (trained.directory, tmp_path)
    ]
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--fold", "0", "--model", "resnet99"), 2, "known: seed_cnn"),
        (("--fold", "0", "--modalities", "PET"), 2, "the dataset has FLAIR, T1w, T1wCE, T2w"),
        (("--fold", "7"), 2, "folds 0 to 1"),
        (("--fold", "0", "--data", "nowhere"), 2, "nowhere: no such directory"),
        (("--fold", "0", "--data", "."), 2, "no manifest.json"),
        ((), 2, "one of the arguments --fold --cross_validate is required"),
        (("--fold", "0", "--epochs", "0"), 2, "--epochs must be at least 1"),
        (("--fold", "0", "--epochs", "9" * 30), 2, "--epochs must be at most 1000000"),
        (("--fold", "0", "--batch_size", "9" * 30), 2, "--batch_size must be at most 1000000"),
        (("--fold", "0", "--epoch_choice", "crossfit"), 2, "not with --fold 0"),
    ],
)
def test_a_wrong_request_fails_in_one_line(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    argv = ["--data", str(dataset), "--output_dir", str(tmp_path / "run"), *options]
    ended, _, err = outcome(main, argv, capsys, monkeypatch)
    assert ended == code
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_leaking_manifest_is_refused_before_anything_is_written(
    dataset: Path, tmp_path: Path
) -> None:
    manifest = Manifest.loads((dataset / MANIFEST_NAME).read_text())
    first, *rest = manifest.shards
    stolen = manifest.shards_of([1])[0].patients[0]
    leaking = dataclasses.replace(
        manifest, shards=(dataclasses.replace(first, patients=(*first.patients, stolen)), *rest)
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / MANIFEST_NAME).write_text(leaking.dumps())
    with pytest.raises(ContractError, match=stolen.patient_id):
        main(_train(tmp_path / "data", tmp_path / "run", "--fold", "0"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fold", [0, 1])
def test_a_shard_damaged_since_is_named(tmp_path: Path, fold: int) -> None:
    """Whether it is trained on or held out."""
    data = tmp_path / "data"
    manifest = write_dataset(data, patients=8, folds=2, shape=(10, 10, 10), shards=2)
    shard = data / manifest.shards[1].name
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(bytes(damaged))
    with pytest.raises(ContractError) as caught:
        main(_train(data, tmp_path / "run", "--fold", str(fold), "--epochs", "1"))
    assert str(shard) in str(caught.value)
    assert f"the manifest says {manifest.shards[1].sha256}" in str(caught.value)


def test_a_manifest_of_random_bytes_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(bytes(range(128, 256)))
    with pytest.raises(ContractError, match=rf"{tmp_path / MANIFEST_NAME}: not UTF-8 text"):
        main(_train(tmp_path, tmp_path / "run", "--fold", "0"))


def test_records_with_other_labels_than_the_manifest_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    manifest = write_dataset(data, patients=8, folds=2, shape=(10, 10, 10))
    first, *rest = manifest.shards
    one, two, *others = first.patients
    swapped = (
        dataclasses.replace(one, label=two.label),
        dataclasses.replace(two, label=one.label),
        *others,
    )
    shards = (dataclasses.replace(first, patients=swapped), *rest)
    (data / MANIFEST_NAME).write_text(dataclasses.replace(manifest, shards=shards).dumps())
    with pytest.raises(ContractError, match=f"{one.patient_id}, {two.patient_id}"):
        main(_train(data, tmp_path / "run", "--fold", "0", "--epochs", "1"))


def test_a_diverging_run_names_the_patients_it_met_that_in(dataset: Path, tmp_path: Path) -> None:
    options = ("--fold", "0", "--epochs", "2", "--learning_rate", "1e38")
    with pytest.raises(CommandError, match="lower --learning_rate") as caught:
        main(_train(dataset, tmp_path / "run", *options))
    manifest = Manifest.loads((dataset / MANIFEST_NAME).read_text())
    trained_on = {name for name, _, fold in manifest.patients if fold == 1}
    named = re.search(r"patients ([^;]*);", str(caught.value))
    assert named is not None
    assert set(named[1].split(", ")) < trained_on
    with pytest.raises(ContractError, match="did not finish"):
        Run.load(tmp_path / "run")


def test_too_small_a_grid_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", patients=8, folds=2, shape=(12, 12, 8))
    with pytest.raises(UsageError, match="at least 10 voxels"):
        main(_train(tmp_path / "data", tmp_path / "run", "--fold", "0"))
