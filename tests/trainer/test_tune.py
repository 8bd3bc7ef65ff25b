"""Searches: what they find, how they are taken up again, and how several processes share one.

Most trials here are `fake_trial.py`'s: processes as the real ones, whose objective is known.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.core.cli import CommandError, UsageError
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from beam_jobs.core.record import ContractError
from tests.datasets import write_dataset
from trainer import tune
from trainer.config import TrainConfig
from trainer.runs import Run, locked, read_json
from trainer.tune import main, role_of

FAKE = (sys.executable, str(Path(__file__).with_name("fake_trial.py")))
SPACE = {
    "network": "seed_cnn",
    "width": [0.5, 1.0],
    "pooling": ["avg", "max"],
    "dropout": [0.0, 0.2],
    "fusion": "early",
    "learning_rate": [3e-5, 1e-4, 1e-3],
    "schedule": "constant",
    "batch_size": [4, 8],
    "augment": "none",
}  # 48 combinations
BEST = {"learning_rate": 1e-3, "width": 1.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(directory, patients=24, folds=3, unlabelled=2, modalities=("T1wCE",))
    return directory


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file: Path = tmp_path / "starts.txt"
    file.touch()
    monkeypatch.setenv("FAKE_STARTS", str(file))
    return file


def _argv(data: Path, study: Path, *more: str, **space: Any) -> list[str]:
    file = study.parent / f"{study.name}-space.json"
    file.write_text(json.dumps({**SPACE, **space}))
    return [
        *("--data", str(data), "--output_dir", str(study), "--space", str(file)),
        *("--epochs", "9", *more),
    ]


def _rows(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def _started(starts: Path) -> list[str]:
    return [line.split()[0] for line in starts.read_text().splitlines()]


@pytest.mark.parametrize("tuner", ["hyperband", "bayesian", "random", "grid"])
def test_a_search_ends_with_every_trial_once_and_the_best_one_told(
    dataset: Path, tmp_path: Path, starts: Path, capsys: pytest.CaptureFixture[str], tuner: str
) -> None:
    argv = _argv(dataset, tmp_path / "study", "--tuner", tuner, "--max_trials", "12")
    assert main(argv, command=FAKE) == 0
    rows = _rows(tmp_path / "study")
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert sorted(_started(starts)) == sorted(row["trial"] for row in rows)
    best = max(rows, key=lambda row: float(row["objective"]))
    settings = read_json(tmp_path / "study" / "best_hyperparameters.json")
    config = TrainConfig.from_json(settings)
    assert config.optimizer.learning_rate == float(best["learning_rate"])
    assert config.network.width == float(best["width"])
    out = capsys.readouterr().out
    assert "at most 12 trials of 48 combinations" in out
    assert "AUC is the best of 12 trials, chosen on the same folds that measured it" in out
    settled = [tuple(row[n] for n in (*SPACE, "epochs")) for row in rows]
    assert len(set(settled)) == 12  # nothing was tried twice
    if tuner == "bayesian":  # guided, it meets the best rate and width more often than by chance
        guided = [row for row in rows[4:] if float(row["learning_rate"]) == 1e-3]
        assert len(guided) >= 4


def test_a_grid_tries_each_combination_once_and_ends(
    dataset: Path, tmp_path: Path, starts: Path
) -> None:
    argv = _argv(dataset, tmp_path / "study", "--tuner", "grid", width=1.0, learning_rate=1e-3)
    assert main([*argv, "--max_trials", "100"], command=FAKE) == 0
    rows = _rows(tmp_path / "study")
    assert len(rows) == len({(r["pooling"], r["dropout"], r["batch_size"]) for r in rows}) == 8


def test_hyperband_goes_on_with_the_best_of_a_round_and_says_why_not_with_others(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DIVERGES", "3e-05")  # failed trials leave the round to the others
    argv = _argv(dataset, tmp_path / "study", "--tuner", "hyperband", "--max_trials", "13")
    assert main(argv, command=FAKE) == 0
    rows = _rows(tmp_path / "study")[:13]
    first = [row for row in rows if row["epochs"] == "1" or row["learning_rate"] == "3e-05"][:9]
    second = [row for row in rows if row["epochs"] == "3"][:3]
    last = [row for row in rows if row["epochs"] == "9"]
    scored = sorted((float(r["objective"]) for r in first if r["objective"]), reverse=True)
    assert sorted((float(r["objective"]) for r in second), reverse=True) == scored[:3]
    assert last[0]["status"] == "completed"
    assert float(last[0]["objective"]) == scored[0]
    pruned = [row for row in first if row["status"] == "pruned"]
    assert len(pruned) == len(scored) - 3
    for row in pruned:
        assert row["reason"].startswith("pruned after 1 epoch: rank ")
        assert row["reason"].endswith(" of 9 in its round, 3 went on")
    failed = [row for row in rows if row["learning_rate"] == "3e-05"]
    assert failed
    assert {(row["status"], row["reason"]) for row in failed} == {
        ("failed", "fold-0, epoch 1: the loss is nan")
    }


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


@pytest.mark.parametrize(
    ("tuner", "moment"),
    [
        ("hyperband", "before its process"),
        ("hyperband", "after its result"),
        ("bayesian", "before the table"),
        ("grid", "after its result"),
    ],
)
def test_a_search_stopped_anywhere_goes_on_without_a_finished_trial_lost_or_run_again(
    dataset: Path,
    tmp_path: Path,
    starts: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuner: str,
    moment: str,
) -> None:
    argv = _argv(dataset, tmp_path / "study", "--tuner", tuner, "--max_trials", "9")
    real, real_write = tune.run_trial, tune.Study.write
    ended: list[str] = []

    def dying(directory: Path, *rest: Any) -> Any:
        if len(ended) == 4 and moment == "before its process":
            raise Killed
        result = real(directory, *rest)
        ended.append(directory.name)
        if len(ended) == 5 and moment == "after its result":
            raise Killed
        return result

    def write(self: tune.Study, *rest: Any, **options: Any) -> Any:
        if len(ended) == 5 and moment == "before the table":
            raise Killed
        return real_write(self, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "run_trial", dying)
        patch.setattr(tune.Study, "write", write)
        with pytest.raises(Killed):
            main(argv, command=FAKE)
    before = {row["trial"]: row["objective"] for row in _rows(tmp_path / "study")}
    assert len(before) == 4
    assert main(argv, command=FAKE) == 0
    rows = _rows(tmp_path / "study")
    assert [int(row["trial"]) for row in rows] == list(range(9))
    assert before.items() <= {row["trial"]: row["objective"] for row in rows}.items()
    assert sorted(_started(starts)) == [row["trial"] for row in rows]


def test_a_finished_study_is_told_again_and_more_trials_may_be_asked_for(
    dataset: Path, tmp_path: Path, starts: Path
) -> None:
    argv = _argv(dataset, tmp_path / "study", "--tuner", "random")
    for asked, there in (("3", 3), ("3", 3), ("12", 12)):
        assert main([*argv, "--max_trials", asked], command=FAKE) == 0
        assert len(_rows(tmp_path / "study")) == len(_started(starts)) == there


def test_a_study_of_other_settings_is_refused_with_both_sides_named(
    dataset: Path, tmp_path: Path
) -> None:
    argv = _argv(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", "1")
    assert main(argv, command=FAKE) == 0
    with pytest.raises(ContractError, match="seeds: 1 there, 2 asked"):
        main([*argv, "--seeds", "2"], command=FAKE)
    with pytest.raises(
        ContractError, match=r"space\.dropout: \[0\.0, 0\.2\] there, \[0\.0\] asked"
    ):
        main(_argv(dataset, tmp_path / "study", "--tuner", "random", dropout=0), command=FAKE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(UsageError, match="not empty and not a study"):
        main(_argv(dataset, tmp_path / "other"), command=FAKE)


def test_two_searches_do_not_work_on_one_study(dataset: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "study"),
        pytest.raises(ContractError, match="another search works on this study"),
    ):
        main(_argv(dataset, tmp_path / "study"), command=FAKE)


def test_a_study_none_of_whose_trials_succeeds_says_so(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FITS", "0")
    argv = _argv(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", "4")
    with pytest.raises(CommandError, match="none of 4 trials succeeded"):
        main(argv, command=FAKE)
    assert {row["status"] for row in _rows(tmp_path / "study")} == {"failed"}
    assert not (tmp_path / "study" / "best_hyperparameters.json").exists()
    assert (tmp_path / "study" / "report.html").is_file()


def test_a_trials_folds_are_the_manifests_own(dataset: Path, tmp_path: Path) -> None:
    """And no patient of a held-out fold is among those its network learns from."""
    argv = _argv(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", "2")
    assert main([*argv, "--folds", "2"], command=FAKE) == 0
    manifest = Manifest.loads((dataset / MANIFEST_NAME).read_text())
    for name in ("0", "1"):
        request = read_json(tmp_path / "study" / "trials" / name / "request.json")
        assert request["folds"] == [0, 1]
        assert request["dataset_fingerprint"] == manifest.dataset_fingerprint
        assert request["config"]["fold"] is None
    with pytest.raises(UsageError, match="--folds 4: the dataset has 3"):
        main([*argv, "--folds", "4"], command=FAKE)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_stands_alone_and_says_what_the_best_is_not(
    dataset: Path, tmp_path: Path
) -> None:
    for trials, importance in (("5", "Too few trials to tell: 5"), ("22", "forest predicts")):
        argv = _argv(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", trials)
        assert main(argv, command=FAKE) == 0
        page = _Page((tmp_path / "study" / "report.html").read_text())
        assert f"the best of {trials} trials, chosen on the same folds" in page.text
        assert importance in page.text
        assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe")]
        for _, attributes in page.tags:
            for name in ("src", "href"):
                address = attributes.get(name) or "#"
                assert address.startswith(("#", "data:")), address
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids))


def test_importance_finds_what_the_objective_was_made_of() -> None:
    from trainer.search_space import space_of
    from trainer.study import Row
    from trainer.study_report import importance_of

    space = space_of(["T1w"], {**SPACE, "learning_rate": [3e-5, 1e-4, 3e-4, 1e-3]})
    rng = np.random.default_rng(2)
    all_values = list(space.combinations())

    def rows(noise: float, weight: float) -> list[Row]:
        return [
            Row(
                trial=str(place),
                status="completed",
                reason="",
                objective=weight * (values["learning_rate"] > 2e-4) + noise * rng.normal(),
                interval=(0.0, 1.0),
                values=values,
                config={"epochs": 3},
                result={},
            )
            for place, values in enumerate(all_values[i] for i in rng.permutation(60))
        ]

    found = importance_of(space, rows(0.01, 0.2))
    (name, share, _), (_, second, _) = found.worth[:2]
    assert name == "learning_rate"
    assert share > 10 * abs(second)
    nothing = importance_of(space, rows(0.1, 0.0))
    assert not nothing.worth
    assert "hardly better than the mean" in nothing.told


def test_a_processs_place_comes_from_kerastuners_variables_or_the_clusters() -> None:
    own = {"KERASTUNER_ORACLE_IP": "10.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}
    assert role_of({}) == ("tuner0", "")
    assert role_of({**own, "KERASTUNER_TUNER_ID": "w1"}) == ("w1", "10.0.0.1:8000")
    with pytest.raises(UsageError, match="KERASTUNER_TUNER_ID: missing"):
        role_of(own)
    cluster = {"cluster": {"chief": ["a:1"], "worker": ["b:2", "c:3"]}}
    for task, name in ((("chief", 0), "chief"), (("worker", 1), "tuner2")):
        text = json.dumps({**cluster, "task": {"type": task[0], "index": task[1]}})
        assert role_of({"TF_CONFIG": text}) == (name, "a:1")
        assert role_of({"CLUSTER_SPEC": text}) == (name, "a:1")


def test_help_and_refusals_come_before_tensorflow(dataset: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from trainer import tune\n"
        "try: tune.main(sys.argv[1:])\n"
        "except ValueError as error: print(error)\n"
        "print(sorted({'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *_argv(dataset, tmp_path / "study", pooling="min")],
        capture_output=True,
        text=True,
    )
    assert "pooling: unknown 'min'; known: avg, max, attention" in done.stdout
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


# A search in a process of its own, with the fake trial.
_SEARCH = (
    "import sys; from trainer import tune; from beam_jobs.core.cli import run; "
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
    argv = _argv(dataset, study, "--tuner", tuner, "--max_trials", "20")
    finished: dict[str, str] = {}
    for _ in range(4):
        begun = len(_started(starts))
        process = _search(argv, log)
        _until(lambda begun=begun: len(_started(starts)) > begun, process)
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
    rows = _rows(study)
    assert [int(row["trial"]) for row in rows] == list(range(20))
    often = [name for name in {*_started(starts)} if _started(starts).count(name) > 1]
    assert len(_started(starts)) <= 20 + 4  # at most the one that was running, each time
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
    monkeypatch.setenv("FAKE_SECONDS", "0.6")
    study, port = tmp_path / "study", _free_port()
    argv = _argv(dataset, study, "--tuner", tuner, "--max_trials", "12", "--worker_timeout", "5")
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
        _until(lambda: len(_started(starts)) >= 4, *processes.values())
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
    rows = _rows(study)
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert {row["status"] for row in rows} <= {"completed", "pruned"}
    lines = [line.split() for line in starts.read_text().splitlines()]
    again = [name for name in {n for n, _, _ in lines} if [n for n, _, _ in lines].count(name) > 1]
    assert len(again) == 1  # the killed worker's, and no other
    killed = [name for name, _, process in lines if int(process) in children]
    assert killed == again
    assert f"worker two is lost: trial {again[0]} will be run again" in logs["chief"].read_text()


def _children(process: int) -> set[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return {int(name) for name in found.split()}


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["hyperband", "bayesian"])
def test_the_best_settings_trained_again_reach_the_studys_area_within_its_interval(
    tmp_path: Path, tuner: str
) -> None:
    """Real trials. On a CPU the same settings give the same network, so the areas are equal."""
    from trainer.task import main as train

    data, study, run = tmp_path / "data", tmp_path / "study", tmp_path / "run"
    manifest = write_dataset(
        data, patients=32, folds=2, shape=(16, 16, 12), modalities=("T1wCE",), signal=0.6
    )
    argv = _argv(
        *(data, study, "--tuner", tuner, "--max_trials", "8"),
        **{"width": [0.125, 0.25], "learning_rate": [1e-4, 1e-3], "batch_size": 8},
    )
    argv[argv.index("--epochs") + 1] = "4"
    assert main(argv) == 0
    rows = _rows(study)
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
    again = np.mean([fold["auc"] for fold in Run.load(run).metrics["folds"]])
    assert float(best["interval_low"]) <= again <= float(best["interval_high"])
    assert again == pytest.approx(float(best["objective"]), abs=1e-9)
    fold_of = {name: str(fold) for name, _, fold in manifest.patients}
    predictions = list(study.glob("trials/*/batch-8/oof_predictions.csv"))
    assert len(predictions) == 8
    for predicted in predictions:
        with predicted.open(newline="") as stream:
            held = {row["patient_id"]: row["fold"] for row in csv.DictReader(stream)}
        assert held == fold_of  # every patient once, by the network that held out its fold
    kept = {file.parts[-4] for file in study.glob("trials/*/*/*/best.keras")}
    assert kept <= {row["trial"] for row in rows if row["objective"] == best["objective"]}
    assert list((study / "logs").glob("*/events.*"))
