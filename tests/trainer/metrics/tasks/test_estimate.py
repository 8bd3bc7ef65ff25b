"""A task's score and its rule, against scikit-learn, scipy and permutations one by one."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.target import Target
from tests.datasets import TARGETS
from trainer.metrics.ensemble import Scored, metrics_of_members, summary_rows
from trainer.metrics.estimate import estimate_of
from trainer.metrics.stored import require_metrics
from trainer.metrics.tasks.estimate import estimate_of_task
from trainer.metrics.tasks.measure import mean_auc, softmax
from trainer.metrics.wording import interval_of, reading, score_of, summary_line, title_of, verdict

TASKS = ("multiclass", "multilabel", "regression")


def cohort(
    task: str, seed: int, n: int = 60, signal: float = 1.0, unknown: bool = False
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Truth and answers of a toy target of `tests.datasets`."""
    rng = np.random.default_rng(seed)
    if task == "multiclass":
        truth = rng.permutation(np.arange(n) % 6 // 2 % 3)  # thirds
        return truth, rng.normal(size=(n, 3)) + signal * np.eye(3)[truth]
    if task == "multilabel":
        found = (rng.random((n, 2)) < (0.5, 0.3)).astype(np.float64)
        found[:2] = (0, 1), (1, 0)
        answers = rng.normal(size=(n, 2)) + signal * found + rng.normal(size=(n, 1))
        if unknown:
            found[2::7, 0], found[3::5, 1] = np.nan, np.nan
        return found, answers
    truth = rng.normal(size=n)
    return truth, rng.normal(size=n) + signal * truth


def of_sklearn(task: str, truth: Any, answers: Any, folds: Any) -> float:
    """The score from the libraries' own, fold by fold."""
    if task == "regression":
        places = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
        each = [spearmanr(truth[rows], answers[rows]).statistic for rows in places]
        return float(np.average(each, weights=[rows.size - 1 for rows in places]))
    if task == "multiclass":
        marks, scores = np.eye(3)[truth], np.round(softmax(answers), 12)
    else:
        marks, scores = truth, answers
    means = []
    for column, values in zip(marks.T, scores.T, strict=True):
        areas, pairs = [], []
        for fold in np.unique(folds):
            rows = (folds == fold) & ~np.isnan(column)
            positive = column[rows].sum()
            if 0 < positive < rows.sum():
                areas.append(roc_auc_score(column[rows], values[rows]))
                pairs.append(positive * (rows.sum() - positive))
        means.append(np.average(areas, weights=pairs))
    return float(np.mean(means))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_scikit_learns_and_scipys_fold_by_fold(task: str, seed: int) -> None:
    truth, answers = cohort(task, seed, unknown=True)
    answers = np.round(answers, 1)  # ties
    folds = np.random.default_rng(seed).permutation(np.arange(60) % 5)
    found = estimate_of_task(TARGETS[task], truth, answers, folds=folds)
    assert found["score"] == pytest.approx(of_sklearn(task, truth, answers, folds), abs=1e-9)
    assert (found["estimator"], found["variance_factor"]) == ("pairs within folds", 2)
    # What tells the fold and nothing else changes nothing.
    moved = answers + (10 * folds if task == "regression" else 10 * folds[:, np.newaxis])
    again = estimate_of_task(TARGETS[task], truth, moved, folds=folds)
    assert again["p_value"] == pytest.approx(found["p_value"], abs=1e-9)
    alone = estimate_of_task(TARGETS[task], truth, answers)
    assert alone["score"] == pytest.approx(of_sklearn(task, truth, answers, np.zeros(60)))
    assert (alone["estimator"], alone["variance_factor"]) == ("all pairs", 1)


def test_a_macro_auc_without_folds_is_scikit_learns_one_against_rest() -> None:
    truth, answers = cohort("multiclass", 5)
    found = estimate_of_task(TARGETS["multiclass"], truth, answers)
    assert found["score"] == pytest.approx(
        roc_auc_score(truth, softmax(answers), multi_class="ovr", average="macro")
    )
    assert [one["name"] for one in found["parts"]] == ["2", "3", "4"]
    for place, part in enumerate(found["parts"]):
        assert part["auc"] == pytest.approx(
            roc_auc_score(truth == place, softmax(answers)[:, place])
        )


@pytest.mark.parametrize("task", TASKS)
def test_the_variance_without_signal_is_that_of_all_permutations(task: str) -> None:
    """Seven patients' labels in every order, as vectors: what belongs together stays so."""
    rng = np.random.default_rng(1)
    answers: Any = rng.normal(size=(7, TARGETS[task].outputs))
    truth: Any = {
        "multiclass": np.array([0, 0, 1, 1, 1, 2, 2]),
        "multilabel": np.array([[0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [0, 1], [1, 1.0]]),
        "regression": np.array([1.0, 2, 2, 3, 4, 5, 7]),
    }[task]
    if task == "regression":
        answers = answers[:, 0]
    marks = np.eye(3)[truth] if task == "multiclass" else truth
    values = softmax(answers) if task == "multiclass" else answers
    ranks = rankdata(values, axis=0)
    orders = np.array(list(itertools.permutations(range(7))))
    if task == "regression":
        steps, marks = ranks - 4, rankdata(marks) - 4
        scores = marks[orders] @ steps / np.sqrt((marks**2).sum() * (steps**2).sum())
    else:
        up = marks.sum(axis=0)
        sums = (marks[orders] * ranks).sum(axis=1) - up * (up + 1) / 2
        scores = (sums / (up * (7 - up))).mean(axis=1)
    found = estimate_of_task(TARGETS[task], truth, answers)
    assert found["score"] == pytest.approx(scores[0])
    error = (found["told_from_chance"] - found["chance"]) / norm.ppf(0.975)
    assert error == pytest.approx(np.std(scores))


def test_findings_that_are_not_known_of_all_have_the_variance_of_those_that_are() -> None:
    rng = np.random.default_rng(2)
    truth, answers = cohort("multilabel", 3, n=80, signal=0, unknown=True)
    found = estimate_of_task(TARGETS["multilabel"], truth, answers)
    error = (found["told_from_chance"] - 0.5) / norm.ppf(0.975)
    scores = [mean_auc(truth[rng.permutation(80)], answers) for _ in range(200)]
    assert error == pytest.approx(np.std(scores), rel=0.15)
    assert [one["n"] for one in found["parts"]] == [68, 64]


@given(st.sampled_from(TASKS), st.integers(0, 2**31), st.floats(-3, 3), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_claim_interval_p_value_and_words_never_contradict_each_other(
    task: str, seed: int, signal: float, folds: int
) -> None:
    truth, answers = cohort(task, seed, n=24, signal=signal, unknown=bool(seed % 2))
    rng = np.random.default_rng(seed)
    target, place = TARGETS[task], np.arange(24) % folds
    null = [None, rng.uniform(target.task == "regression" and -0.5, 1, 39)][seed // 2 % 2]
    found = estimate_of_task(target, truth, answers, folds=place, null=null)
    low, high = found["interval"]
    chance = found["chance"]
    assert (0 if chance else -1) <= low <= found["score"] + 1e-9
    assert found["score"] - 1e-9 <= high <= 1
    claims = low > chance, high < chance
    assert claims == (found["better_than_chance"], found["worse_than_chance"])
    small = found["p_value"] < 0.05
    if found["decided_by"] == "permutations":
        small = found["p_value"] <= 0.05 + 1e-9
    assert any(claims) == small
    said = f"{verdict(found)} {reading(found)[0]}"
    for word, claimed in zip(("better than", "worse than"), claims, strict=True):
        assert said.count(f"{word} chance") == 2 * claimed
    assert said.count("cannot be told from chance") == 2 * (not any(claims))
    for part in found["parts"]:
        assert part["p_value_holm"] is None or part["p_value_holm"] >= part["p_value"]


def test_a_binary_target_gives_the_binary_estimate_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    labels, scores, folds = rng.integers(0, 2, 60), rng.normal(size=(2, 60)), np.arange(60) % 5
    named = Target(labels=("MGMT",), classes=("no", "yes"))
    for target in (TARGETS["binary"], named):
        found = estimate_of_task(target, labels, scores, folds=folds)
        assert json.dumps(found) == json.dumps(estimate_of(labels, scores, folds=folds))


@pytest.mark.parametrize("task", TASKS)
def test_members_are_measured_together_and_read_back(task: str) -> None:
    truth, answers = cohort(task, 0)
    members = [
        Scored(
            fold=fold,
            seed=seed,
            patients=np.flatnonzero(np.arange(60) % 3 == fold).tolist(),
            labels=truth[np.arange(60) % 3 == fold],
            logits=answers[np.arange(60) % 3 == fold] + 0.1 * seed,
            details={"epoch": 3, "epochs": 3},
        )
        for seed in (0, 1)
        for fold in range(3)
    ]
    found = metrics_of_members(members, TARGETS[task])
    whole = estimate_of_task(TARGETS[task], truth, answers, folds=np.arange(60) % 3)
    assert score_of(found) == pytest.approx(score_of(whole))
    assert (found["repeats"], found["n"]) == (2, 60)
    require_metrics(json.loads(json.dumps(found)), where="")
    lines = dict(summary_rows(found))
    assert lines["seeds"].startswith(f"alone: {title_of(found)} ")
    assert lines["out of fold"] == summary_line(found)
    silent = metrics_of_members(members, TARGETS[task], no_claim=("searched",))
    require_metrics(json.loads(json.dumps(silent)), where="")
    assert interval_of(silent) is None
    assert summary_line(silent).startswith(f"optimistic {title_of(found)} ")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("score", 1.5),
        ("measure", "auc"),
        ("interval", [0.1]),
        ("interval", None),
        ("chance", 0.4),
        ("counts", {"2": "many"}),
        ("parts", [{"name": "2"}]),
        ("task", "regression"),
    ],
)
def test_an_estimate_that_was_changed_is_refused(member: str, value: Any) -> None:
    found = estimate_of_task(TARGETS["multiclass"], *cohort("multiclass", 0))
    with pytest.raises(ContractError, match=f"x.{member}"):
        require_metrics({**found, "folds": [], "seeds": [], member: value}, where="x.")


@pytest.mark.parametrize("task", TASKS)
def test_a_repeat_that_lacks_patients_is_measured_on_those_it_has(task: str) -> None:
    truth, answers = cohort(task, 0)
    lacking = np.stack([answers, answers])
    lacking[1, np.arange(60) % 5 == 0] = np.nan
    found = estimate_of_task(TARGETS[task], truth, lacking, folds=np.arange(60) % 5)
    assert (found["repeats"], found["n"]) == (2, 60)


def test_a_class_that_nobody_has_has_no_auc_and_patients_without_a_label_are_left_out() -> None:
    truth, answers = cohort("multiclass", 4)
    truth[truth == 1] = -1
    found = estimate_of_task(TARGETS["multiclass"], truth, answers)
    assert (found["n"], found["counts"]) == (40, {"2": 20, "3": 0, "4": 20})
    assert found["parts"][1]["auc"] is found["parts"][1]["p_value_holm"] is None
    assert found["score"] == pytest.approx(
        np.mean([found["parts"][place]["auc"] for place in (0, 2)])
    )


@pytest.mark.parametrize(
    ("task", "truth", "answers", "said"),
    [
        ("regression", [1.0, 1.0, 1.0], [1.0, 2, 3], "labels that differ in a fold"),
        ("multiclass", [0, 0], [[1.0, 2, 3], [1, 2, 3]], "labels that differ in a fold"),
        ("multiclass", [0, 3], [[1.0, 2, 3], [1, 2, 3]], "from 0 to 2"),
        ("multiclass", [0, 1], [1.0, 2], "answers"),
        ("multilabel", [[0, 1], [1, 0]], [[1, np.nan], [1, 2]], "finite"),
        ("regression", [1.0, 2.0], [np.inf, 2], "finite"),
    ],
)
def test_what_has_no_estimate_is_refused(task: str, truth: Any, answers: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        estimate_of_task(TARGETS[task], np.array(truth), answers)
