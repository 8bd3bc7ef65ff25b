"""A network that has only learnt age is found out, and one that has learnt more is not accused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from beam_jobs.common.csv_table import read_table
from beam_jobs.core.cohort.target import Label
from tests.datasets import AGE_AND_SITE, TARGETS
from trainer.config.run_layout import ALONE_NAME, is_run_file
from trainer.metrics.covariates.against import against_covariates, write_alone
from trainer.metrics.predictions import Predictions
from trainer.metrics.tasks.oof_table import oof_columns

TASKS = ("binary", "multiclass", "multilabel", "regression")


def _labels(task: str, n: int) -> tuple[list[Label], npt.NDArray[np.int64]]:
    """Labels, and the step (0, 1, 2) that decides them."""
    steps = np.random.default_rng(0).permutation(np.arange(n) % 3)
    made: dict[str, list[Any]] = {
        "binary": [int(step > 0) for step in steps],
        "multiclass": steps.tolist(),
        "multilabel": [(int(step > 0), int(step > 1)) for step in steps],
        "regression": (10.0 * steps).tolist(),
    }
    return made[task], steps


def _run(directory: Path, task: str, *, signal: float = 2.0, n: int = 60, **more: Any) -> None:
    labels, steps = _labels(task, n)
    rng = np.random.default_rng(1)
    known = np.stack([50 + 9 * (signal * steps + rng.normal(size=n)), rng.integers(0, 2, n)], 1)
    ids = [f"{index:05d}" for index in range(n)]
    write_alone(
        directory,
        TARGETS[task],
        AGE_AND_SITE,
        labels=dict(zip(ids, labels, strict=True)),
        folds={name: index % 3 for index, name in enumerate(ids)},
        known=dict(zip(ids, known, strict=True)),
        **{"held_out": (0, 1, 2), "no_claim": (), **more},
    )


def _network(task: str, *, signal: float, n: int = 60) -> Predictions:
    """Out-of-fold answers that know so much of the step."""
    from trainer.data.targets import truth_of

    target = TARGETS[task]
    labels, steps = _labels(task, n)
    answer = signal * steps + np.random.default_rng(2).normal(size=n)
    scores = answer
    if task == "multiclass":
        scores = np.stack([-answer, np.zeros(n), answer - 2 * signal], axis=1)
    elif task == "multilabel":
        scores = np.stack([answer, answer], axis=1)
    return Predictions(
        name="network",
        keys=tuple(str(index) for index in range(n)),
        labels=truth_of(target, labels),
        scores=scores,
        target=target,
        folds=np.arange(n) % 3,
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_table_holds_every_held_out_patient_once_out_of_fold(tmp_path: Path, task: str) -> None:
    _run(tmp_path, task, held_out=(1, 2), no_claim=("searched", "permuted"))
    columns, rows = read_table((tmp_path / ALONE_NAME).read_bytes(), oof_columns(TARGETS[task]))
    assert tuple(columns) == oof_columns(TARGETS[task])
    assert sorted(int(row["patient_id"]) for _, row in rows) == [i for i in range(60) if i % 3]
    for _, row in rows:
        assert int(row["fold"]) == int(row["patient_id"]) % 3
        assert (row["epoch"], row["epoch_choice"], row["no_claim"]) == ("", "none", "permuted")
    assert is_run_file(ALONE_NAME)


@pytest.mark.parametrize(
    "task",
    [
        *("binary", "multiclass"),
        *(pytest.param(task, marks=pytest.mark.slow) for task in ("multilabel", "regression")),
    ],
)
def test_a_network_that_knows_no_more_than_covariates_is_found_out(
    tmp_path: Path, task: str
) -> None:
    _run(tmp_path, task)
    found = against_covariates(_network(task, signal=2.0), tmp_path)
    assert found is not None
    assert found["estimate"]["better_than_chance"]
    assert found["comparison"]["name"] == "covariates alone"
    assert found["said"].endswith("cannot be told from that: they may have learnt no more.")


def test_a_network_that_knows_more_or_less_than_covariates_is_told_so(tmp_path: Path) -> None:
    _run(tmp_path, "multiclass", signal=0.3)
    found = against_covariates(_network("multiclass", signal=3.0), tmp_path)
    assert found is not None
    assert found["said"].endswith("macro AUC is greater: they tell more than covariates do.")
    _run(tmp_path, "multiclass", signal=3.0)
    found = against_covariates(_network("multiclass", signal=0.0), tmp_path)
    assert found is not None
    assert found["said"].endswith("macro AUC is smaller: they tell less than covariates do.")


def test_where_nothing_tells_nothing_is_claimed(tmp_path: Path) -> None:
    _run(tmp_path, "regression", signal=0.0)
    found = against_covariates(_network("regression", signal=0.0), tmp_path)
    assert found is not None
    assert found["said"].endswith("lead over it can be told from chance.")


def test_scores_that_allow_no_claim_get_none(tmp_path: Path) -> None:
    _run(tmp_path, "binary")
    silent = dataclasses.replace(_network("binary", signal=2.0), no_claim=("searched",))
    found = against_covariates(silent, tmp_path)
    assert found is not None
    assert found["comparison"]["p_value"] is None
    assert found["said"].endswith("positive).")


def test_one_patient_of_a_class_ends_no_training_and_gets_no_test(tmp_path: Path) -> None:
    _run(tmp_path, "binary", held_out=(0,))
    network = _network("binary", signal=2.0)
    kept = np.flatnonzero((network.labels == 1) & (np.arange(60) % 3 == 0))
    kept = np.sort(np.append(kept, np.flatnonzero((network.labels == 0) & (network.folds == 0))[0]))
    few = dataclasses.replace(
        network,
        keys=tuple(network.keys[place] for place in kept),
        labels=network.labels[kept],
        scores=network.scores[kept],
        folds=kept % 3,
    )
    found = against_covariates(few, tmp_path)
    assert found is not None
    assert found["comparison"] is None
    assert found["said"].endswith("positive).")


def test_other_labels_are_those_that_both_are_judged_by(tmp_path: Path) -> None:
    """Labels may have been corrected since the run, and some patients left out."""
    _run(tmp_path, "binary")
    network = _network("binary", signal=2.0)
    kept = np.arange(3, 60)
    labels = network.labels.copy()
    labels[:20] = 1 - labels[:20]
    changed = dataclasses.replace(
        network,
        keys=network.keys[3:],
        labels=labels[kept],
        scores=network.scores[kept],
        folds=kept % 3,
    )
    before, after = (against_covariates(one, tmp_path) for one in (network, changed))
    assert before is not None
    assert after is not None
    assert (before["estimate"]["n"], after["estimate"]["n"]) == (60, 57)
    assert after["estimate"]["auc"] < before["estimate"]["auc"]


def test_nothing_is_said_without_a_run_covariates_or_folds(tmp_path: Path) -> None:
    network = _network("binary", signal=1.0)
    assert against_covariates(network, None) is None
    assert against_covariates(network, tmp_path) is None
    _run(tmp_path, "binary")
    test_set = dataclasses.replace(network, folds=None)
    assert against_covariates(test_set, tmp_path) is None
    assert against_covariates(network, tmp_path) is not None
