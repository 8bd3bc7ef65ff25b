"""Outer folds: what is scored on patients that no trial has seen, and that none has."""

# ruff: noqa: F811  fixtures come by import

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.json_file import read_json
from beam_jobs.core.manifest import Manifest, read_manifest
from tests.datasets import write_dataset
from tests.trainer.search import toy_recipe
from tests.trainer.search.searches import argv_of, seen  # noqa: F401
from tests.trainer.search.toy_recipe import TOY, logits_of
from trainer import tune
from trainer.config.provenance import split_provenance
from trainer.config.run import TrainConfig
from trainer.data.split import labels_of
from trainer.search import attempts, outer, run_search
from trainer.search.roles import Role

# Three hyperparameters that the toy has a use for: 8 combinations.
SPACE: dict[str, list[Any]] = {
    "width": [0.5, 1.0],
    "dropout": [0.0, 0.2],
    "pooling": ["avg", "max"],
}
FIXED = {"learning_rate": 1e-3, "batch_size": 8}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("dataset")
    write_dataset(
        directory, patients=112, folds=4, unlabelled=2, shape=(4, 4, 4), modalities=("T1wCE",)
    )
    return directory


def _argv(data: Path, study: Path, *more: str, **space: Any) -> list[str]:
    return argv_of(data, study, "--tuner", "grid", "--max_trials", "8", *more, **SPACE, **FIXED)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's processes cost a second each."""

    def run_to_end(command: Sequence[str], **_: Any) -> int:
        try:
            return toy_recipe.main(command[len(TOY) :])
        except SystemExit:
            return 1

    monkeypatch.setattr(attempts, "run_to_end", run_to_end)
    monkeypatch.setattr(outer, "run_to_end", run_to_end)


def _search(argv: list[str]) -> int:
    return tune.main(argv, command=TOY, train=TOY)


def _runs(seen: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in seen.read_text().splitlines()]


def _ids(manifest: Manifest, *folds: int) -> set[str]:
    return {name for name, _, fold in manifest.patients if fold in folds}


def test_no_trial_has_seen_a_patient_of_the_outer_fold_which_is_scored_once_at_the_end(
    dataset: Path, tmp_path: Path, seen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, study = read_manifest(dataset), tmp_path / "study"
    assert _search(_argv(dataset, study, "--outer_fold", "2")) == 0
    *trials, last = _runs(seen)
    assert len(trials) == 8
    for trial in trials:
        assert set(trial["trained"]) | set(trial["scored"]) == _ids(manifest, 0, 1, 3)
    assert last["place"] == str(study / "outer")
    assert set(last["trained"]) == _ids(manifest, 0, 1, 3)
    assert set(last["scored"]) == _ids(manifest, 2)
    provenance = read_json(study / "best_hyperparameters.json")["provenance"]
    assert set(provenance["patients"]) == _ids(manifest, 0, 1, 3)
    score = read_json(study / "outer" / "run.json")["metrics"]
    said = read_json(study / "study.json")["outer"]
    assert (said["fold"], said["auc"], said["n"]) == (2, score["auc"], 28)
    out = capsys.readouterr().out
    assert out.index("outer fold  ") < out.index("optimistic")
    # Started again, it is told again, and nothing is run.
    assert _search(_argv(dataset, study, "--outer_fold", "2")) == 0
    assert len(_runs(seen)) == 9
    page = (study / "report.html").read_text()
    assert page.index("Outer fold’s AUC") < page.index("Best trial’s AUC")
    assert "whose patients stand in no trial" in page


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test catches it."""


@pytest.mark.parametrize("moment", ["in a trial", "before the outer run", "after the outer run"])
def test_a_killed_study_scores_the_outer_fold_once_after_the_search_and_leaks_nothing(
    dataset: Path, tmp_path: Path, seen: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    manifest, study = read_manifest(dataset), tmp_path / "study"
    argv = _argv(dataset, study, "--outer_fold", "0")
    real = outer.score_outer

    def dying(*args: Any, **options: Any) -> Any:
        if moment == "after the outer run":
            real(*args, **options)
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "in a trial":
            run_trial = attempts.run_trial

            def four(directory: Path, *rest: Any) -> Any:
                if directory.name == "4":
                    raise Killed
                return run_trial(directory, *rest)

            patch.setattr(run_search, "run_trial", four)
        else:
            patch.setattr(tune, "score_outer", dying)
        with pytest.raises(Killed):
            _search(argv)
    assert _search(argv) == 0
    runs = _runs(seen)
    assert [Path(run["place"]).name for run in runs].count("outer") == 1
    assert runs[-1]["place"] == str(study / "outer")
    assert len(runs) == 9
    assert not _ids(manifest, 0) & {
        name for run in runs[:-1] for name in (*run["trained"], *run["scored"])
    }


def test_a_study_is_not_resumed_with_another_outer_fold_nor_extended_after_its_score(
    dataset: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    argv = _argv(dataset, study, "--outer_fold", "1")
    argv[argv.index("--max_trials") + 1] = "2"
    assert _search(argv) == 0
    with pytest.raises(ContractError, match="outer_fold: 1 there, 2 requested"):
        _search(_argv(dataset, study, "--outer_fold", "2"))
    with pytest.raises(ContractError, match="scored after 2 trials; more would be chosen"):
        _search(_argv(dataset, study, "--outer_fold", "1"))
    # One whose trials have seen every patient gets no outer fold afterwards.
    assert _search(_argv(dataset, tmp_path / "whole")) == 0
    with pytest.raises(ContractError, match="outer_fold: None there, 1 requested"):
        _search(_argv(dataset, tmp_path / "whole", "--outer_fold", "1"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--outer_fold", "4"), "--outer_fold 4: the dataset has folds 0 to 3"),
        (("--outer_fold", "-1"), "a fold's number or 'all' is needed"),
        (("--outer_fold", "1", "--folds", "4"), "has 3 beside the outer one"),
    ],
)
def test_an_outer_fold_that_cannot_be_is_refused(
    dataset: Path, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        _search(_argv(dataset, tmp_path / "study", *flags))


def test_an_outer_run_that_fails_ends_the_command_and_is_made_up_for_by_the_next(
    dataset: Path, tmp_path: Path, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = _argv(dataset, tmp_path / "study", "--outer_fold", "1")
    monkeypatch.setenv("TOY_FAILS", "outer")
    with pytest.raises(CommandError, match="the outer run ended with exit code 1"):
        _search(argv)
    monkeypatch.delenv("TOY_FAILS")
    assert _search(argv) == 0
    assert "outer" in read_json(tmp_path / "study" / "study.json")


@pytest.mark.slow
def test_nested_folds_agree_with_nested_loops(
    dataset: Path, tmp_path: Path, seen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A nested cross-validation written out plainly: grid, inner folds, outer fold."""
    study = tmp_path / "study"
    assert _search(_argv(dataset, study, "--outer_fold", "all")) == 0
    out = capsys.readouterr().out

    manifest = read_manifest(dataset)
    truth = labels_of(manifest)
    by_fold = [sorted(_ids(manifest, fold)) for fold in range(4)]

    def scores(settings: dict[str, Any], trained: list[int], scored: int) -> Any:
        names = [n for n, _, fold in manifest.patients if fold in trained]  # in the shards' order
        return logits_of(settings, truth, truth, names, by_fold[scored], seed=0)

    areas, pairs, best = [], [], []
    for own in range(4):
        inner = [fold for fold in range(4) if fold != own]
        found = []
        for width, dropout, pooling in itertools.product(*SPACE.values()):
            settings = {"network": {"width": width, "dropout": dropout, "pooling": pooling}}
            each, weights = [], []
            for held in inner:
                labels = [truth[name] for name in by_fold[held]]
                predicted = scores(settings, [f for f in inner if f != held], held)
                each.append(roc_auc_score(labels, predicted))
                weights.append(sum(labels) * (len(labels) - sum(labels)))
            found.append((float(np.average(each, weights=weights)), settings))
        found.sort(key=lambda one: one[0], reverse=True)
        assert found[0][0] > found[1][0]  # no tie that the order would have to break
        best.append(found[0])
        labels = [truth[name] for name in by_fold[own]]
        areas.append(roc_auc_score(labels, scores(found[0][1], inner, own)))
        pairs.append(sum(labels) * (len(labels) - sum(labels)))

    for own, (objective, settings) in enumerate(best):
        place = study / f"outer-{own}"
        chosen = read_json(place / "best_hyperparameters.json")
        rest, _ = split_provenance(chosen)
        network = TrainConfig.from_json(rest).to_json()["network"]
        assert {name: network[name] for name in SPACE} == settings["network"]
        assert chosen["provenance"]["auc"] == pytest.approx(objective, abs=1e-12)
        metrics = read_json(place / "outer" / "run.json")["metrics"]
        assert metrics["auc"] == pytest.approx(areas[own], abs=1e-12)
    pooled = read_json(study / "study.json")["outer"]
    assert pooled["auc"] == pytest.approx(np.average(areas, weights=pairs), abs=1e-12)
    measured = read_json(study / "metrics.json")
    assert (measured["auc"], measured["variance_factor"]) == (pooled["auc"], 2)
    with (study / "oof_predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["patient_id"] for row in rows) == sorted(truth)
    assert {row["no_claim"] for row in rows} == {""}
    assert "4 searches, each scored on the fold that none of its trials has seen" in out
    # No run of a study has seen its outer fold but the one that scores it.
    for run in _runs(seen):
        fold = int(Path(run["place"]).relative_to(study).parts[0].removeprefix("outer-"))
        if Path(run["place"]).name != "outer":
            assert not _ids(manifest, fold) & {*run["trained"], *run["scored"]}
    assert _search(_argv(dataset, study, "--outer_fold", "all")) == 0
    assert len(_runs(seen)) == 4 * 9


def test_nested_folds_are_searched_in_one_process(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in Role(tuner_id="chief", address="127.0.0.1:1").variables().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="--outer_fold all searches in one process"):
        _search(_argv(dataset, tmp_path / "study", "--outer_fold", "all"))
