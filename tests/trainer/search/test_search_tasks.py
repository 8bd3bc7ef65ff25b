"""Searches and retrainings of classes, findings and values: what is maximised, and its files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.csv_table import read_table, write_table
from beam_jobs.core.cohort.target import PLAIN, Target
from tests.datasets import AGE_AND_SITE, TARGETS, make_schema, write_dataset
from tests.trainer.search.searches import FAKE, argv_of, rows_of
from trainer.config.space_file import space_of
from trainer.metrics.predictions import read_predictions
from trainer.metrics.tasks.measure import measure_of
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows
from trainer.search import permutations
from trainer.search.board import parts_of
from trainer.search.objective import OBJECTIVES, measured, objective_of
from trainer.search.outer import pool
from trainer.search.run_search import Search, SearchConfig
from trainer.search.study import FinishedTrial, Study, _pruned, caveat
from trainer.search.trial import Request, read_result
from trainer.tune import main

OTHERS = ("multiclass", "multilabel", "regression")


def _predictions(file: Path, task: str, fold: int | None = None, n: int = 27) -> Path:
    """An oof table of a network that knows something, with a column of covariates behind."""
    target, rng = TARGETS[task], np.random.default_rng(0)
    steps = np.arange(n) % 3
    noisy = steps + rng.normal(size=n)
    truth: Any = {
        "binary": steps > 0,
        "multiclass": steps,
        "multilabel": np.stack([steps > 0, steps > 1], axis=1).astype(float),
        "regression": 10.0 * steps,
    }[task]
    answers: Any = {
        "multiclass": np.stack([-noisy, 0 * noisy, noisy - 2], axis=1),
        "multilabel": np.stack([noisy, noisy], axis=1),
    }.get(task, noisy)
    rows: list[tuple[Any, ...]] = []
    for of in range(3) if fold is None else (fold,):
        own = np.flatnonzero(np.arange(n) // 3 % 3 == of)
        rows += oof_rows(
            target,
            patient_ids=[f"{place:03d}" for place in own],
            truth=truth[own].astype(int) if task == "binary" else truth[own],
            answers=answers[own],
            fold=of,
            seed=0,
            chosen=(1, "last", ""),
        )
    write_table(file, (*oof_columns(target), "covariate_age"), [(*row, 50) for row in rows])
    return file


@pytest.mark.parametrize("task", TARGETS)
def test_what_is_maximised_is_what_a_run_of_that_task_reports(tmp_path: Path, task: str) -> None:
    target = TARGETS[task]
    assert objective_of(target) == f"val_{measure_of(target).name}"
    assert objective_of(target) in OBJECTIVES
    found = measured(_predictions(tmp_path / "oof.csv", task))
    read = read_predictions(tmp_path / "oof.csv")
    each = [
        measure_of(target).score(read.labels[own], read.scores[own])
        for own in (read.folds == fold for fold in range(3))
    ]
    # Folds of as many patients of each kind weigh alike.
    assert found["auc" if task == "binary" else "score"] == pytest.approx(np.mean(each), abs=1e-9)


def _search(target: Target, *, objective: str | None = None, **space: Any) -> Search:
    schema = make_schema(modalities=("A",), target=target)
    manifest: Any = SimpleNamespace(
        schema=schema, dataset_fingerprint="f" * 64, patients=(), folds=3
    )
    return Search(
        SearchConfig(tuner="random", objective=objective),
        data="data",
        manifest=manifest,
        space=space_of(("A",), space),
        folds=(0, 1, 2),
    )


def test_a_study_says_what_it_maximises_and_binary_ones_say_what_they_did() -> None:
    assert _search(PLAIN).request["objective"] == "val_auc"
    found = _search(TARGETS["multiclass"])
    assert found.request["objective"] == found.provenance["objective"] == "val_macro_auc"
    with pytest.raises(UsageError, match="val_auc: of regression labels it is val_spearman"):
        _search(TARGETS["regression"], objective="val_auc")


def test_settings_of_classes_are_refused_before_a_trial_where_labels_are_values() -> None:
    smoothed: dict[str, Any] = {"label_smoothing": [0.0, 0.1]}
    assert _search(TARGETS["multiclass"], **smoothed).title == "macro AUC"
    with pytest.raises(UsageError, match="--space: label_smoothing: labels are values"):
        _search(TARGETS["regression"], **smoothed)
    assert _search(TARGETS["regression"], class_weights="none").objective == "val_spearman"


def test_a_negative_correlation_is_a_result_and_beats_a_failed_trial(tmp_path: Path) -> None:
    result = {"status": "completed", "objective": -0.4, "epochs": 1, "batch_size": 8}
    (tmp_path / "result.json").write_text(json.dumps({**result, "seconds": 1.0}))
    found = read_result(tmp_path / "result.json")
    assert found is not None
    request = Request(
        trial="0", values={}, config={}, data="d", dataset_fingerprint="f", folds=(0,),
        cache="auto", memory=None, logs="",
        round={"bracket": "1", "round": 0, "epochs": 3, "next": 1, "from": ""},
    )  # fmt: skip
    requests = {name: dataclasses.replace(request, trial=name) for name in "01"}
    results: dict[str, Any] = {"0": found, "1": {"status": "failed", "objective": None}}
    assert "rank 1 of 2" in _pruned("0", requests, results, finished=True)
    trial = FinishedTrial(
        trial="0", status="completed", reason="", objective=-0.4, values={}, config={}, result={}
    )
    assert parts_of(trial, "Spearman correlation")[1] == "Spearman correlation -0.400"
    assert "trial's rank is of the only one" in caveat([trial], "rank")


@pytest.mark.parametrize("task", TARGETS)
def test_outer_runs_are_pooled_with_all_their_columns(tmp_path: Path, task: str) -> None:
    runs: list[Any] = []
    for fold in range(3):
        (tmp_path / str(fold)).mkdir()
        _predictions(tmp_path / str(fold) / "oof_predictions.csv", task, fold)
        schema = SimpleNamespace(target=TARGETS[task])
        runs.append(SimpleNamespace(directory=str(tmp_path / str(fold)), schema=schema))
    whole = _predictions(tmp_path / "whole.csv", task)
    assert Path(pool(str(tmp_path), runs)).read_bytes() == whole.read_bytes()


def test_retrainings_are_kept_by_the_score_of_their_task(tmp_path: Path) -> None:
    for number, score in ((1, -0.25), (2, 0.5)):
        permutations._keep(tmp_path, number, (number, score), "score")
    known = permutations._finished(tmp_path, "score")
    assert known == {1: (1, -0.25), 2: (2, 0.5)}
    permutations._write(tmp_path, known, "score")
    columns, rows = read_table((tmp_path / "permutations.csv").read_bytes(), ())
    assert columns == ["permutation", "seed", "score"]
    assert [row["score"] for _, row in rows] == ["-0.25", "0.5"]
    with pytest.raises(ContractError, match="auc"):
        permutations._finished(tmp_path, "auc")


def test_an_outer_score_is_kept_by_its_own_names(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"asked": {}}')
    metrics = measured(_predictions(tmp_path / "oof.csv", "multiclass"))
    Study(str(tmp_path)).keep_outer(metrics, fold=1)
    kept = json.loads((tmp_path / "study.json").read_text())["outer"]
    assert kept["score"] == metrics["score"]
    assert kept["counts"] == {"2": 9, "3": 9, "4": 9}
    assert kept["fold"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHERS)
def test_a_search_calls_its_objective_by_the_tasks_name(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, study = tmp_path / "data", tmp_path / "study"
    write_dataset(
        data, patients=36, folds=3, modalities=("A",), target=TARGETS[task], covariates=AGE_AND_SITE
    )
    argv = argv_of(data, study, "--tuner", "random", "--max_trials", "3")
    assert main(argv, command=FAKE) == 0
    title = measure_of(TARGETS[task]).title
    out = capsys.readouterr().out
    assert f"{title} 0." in out
    assert f"The best trial's {title} is the best of 3" in " ".join(out.split())
    assert "AUC" in title or "AUC" not in out
    best = json.loads((study / "best_hyperparameters.json").read_text())["provenance"]
    assert best["objective"] == objective_of(TARGETS[task])
    assert best["score"] == max(float(row["objective"]) for row in rows_of(study))
    assert "auc" not in best
