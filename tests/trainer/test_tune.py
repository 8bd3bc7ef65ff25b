"""Searches: what they find, how they are resumed, and how several processes share one.

Most trials here are `fake_trial.py`'s: processes as the real ones, whose objective is known.
"""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import read_json
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest
from tests.trainer.search.searches import (  # noqa: F401
    FAKE,
    SPACE,
    argv_of,
    dataset,
    rows_of,
    starts,
    trials_started,
)
from trainer.config.provenance import split_provenance
from trainer.config.run import TrainConfig
from trainer.search import attempts, run_search
from trainer.search.roles import Role
from trainer.search.study import Study
from trainer.tune import main


@pytest.mark.parametrize("tuner", ["hyperband", "bayesian", "random", "grid"])
def test_a_search_ends_with_every_trial_once_and_the_best_one_reported(
    dataset: Path,
    tmp_path: Path,
    starts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tuner: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    argv = argv_of(dataset, tmp_path / "study", "--tuner", tuner, "--max_trials", "12")
    assert main(argv, command=FAKE) == 0
    rows = rows_of(tmp_path / "study")
    assert [int(row["trial"]) for row in rows] == list(range(12))
    assert sorted(trials_started(starts)) == sorted(row["trial"] for row in rows)
    best = max(rows, key=lambda row: float(row["objective"]))
    settings = read_json(tmp_path / "study" / "best_hyperparameters.json")
    rest, patients = split_provenance(settings)
    config = TrainConfig.from_json(rest)
    assert config.optimizer.learning_rate == float(best["learning_rate"])
    assert config.network.width == float(best["width"])
    seen = {str(number) for number in range(24)}
    assert patients == seen  # and nobody without a label
    assert set(settings["provenance"]["patients"]) == {f"{n:05}" for n in range(24)}
    assert settings["provenance"]["trials"] == 12
    assert settings["provenance"]["folds"] == [0, 1, 2]
    assert {row["no_claim"] for row in rows} == {"searched"}
    assert not [name for name in rows[0] if "interval" in name]  # chosen among: none would hold
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
    out = " ".join(out.split())
    assert "at most 12 trials of 48 combinations" in out
    assert not re.search(r"alone, 95 %|0\.\d\d to 0\.\d\d", out)
    assert "AUC is the best of 12, chosen on the same folds that measured it" in out
    settled = [tuple(row[n] for n in (*SPACE, "epochs")) for row in rows]
    assert len(set(settled)) == 12  # nothing was tried twice
    if tuner == "bayesian":  # guided, it meets the best rate and width more often than by chance
        guided = [row for row in rows[4:] if float(row["learning_rate"]) == 1e-3]
        assert len(guided) >= 4


def test_a_grid_tries_each_combination_once_and_ends(
    dataset: Path, tmp_path: Path, starts: Path
) -> None:
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "grid", width=1.0, learning_rate=1e-3)
    assert main([*argv, "--max_trials", "100"], command=FAKE) == 0
    rows = rows_of(tmp_path / "study")
    assert len(rows) == len({(r["pooling"], r["dropout"], r["batch_size"]) for r in rows}) == 8


def test_hyperband_promotes_the_best_of_a_round_and_says_why_not_the_others(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DIVERGES", "3e-05")  # failed trials leave the round to the others
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "hyperband", "--max_trials", "13")
    assert main(argv, command=FAKE) == 0
    rows = rows_of(tmp_path / "study")[:13]
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
        assert row["reason"].endswith(" of 9 in its round, 3 promoted")
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
def test_a_search_stopped_anywhere_resumes_without_a_finished_trial_lost_or_run_again(
    dataset: Path,
    tmp_path: Path,
    starts: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuner: str,
    moment: str,
) -> None:
    argv = argv_of(dataset, tmp_path / "study", "--tuner", tuner, "--max_trials", "9")
    real, real_write = attempts.run_trial, Study.write
    ended: list[str] = []

    def dying(directory: Path, *rest: Any) -> Any:
        if len(ended) == 4 and moment == "before its process":
            raise Killed
        result = real(directory, *rest)
        ended.append(directory.name)
        if len(ended) == 5 and moment == "after its result":
            raise Killed
        return result

    def write(self: Study, *rest: Any, **options: Any) -> Any:
        if len(ended) == 5 and moment == "before the table":
            raise Killed
        return real_write(self, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run_search, "run_trial", dying)
        patch.setattr(Study, "write", write)
        with pytest.raises(Killed):
            main(argv, command=FAKE)
    before = {row["trial"]: row["objective"] for row in rows_of(tmp_path / "study")}
    assert len(before) == 4
    assert main(argv, command=FAKE) == 0
    rows = rows_of(tmp_path / "study")
    assert [int(row["trial"]) for row in rows] == list(range(9))
    assert before.items() <= {row["trial"]: row["objective"] for row in rows}.items()
    assert sorted(trials_started(starts)) == [row["trial"] for row in rows]


def test_a_finished_study_is_reported_again_and_more_trials_may_be_requested(
    dataset: Path, tmp_path: Path, starts: Path
) -> None:
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "random")
    for most, there in (("3", 3), ("3", 3), ("12", 12)):
        assert main([*argv, "--max_trials", most], command=FAKE) == 0
        assert len(rows_of(tmp_path / "study")) == len(trials_started(starts)) == there


def test_a_study_of_other_settings_is_refused_with_both_sides_named(
    dataset: Path, tmp_path: Path
) -> None:
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", "1")
    assert main(argv, command=FAKE) == 0
    with pytest.raises(ContractError, match="seeds: 1 there, 2 requested"):
        main([*argv, "--seeds", "2"], command=FAKE)
    with pytest.raises(
        ContractError, match=r"space\.dropout: \[0\.0, 0\.2\] there, \[0\.0\] requested"
    ):
        main(argv_of(dataset, tmp_path / "study", "--tuner", "random", dropout=0), command=FAKE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").touch()
    with pytest.raises(UsageError, match="not empty and not a study"):
        main(argv_of(dataset, tmp_path / "other"), command=FAKE)


def test_two_searches_do_not_work_on_one_study(dataset: Path, tmp_path: Path) -> None:
    with (
        files.lock(tmp_path / "study/.lock", ""),
        pytest.raises(files.LockedError, match="another search works on this study"),
    ):
        main(argv_of(dataset, tmp_path / "study"), command=FAKE)


def test_a_study_none_of_whose_trials_succeeds_says_so(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FITS", "0")
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", "4")
    with pytest.raises(CommandError, match="none of 4 trials succeeded"):
        main(argv, command=FAKE)
    assert {row["status"] for row in rows_of(tmp_path / "study")} == {"failed"}
    assert not (tmp_path / "study" / "best_hyperparameters.json").exists()
    assert (tmp_path / "study" / "report.html").is_file()


def test_a_trials_folds_are_the_manifests_own(dataset: Path, tmp_path: Path) -> None:
    """And no patient of a held-out fold is among those its network learns from."""
    argv = argv_of(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", "2")
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
        argv = argv_of(dataset, tmp_path / "study", "--tuner", "random", "--max_trials", trials)
        assert main(argv, command=FAKE) == 0
        page = _Page((tmp_path / "study" / "report.html").read_text())
        assert f"the best of {trials}, chosen on the same folds" in page.text
        assert importance in page.text
        assert "95 %" not in page.text
        assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe")]
        for _, attributes in page.tags:
            for name in ("src", "href"):
                address = attributes.get(name) or "#"
                assert address.startswith(("#", "data:")), address
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(ids) == len(set(ids))


def test_importance_finds_what_the_objective_was_made_of() -> None:
    from trainer.config.space_file import space_of
    from trainer.reports.study import importance_of
    from trainer.search.study import FinishedTrial

    space = space_of(["T1w"], {**SPACE, "learning_rate": [3e-5, 1e-4, 3e-4, 1e-3]})
    rng = np.random.default_rng(2)
    all_values = list(space.combinations())

    def rows(noise: float, weight: float) -> list[FinishedTrial]:
        return [
            FinishedTrial(
                trial=str(place),
                status="completed",
                reason="",
                objective=weight * (values["learning_rate"] > 2e-4) + noise * rng.normal(),
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
    assert "hardly better than the mean" in nothing.unknown


def test_a_processs_role_comes_from_kerastuners_variables_or_the_clusters() -> None:
    own = {"KERASTUNER_ORACLE_IP": "10.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}
    assert Role.of({}) == Role(tuner_id="tuner0", address="")
    worker = {**own, "KERASTUNER_TUNER_ID": "w1"}
    assert Role.of(worker) == Role(tuner_id="w1", address="10.0.0.1:8000")
    with pytest.raises(UsageError, match="not UTF-8"):
        Role.of({**worker, "KERASTUNER_ORACLE_IP": "\udcff"})
    assert Role.of(worker).variables() == worker
    with pytest.raises(UsageError, match="KERASTUNER_TUNER_ID: missing"):
        Role.of(own)
    cluster = {"cluster": {"chief": ["a:1"], "worker": ["b:2", "c:3"]}}
    for task, name in ((("chief", 0), "chief"), (("worker", 1), "tuner2")):
        text = json.dumps({**cluster, "task": {"type": task[0], "index": task[1]}})
        assert Role.of({"TF_CONFIG": text}) == Role(tuner_id=name, address="a:1")
        assert Role.of({"CLUSTER_SPEC": text}) == Role(tuner_id=name, address="a:1")


def test_help_and_refusals_come_before_tensorflow(dataset: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from trainer import tune\n"
        "try: tune.main(sys.argv[1:])\n"
        "except ValueError as error: print(error)\n"
        "print(sorted({'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv_of(dataset, tmp_path / "study", pooling="min")],
        capture_output=True,
        text=True,
    )
    assert "pooling: unknown 'min'; known: avg, max, attention" in done.stdout
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
