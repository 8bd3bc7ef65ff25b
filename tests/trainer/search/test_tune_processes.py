"""Searches killed, shared among processes, and trained again for real."""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from beam_jobs.common.files import interface as files
from beam_jobs.core.cohort.ids import normalised_id
from tests.beam_jobs.common.conftest import emulator, root, store  # noqa: F401
from tests.datasets import write_dataset
from tests.trainer.search.searches import FAKE, argv_of, dataset, rows_of, starts, trials_started  # noqa: F401
from trainer.training.run_files import Run
from trainer.tune import main

# A search in a process of its own, with the fake trial.
_SEARCH = (
    "import sys; from trainer import tune; from beam_jobs.common.cli import run; "
    f"run(lambda argv: tune.main(argv, command={FAKE!r}), tune.PROG)"
)


def _search(argv: Sequence[str], log: Path, **environ: str) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-c", _SEARCH, *argv],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ},
        )


def _until(holds: Any, *processes: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["hyperband", "bayesian"])
def test_a_search_killed_at_random_moments_loses_and_repeats_no_finished_trial(
    dataset: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    moments = random.Random(tuner)
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    study, log = tmp_path / "study", tmp_path / "log.txt"
    argv = argv_of(dataset, study, "--tuner", tuner, "--max_trials", "20")
    finished: dict[str, str] = {}
    for _ in range(4):
        begun = len(trials_started(starts))
        process = _search(argv, log)
        _until(lambda begun=begun: len(trials_started(starts)) > begun, process)
        time.sleep(moments.uniform(0.0, 1.5))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        results = study.glob("trials/*/result.json")
        now = {p.parent.name: p.read_text() for p in results}
        assert finished.items() <= now.items()
        finished = now
    process = _search(argv, log)
    assert process.wait() == 0, log.read_text()
    rows = rows_of(study)
    assert [int(row["trial"]) for row in rows] == list(range(20))
    often = [name for name in {*trials_started(starts)} if trials_started(starts).count(name) > 1]
    assert len(trials_started(starts)) <= 20 + 4  # at most the one that was running, each time
    assert all((study / "trials" / name / "result.json").is_file() for name in often)
    for name, text in finished.items():
        assert (study / "trials" / name / "result.json").read_text() == text


def _free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["hyperband", "random"])
def test_workers_share_a_study_and_a_killed_one_loses_only_its_trial(
    dataset: Path, tmp_path: Path, starts: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "1.5")
    study, port = tmp_path / "study", _free_port()
    argv = argv_of(dataset, study, "--tuner", tuner, "--max_trials", "12", "--worker_timeout", "5")
    where = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    logs = {name: tmp_path / f"{name}.txt" for name in ("chief", "one", "two")}
    processes = {
        name: _search(
            argv,
            log,
            KERASTUNER_TUNER_ID=name,
            **where,
        )
        for name, log in logs.items()
    }
    try:
        _until(lambda: len(trials_started(starts)) >= 4, *processes.values())
        lost = processes["two"]

        def training() -> set[int]:  # the trial of the worker to be lost, once it has begun
            begun = {int(line.split()[2]) for line in starts.read_text().splitlines()}
            return begun & _children(lost.pid)

        _until(training, *processes.values())
        children = training()
        lost.send_signal(signal.SIGKILL)
        lost.wait()
        assert children
        assert processes["one"].wait(120) == 0, logs["one"].read_text()
        assert processes["chief"].wait(60) == 0, logs["chief"].read_text()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    rows = rows_of(study)
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert {row["status"] for row in rows} <= {"completed", "pruned"}
    lines = [line.split() for line in starts.read_text().splitlines()]
    again = [name for name in {n for n, _, _ in lines} if [n for n, _, _ in lines].count(name) > 1]
    assert len(again) == 1  # the killed worker's, and no other
    killed = [name for name, _, process in lines if int(process) in children]
    assert killed == again
    assert f"two is lost: trial {again[0]} will be run again" in logs["chief"].read_text()


@pytest.mark.slow
@pytest.mark.emulator
def test_workers_share_a_study_that_lies_in_a_store(
    dataset: Path, tmp_path: Path, root: str, starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process sees another's disk: each trial arrives in the store from where it was made."""
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    port = _free_port()
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "hyperband", "--max_trials", "9")
    argv[argv.index("--output_dir") + 1] = f"{root}/study"
    where = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    processes = {}
    for name in ("chief", "one", "two"):
        (tmp_path / name).mkdir()
        processes[name] = _search(
            argv,
            tmp_path / f"{name}.txt",
            KERASTUNER_TUNER_ID=name,
            TMPDIR=str(tmp_path / name),
            **where,
        )
    try:
        for name, process in processes.items():
            assert process.wait(200) == 0, (tmp_path / f"{name}.txt").read_text()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    table = csv.DictReader(io.StringIO(files.read_text(f"{root}/study/trials.csv")))
    assert [int(row["trial"]) for row in table] == list(range(9))
    assert sorted(trials_started(starts)) == [str(number) for number in range(9)]
    names = set(files.names(f"{root}/study"))
    assert {"study.json", "oracle.json", "best_hyperparameters.json", "report.html"} <= names
    assert not any(list((tmp_path / name).iterdir()) for name in processes)


def _children(process: int) -> set[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return {int(name) for name in found.split()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tuner", ["hyperband", "bayesian"])
def test_the_best_settings_trained_again_give_the_studys_area_and_no_claim(
    tmp_path: Path, tuner: str
) -> None:
    """Real trials. On a CPU the same settings give the same network, so the areas are equal."""
    from trainer.task import main as train

    data, study, run = tmp_path / "data", tmp_path / "study", tmp_path / "run"
    manifest = write_dataset(
        data, patients=32, folds=2, shape=(16, 16, 12), modalities=("T1wCE",), signal=0.6
    )
    argv = argv_of(
        *(data, study, "--tuner", tuner, "--max_trials", "8"),
        width=[0.125, 0.25],
        learning_rate=[1e-4, 1e-3],
        batch_size=8,
    )
    argv[argv.index("--epochs") + 1] = "4"
    assert main(argv) == 0
    rows = rows_of(study)
    assert len(rows) == 8
    assert all(row["objective"] for row in rows)
    best = max(rows, key=lambda row: float(row["objective"]))
    file = study / "best_hyperparameters.json"
    assert (
        train(
            [
                *("--data", str(data), "--output_dir", str(run), "--cross_validate"),
                *("--hyperparameters", str(file)),
            ]
        )
        == 0
    )
    finished = Run.load(run)
    assert finished.metrics["auc"] == pytest.approx(float(best["objective"]), abs=1e-9)
    assert finished.no_claim == ("searched",)
    assert not finished.metrics["better_than_chance"]
    fold_of = {name: str(fold) for name, _, fold in manifest.patients}
    predictions = list(study.glob("trials/*/batch-8/oof_predictions.csv"))
    assert len(predictions) == 8
    for predicted in predictions:
        with predicted.open(newline="") as stream:
            held = {row["patient_id"]: row["fold"] for row in csv.DictReader(stream)}
        assert held == fold_of  # every patient once, by the network that held out its fold
    kept = {file.parts[-4] for file in study.glob("trials/*/*/*/network.keras")}
    assert kept <= {row["trial"] for row in rows if row["objective"] == best["objective"]}
    assert list((study / "logs").glob("*/events.*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_real_trial_of_a_killed_study_reads_a_patient_of_its_outer_fold(tmp_path: Path) -> None:
    """By the ids that the batches held; the outer fold is scored once, after the last trial."""
    data, study, seen = tmp_path / "data", tmp_path / "study", tmp_path / "seen.jsonl"
    manifest = write_dataset(data, patients=36, folds=3, modalities=("T1wCE",))
    outer = {name for name, _, fold in manifest.patients if fold == 1}
    options = ("--tuner", "random", "--max_trials", "3", "--outer_fold", "1")
    fixed: dict[str, Any] = {"width": 0.125, "batch_size": 8}
    argv = argv_of(data, study, *options, **fixed)
    argv[argv.index("--epochs") + 1] = "2"
    watched = [sys.executable, "-m", "tests.trainer.search.watched"]
    code = (
        "import sys; from trainer import tune; tune.main(sys.argv[1:], "
        f"command={[*watched, 'trainer.search.trial_process']}, train={[*watched, 'trainer.task']})"
    )
    command = [sys.executable, "-c", code, *argv]
    environ = {**os.environ, "WATCHED": str(seen)}
    for moment in ("trials/0/result.json", "outer/config.json"):
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
        _until(lambda moment=moment: (study / moment).exists(), process, seconds=600)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, env=environ, stdout=subprocess.DEVNULL).returncode == 0
    lines = [json.loads(line) for line in seen.read_text().splitlines()]
    last = [line for line in lines if line["argv"][0].endswith("task.py")]
    trials = [line for line in lines if line not in last]
    assert not outer & {name for line in trials for name in line["ids"]}
    for part in ("opened", "trained", "scored"):  # the notes are not just empty
        assert {n for line in trials if line["part"] == part for n in line["ids"]} == {
            name for name, _, fold in manifest.patients if fold in (0, 2)
        }
    assert {n for line in last if line["part"] == "scored" for n in line["ids"]} == outer
    assert not outer & {n for line in last if line["part"] == "trained" for n in line["ids"]}
    assert lines.index(last[0]) > lines.index(trials[-1])
    finished = Run.load(study / "outer")
    assert (finished.metrics["n"], finished.no_claim) == (12, ())
    trial = Run.load(next(study.glob("trials/*/batch-8")))
    assert trial.no_claim == ("searched",)
    inner = {normalised_id(name) for name, _, fold in manifest.patients if fold in (0, 2)}
    assert set(trial.searched_ids) == set(finished.searched_ids) == inner
