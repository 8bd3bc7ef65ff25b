"""Retrainings on permuted labels: each once, whatever is killed, and as the run itself."""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.core.manifest import read_manifest
from tests.beam_jobs.common.conftest import root, store  # noqa: F401
from tests.datasets import write_dataset
from tests.stores import Emulator, s3
from tests.trainer.search import toy_recipe
from tests.trainer.search.searches import seen  # noqa: F401
from tests.trainer.search.toy_recipe import TOY
from trainer import task
from trainer.config import stack
from trainer.config.run import TrainConfig
from trainer.search.child_process import TRAIN
from trainer.search.permutations import check_permutations, retrain
from trainer.training.run_files import Run

CONFIG = TrainConfig(repeats=2, seed=5, epochs=1, modalities=("T1wCE",))
# The same in a process of its own, which can be killed.
_PARENT = """
import sys
from pathlib import Path
from tests.trainer.search import test_permutations as own
own.again(Path(sys.argv[1]), Path(sys.argv[2]), count=int(sys.argv[3]), processes=2)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=48, folds=3, shape=(10, 10, 10), modalities=("T1wCE",))
    return directory


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with s3() as running:
        yield running


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    """A finished run."""
    toy_recipe.train(tmp_path / "run", CONFIG, read_manifest(dataset), range(3))
    return tmp_path / "run"


def again(data: Path, run: Path, *, count: int, processes: int = 1, **options: Any) -> None:
    options = {"command": TOY, "resumable": True, **options}
    retrain(
        *(run, CONFIG),
        data=str(data),
        count=count,
        processes=processes,
        cache="none",
        push=lambda: None,
        **options,
    )


def _rows(run: Path) -> list[dict[str, str]]:
    with (run / "permutations.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def _begun(seen: Path) -> list[int]:
    return [int(Path(json.loads(line)["place"]).name) for line in seen.read_text().splitlines()]


def test_each_is_the_run_itself_on_other_labels_and_leaves_a_row(
    dataset: Path, run: Path, tmp_path: Path, seen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again(dataset, run, count=3, processes=2)
    rows = _rows(run)
    assert [(row["permutation"], row["seed"]) for row in rows] == [
        ("1", "7"),
        ("2", "9"),
        ("3", "11"),
    ]
    manifest = read_manifest(dataset)
    for row in rows:
        config = {**CONFIG.to_json(), "seed": int(row["seed"]), "permute_labels": True}
        place = tmp_path / "by hand" / row["permutation"]
        toy_recipe.train(place, TrainConfig.from_json(config), manifest, range(3))
        assert float(row["auc"]) == Run.load(place).metrics["auc"]
    assert sorted(path.name for path in (run / "permutations").iterdir()) == [
        "0001.json",
        "0002.json",
        "0003.json",
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("permut")]
    own = Run.load(run).metrics["auc"]
    assert len(lines) == 3
    assert all(f"reach the run's {own:.3f}" in line for line in lines)
    assert "left" in lines[0]
    assert "left" not in lines[-1]


def test_more_may_be_requested_and_none_is_repeated(dataset: Path, run: Path, seen: Path) -> None:
    for count, there in ((1, 1), (2, 2), (1, 2)):
        again(dataset, run, count=count)
        assert len(_rows(run)) == there
    assert _begun(seen) == [1, 2]


def test_retrainings_are_of_the_tensorflow_that_trained_the_run(
    dataset: Path, run: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataclasses.replace(Run.load(run), versions={"tensorflow": "2.17.1"}).save()
    monkeypatch.setattr(stack, "tensorflow_version", lambda: "2.17.0")
    again(dataset, run, count=2)
    monkeypatch.setattr(stack, "tensorflow_version", lambda: "2.21.0")
    again(dataset, run, count=2)  # nothing is left to train
    said = "^the run was begun with TensorFlow 2.17, this is 2.21: .*--overwrite$"
    with pytest.raises(ContractError, match=said):
        again(dataset, run, count=3)
    assert _begun(seen) == [1, 2]


@pytest.mark.slow
def test_one_that_fails_is_named_with_its_reason_and_the_finished_ones_stay(
    dataset: Path, run: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAILS", "0002")
    with pytest.raises(
        CommandError, match=r"permutation 2 ended with exit code 1: .*the toy broke"
    ):
        again(dataset, run, count=3)
    assert [row["permutation"] for row in _rows(run)] == ["1"]
    monkeypatch.delenv("TOY_FAILS")
    again(dataset, run, count=3)
    assert _begun(seen) == [1, 2, 2, 3]


def test_one_that_was_killed_before_its_directory_went_is_not_run_again(
    dataset: Path, run: Path, seen: Path
) -> None:
    again(dataset, run, count=1)
    (run / "permutations" / "0001").mkdir()
    (run / "permutations.csv").unlink()
    again(dataset, run, count=1)
    assert _begun(seen) == [1]
    assert len(_rows(run)) == 1
    assert not (run / "permutations" / "0001").exists()


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(name) for name in found.split()]


@pytest.mark.slow
def test_killed_anywhere_nothing_finished_is_repeated_and_children_end_with_their_parent(
    dataset: Path, run: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECONDS", "1")
    command = [sys.executable, "-c", _PARENT, str(dataset), str(run), "6"]
    finished: set[str] = set()
    for _ in range(2):
        begun = len(_begun(seen))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(_begun(seen)) < begun + 3:  # two at a time: the third began after a first end
            assert process.poll() is None
            time.sleep(0.02)
        children = _children(process.pid)
        assert children
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 10
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < end, "a child lives on"
            time.sleep(0.02)
        now = {path.name for path in (run / "permutations").glob("*.json")}
        assert finished <= now
        finished = now
    before = len(_begun(seen))
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert [row["permutation"] for row in _rows(run)] == list("123456")
    later = {f"{number:04}.json" for number in _begun(seen)[before:]}
    assert not later & finished


@pytest.mark.slow
def test_one_that_another_process_still_trains_is_refused(dataset: Path, run: Path) -> None:
    """Should a child outlive its parent: the claim of its directory keeps a second one out."""
    place = run / "permutations" / "0001"
    with (
        files.lock(place / ".lock", ""),
        pytest.raises(CommandError, match=r"permutation 1 ended .*another process trains this run"),
    ):
        again(dataset, run, count=1, command=TRAIN)
    assert _rows(run) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"permutation": 40}', "seed is missing"),
        ('{"permutation": "40", "seed": 1, "auc": 0.5}', "permutation: '40' found"),
    ],
)
def test_a_result_that_is_none_is_named(dataset: Path, run: Path, text: str, said: str) -> None:
    (run / "permutations").mkdir()
    (run / "permutations" / "0040.json").write_text(text)
    with pytest.raises(ContractError, match=rf"0040\.json: {said}"):
        again(dataset, run, count=1)


def test_what_retrainings_cannot_repeat_is_refused_at_once() -> None:
    options: dict[str, Any] = {"cluster": False, "searched": False}
    check_permutations(CONFIG, 39, 4, **options)
    permuted = TrainConfig(permute_labels=True)
    for config, count, processes, more, said in (
        (CONFIG, -1, 1, {}, "--permutations must be at least 1: -1"),
        (CONFIG, 1, 0, {}, "--processes must be at least 1: 0"),
        (CONFIG, 0, 0, {}, "--processes must be at least 1: 0"),
        (permuted, 1, 1, {}, "not with --permute_labels"),
        (TrainConfig(seed=2**31 - 5), 5, 1, {}, "the seeds run out"),
        (CONFIG, 1, 1, {"cluster": True}, "not on a cluster"),
        (CONFIG, 1, 1, {"searched": True}, "would not search anew"),
    ):
        with pytest.raises(UsageError, match=said):
            check_permutations(config, count, processes, **{**options, **more})


def test_a_cluster_is_refused_by_the_command_in_one_line(dataset: Path, tmp_path: Path) -> None:
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    arguments = ("--data", str(dataset), "--output_dir", str(tmp_path / "r"), "--cross_validate")
    done = subprocess.run(
        [sys.executable, "-m", "trainer.task", *arguments, "--permutations", "2"],
        env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "not on a cluster" in done.stderr


@pytest.mark.slow
def test_whole_retrainings_by_the_trainer_itself(dataset: Path, tmp_path: Path) -> None:
    """And the run's report is written anew with them."""
    directory = tmp_path / "run"
    settings = ("--epochs", "2", "--width", "0.25", "--batch_size", "16", "--seed", "3")
    arguments = ("--data", str(dataset), "--output_dir", str(directory), "--cross_validate")
    command = [sys.executable, "-m", "trainer.task", *arguments, *settings]
    done = subprocess.run(
        [*command, "--permutations", "2", "--processes", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = _rows(directory)
    assert [row["seed"] for row in rows] == ["4", "5"]
    assert "Of 2 whole retrainings on permuted labels" in done.stdout
    by_hand = tmp_path / "by hand"
    hand = [str(by_hand) if part == str(directory) else part for part in command]
    hand[hand.index("--seed") + 1] = "4"
    assert subprocess.run([*hand, "--permute_labels"], capture_output=True).returncode == 0
    assert float(rows[0]["auc"]) == Run.load(by_hand).metrics["auc"]
    metrics = json.loads((directory / "metrics.json").read_text())
    as_high = sum(float(row["auc"]) >= metrics["auc"] for row in rows)
    assert metrics["permutations"]["count"] == 2
    assert metrics["permutations"]["p_value"] == pytest.approx((1 + as_high) / 3)
    kept = Run.load(directory).metrics["permutations"]
    assert kept == {name: metrics["permutations"][name] for name in kept}


@pytest.mark.slow
@pytest.mark.emulator
def test_a_run_in_a_store_gets_its_rows_there_and_nothing_else(
    dataset: Path, root: str, seen: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = f"{root}/run"
    settings = ("--fold", "0", "--epochs", "1", "--width", "0.25", "--batch_size", "16")
    argv = ["--data", str(dataset), "--output_dir", place, *settings, "--permutations"]
    assert task.main([*argv, "1"]) == 0
    names = {path.path.removeprefix(f"{place}/permutations/") for path in files.entries(place)}
    assert "0001.json" in names
    assert not [name for name in names if name.startswith("0001/")]
    first = files.read_text(f"{place}/permutations.csv").splitlines()
    assert len(first) == 2
    assert task.main([*argv, "2"]) == 0
    assert files.read_text(f"{place}/permutations.csv").splitlines()[:2] == first
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("permutation ")]
    assert [line.split("  ")[0] for line in said] == ["permutation 1 of 1", "permutation 2 of 2"]
