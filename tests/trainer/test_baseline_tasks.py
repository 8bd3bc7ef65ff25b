"""Forests of classes, findings and values, and covariates alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN
from tests.datasets import AGE_AND_SITE, TARGETS, make_schema, write_dataset
from trainer.baseline import main
from trainer.data.targets import truth_of
from trainer.forest.baseline import BaselineConfig
from trainer.forest.model import (
    cross_validate,
    fit_forest,
    forests,
    linear,
    permutation_importance,
)
from trainer.forest.table import FeatureTable
from trainer.metrics.tasks.measure import measure_of, softmax
from trainer.metrics.tasks.oof_table import oof_columns

TASKS = ("binary", "multiclass", "multilabel", "regression")


def _table(task: str, n: int = 60) -> tuple[FeatureTable, npt.NDArray[Any]]:
    """Feature b tells the label, a and c are noise."""
    rng = np.random.default_rng(0)
    steps = rng.permutation(np.arange(n) % 3)
    labels: list[Any] = {
        "binary": [int(step > 0) for step in steps],
        "multiclass": steps.tolist(),
        "multilabel": [(int(step > 0), int(step > 1) if i % 5 else None)
                       for i, step in enumerate(steps)],
        "regression": (10.0 * steps + rng.normal(size=n)).tolist(),
    }[task]  # fmt: skip
    features = rng.normal(size=(n, 3))
    features[:, 1] += 4 * steps
    features[::7, 0] = np.nan
    table = FeatureTable(
        patient_ids=tuple(map(str, range(n))),
        folds=np.arange(n) % 2,
        features=features,
        names=("a", "b", "c"),
    )
    return table, truth_of(TARGETS[task], labels)


@pytest.mark.parametrize("task", TASKS)
def test_a_forest_of_every_task_finds_what_tells_and_says_which_feature_it_was(task: str) -> None:
    target, (table, truth) = TARGETS[task], _table(task)
    results = cross_validate(
        table, truth, fit=forests(target, trees=15), seed=0, repeats=1, target=target
    )
    for result in results:
        assert result.answers.shape == (30, *(() if target.outputs == 1 else (target.outputs,)))
        assert measure_of(target).score(truth[result.rows], result.answers) > 0.8
        for cost in (result.score_lost.mean(axis=1), result.loss_gained.mean(axis=1)):
            assert cost.argmax() == 1
            assert cost[1] > 0


def test_a_classifiers_logits_are_scikit_learns_probabilities() -> None:
    table, truth = _table("multiclass")
    found = fit_forest(table.features, truth, trees=15, seed=3, target=TARGETS["multiclass"])
    forest = RandomForestClassifier(15, min_samples_leaf=3, random_state=3)
    expected = forest.fit(table.features, truth).predict_proba(table.features)
    least = 1 / 120
    clipped = np.clip(expected, least, 1 - least)
    np.testing.assert_allclose(
        softmax(found(table.features)), clipped / clipped.sum(axis=1, keepdims=True)
    )


def test_a_regressors_values_are_scikit_learns() -> None:
    table, truth = _table("regression")
    found = fit_forest(table.features, truth, trees=15, seed=3, target=TARGETS["regression"])
    forest = RandomForestRegressor(15, min_samples_leaf=3, random_state=3)
    expected = forest.fit(table.features, truth).predict(table.features)
    np.testing.assert_allclose(found(table.features), expected)


def test_a_findings_forest_is_fitted_on_those_of_whom_it_is_known() -> None:
    table, truth = _table("multilabel")
    found = fit_forest(table.features, truth, trees=15, seed=3, target=TARGETS["multilabel"])
    known = ~np.isnan(truth[:, 1])
    alone = fit_forest(table.features[known], truth[known, 1].astype(int), trees=15, seed=3)
    np.testing.assert_array_equal(found(table.features)[:, 1], alone(table.features))


def test_a_finding_of_one_kind_among_the_held_out_costs_nothing_and_fails_nothing() -> None:
    table, truth = _table("multilabel")
    truth[:, 1] = 0
    lost, gained = permutation_importance(
        lambda rows: np.stack([rows[:, 1], rows[:, 1]], axis=1),
        table.features,
        truth,
        shuffles=2,
        seed=0,
        measure=measure_of(TARGETS["multilabel"]),
    )
    assert (lost == 0).all()
    assert gained[1].max() > 0


def test_covariates_alone_are_cross_validated_like_forests() -> None:
    table, truth = _table("binary")
    site = np.random.default_rng(1).integers(0, 2, 60)
    table = FeatureTable(
        patient_ids=table.patient_ids,
        folds=table.folds,
        features=np.stack([table.features[:, 1], site], axis=1),
        names=("age", "site"),
    )
    results = cross_validate(table, truth, fit=linear(PLAIN, AGE_AND_SITE), seed=0, repeats=1)
    assert all(one.score_lost.mean(axis=1).argmax() == 0 for one in results)
    assert all(measure_of(PLAIN).score(truth[r.rows], r.answers) > 0.9 for r in results)


def _argv(data: Path, directory: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--output_dir", str(directory), *more]


def _dataset(directory: Path, task: str, **more: Any) -> Path:
    small: dict[str, Any] = {"shape": (6, 6, 6), "modalities": ("A",), "covariates": AGE_AND_SITE}
    write_dataset(directory, target=TARGETS[task], signal=0.0, **{**small, **more})
    return directory


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_what_age_alone_says_is_found_without_an_image(
    tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images say nothing here, and age rises with the label; one in seven lacks it."""
    data = _dataset(tmp_path / "data", task)
    assert main(_argv(data, tmp_path / "known", "--covariates_only")) == 0
    said = capsys.readouterr().out
    assert "The interval lies above 0.5: better than chance" in said
    assert "a regression of 2 covariates alone" in said
    rows = _rows(tmp_path / "known/oof_predictions.csv")
    assert tuple(rows[0]) == oof_columns(TARGETS[task])
    assert len(rows) == 24
    found = json.loads((tmp_path / "known/baseline.json").read_text())
    assert found["config"] == {
        "covariates": ["age", "site"],
        "covariates_only": True,
        "permute_labels": False,
        "seed": 0,
    }
    (first, *_) = _rows(tmp_path / "known/feature_importance.csv")
    assert first["feature"] == "age"
    assert f"{measure_of(TARGETS[task]).name}_lost" in first

    assert main(_argv(data, tmp_path / "known", "--covariates_only")) == 0
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(ContractError, match=r"another baseline \(.*covariates"):
        main(_argv(data, tmp_path / "known", "--covariates_only", "--covariates", "site"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--covariates", "weight"), "unknown covariate weight; the dataset has age, site"),
        (("--covariates_only", "--trees", "9"), "--trees is of forests: not with --covariates_on"),
        (("--covariates_only", "--modalities", "A"), "--modalities is of forests"),
        (("--covariates_only", "--covariates", "none"), "the dataset has no covariates, or none"),
        (("--covariates", "age", "age"), "--covariates must be distinct: age age"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    data = _dataset(tmp_path / "data", "multiclass", patients=18)
    with pytest.raises(UsageError, match=said):
        main(_argv(data, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_covariates_are_features_of_a_forest_unless_they_are_not_wanted(
    tmp_path: Path, task: str
) -> None:
    data = _dataset(tmp_path / "data", task, patients=36)
    scores = {}
    for name, options in (("both", ()), ("images", ("--covariates", "none"))):
        assert main(_argv(data, tmp_path / name, "--trees", "30", *options)) == 0
        done = json.loads((tmp_path / name / "baseline.json").read_text())
        scores[name] = done["metrics"]["auc" if task == "binary" else "score"]
        features = {row["feature"] for row in _rows(tmp_path / name / "feature_importance.csv")}
        assert ({"age", "site=A", "site=B"} <= features) == (name == "both")
        assert ("covariates" in done["config"]) == (name == "both")
        assert len(features) == done["features"]
    assert scores["both"] > scores["images"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_permuted_labels_of_any_kind_teach_nothing(tmp_path: Path, task: str) -> None:
    data = _dataset(tmp_path / "data", task, patients=60)
    found = []
    for seed in range(4):
        options = ("--covariates_only", "--permute_labels", "--seed", str(seed))
        assert main(_argv(data, tmp_path / str(seed), *options)) == 0
        done = json.loads((tmp_path / str(seed) / "baseline.json").read_text())
        assert done["metrics"]["no_claim"] == ["permuted"]
        found.append(done["metrics"]["auc" if task == "binary" else "score"])
    assert abs(np.mean(found) - measure_of(TARGETS[task]).chance) < 0.2


def test_a_covariate_with_a_comma_in_its_name_is_a_feature_of_the_baseline() -> None:
    schema = make_schema(covariates=(Covariate(name="dose, mg"), Covariate(name="age")))
    assert BaselineConfig(covariates=("dose, mg",)).resolve(schema).covariates == ("dose, mg",)
    with pytest.raises(UsageError, match="unknown covariate dose, mg"):
        BaselineConfig(covariates=("age,dose, mg",)).resolve(schema)
