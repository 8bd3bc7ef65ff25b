"""MODEL_CARD.md is true for every kind of run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import export
from serving.model.calibration import Calibration
from serving.model.card import model_card
from tests.datasets import make_metrics
from tests.serving.models import MODALITIES, schema_of, spec_of
from trainer.config.run_layout import OOF_COLUMNS, OOF_NAME, PERMUTATIONS_NAME
from trainer.training.run_files import Member, Run

FOLDS, PATIENTS = 5, 20  # a fold's patients, half of them positive


def run_of(
    name: str,
    folds: Sequence[int],
    *,
    seeds: int = 1,
    epoch_choice: str = "last",
    no_claim: tuple[str, ...] = (),
    outer_fold: int | None = None,
    dataset: str = "a",
) -> Run:
    """A run on a dataset of five folds, as the trainer writes its run.json."""
    members = [(fold, seed) for seed in range(seeds) for fold in folds]
    trained_on = PATIENTS * (FOLDS - (len(folds) == 1) - (outer_fold is not None))
    spec = spec_of()
    return Run(
        directory=f"runs/{name}",
        config={"outer_fold": outer_fold},
        schema=schema_of(spec),
        spec=spec,
        dataset_fingerprint=dataset * 64,
        modalities=MODALITIES,
        model="tiny",
        members=tuple(
            Member(fold=fold, seed=seed, path="", epoch=3, val_auc=0.6) for fold, seed in members
        ),
        trained_on={"patients": trained_on, "positive": trained_on // 2},
        trained_ids=tuple(map(str, range(trained_on))),
        epoch_choice=epoch_choice,
        no_claim=no_claim,
        metrics=make_metrics(members, patients=PATIENTS, no_claim=no_claim),
        precision="float32",
        versions={},
        wall_seconds=1.0,
        step_seconds=0.1,
    )


def card_of(*runs: Run) -> str:
    """Its lines joined, so that a sentence is found wherever it breaks."""
    scores = {"log_loss": 0.6, "brier": 0.2}
    measured = {"n": 20, "positive": 10, "before": scores, "after": scores}
    calibration = Calibration(measured=measured)
    contract = export.contract_of(runs, calibration=calibration)
    return re.sub(r"\s+", " ", model_card(contract, None))


NOT_MEASURED = "The ensemble itself was not measured"
SOFTER = "ensemble of all folds is a little less sharp"


def test_one_member_of_one_fold_was_measured_itself_on_the_patients_it_did_not_see() -> None:
    card = card_of(run_of("run", [2]))
    assert "One network that answers with" in card
    assert "80 patients: 40 positive, 40 negative." in card
    assert (
        "Run 1: its network was trained on 80 patients, and the 20 of fold 2, whom it did not "
        "see, measured this very network. The number of epochs was fixed beforehand." in card
    )
    assert "n = 20: 10 positive" in card
    for untrue in ("ensemble", NOT_MEASURED, SOFTER, "spread between members", "best epoch"):
        assert untrue not in card


def test_where_nothing_calibrates_no_map_is_told_of() -> None:
    card = card_of(run_of("run", [2]))
    assert (
        "On 20 patients out of fold (10 positive): log loss 0.6000 nats, Brier score 0.2000" in card
    )
    assert "by a map" not in card
    assert "after" not in card


def test_members_of_one_fold_were_each_measured_on_the_same_unseen_patients() -> None:
    card = card_of(run_of("run", [2], seeds=3))
    assert "A mean of logits of 3 networks" in card
    assert "80 patients: 40 positive" in card
    assert (
        "its 3 networks were trained on the same 80 patients, and the 20 of fold 2, whom none of "
        "them saw, measured each of them; the AUC is the mean of theirs." in card
    )
    assert SOFTER not in card


@pytest.mark.parametrize("seeds", [1, 2])
def test_members_of_all_folds_saw_each_other_s_patients(seeds: int) -> None:
    card = card_of(run_of("run", range(5), seeds=seeds))
    assert "100 patients: 50 positive, 50 negative." in card
    assert (
        f"its {5 * seeds} networks were trained on 80 of 100 patients each, and 100 were scored by "
        "networks that had not seen them. The ensemble itself was not measured: every patient "
        "scored was seen by some of its networks." in card
    )
    assert SOFTER in card


def test_a_fold_that_was_neither_trained_on_nor_scored_is_not_counted() -> None:
    card = card_of(run_of("run", range(4), outer_fold=4))
    assert "80 patients: 40 positive, 40 negative." in card
    assert "trained on 60 of 80 patients each, and 80 were scored" in card


def test_crossfitted_epochs_are_told_from_fixed_ones() -> None:
    card = card_of(run_of("run", range(5), epoch_choice="crossfit"))
    assert "A fold's epoch was chosen by the log loss of the other folds, not by its own." in card
    assert "fixed beforehand" not in card


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("searched", "Optimistic AUC 0."),
        ("permuted", "AUC of permuted labels 0."),
    ],
)
def test_scores_that_allow_no_claim_are_called_so(reason: str, said: str) -> None:
    card = card_of(run_of("run", range(5), no_claim=(reason,)))
    assert said in card
    assert "No claim." in card
    assert len(re.findall(r"\| 0\.600, no claim \|", card)) == 5
    assert "interval" not in card
    assert "chance" not in card


def test_what_is_said_of_chance_is_the_metrics_own_word() -> None:
    run = run_of("run", range(5))
    assert run.metrics["better_than_chance"]
    assert "better than chance on patients like these" in card_of(run)
    alone = run_of("run", [3])
    assert not alone.metrics["better_than_chance"]
    assert "cannot be told from chance" in card_of(alone)


def test_retrainings_on_permuted_labels_decide_in_the_card_too(tmp_path: Path) -> None:
    run = dataclasses.replace(run_of("run", range(5)), directory=str(tmp_path))
    run.save()
    rng = np.random.default_rng(0)
    lines = [
        f"{fold}-{number},{number % 2},{fold},0,{number % 2 + 2 * rng.normal()},0.5,3,last,"
        for fold in range(5)
        for number in range(PATIENTS)
    ]
    (tmp_path / OOF_NAME).write_text("\n".join([",".join(OOF_COLUMNS), *lines]) + "\n")
    rows = [f"{number},{number},{0.8 + number / 1000}" for number in range(1, 40)]
    (tmp_path / PERMUTATIONS_NAME).write_text("\n".join(["permutation,seed,auc", *rows]) + "\n")
    card = card_of(run)
    assert "Of 39 whole retrainings on permuted labels, 39 score as high" in card
    assert run.metrics["better_than_chance"]
    assert "cannot be told from chance" in card


def test_several_runs_are_told_one_by_one_and_their_ensemble_was_not_measured() -> None:
    card = card_of(run_of("alone", [2]), run_of("whole", range(5)))
    assert "A mean of logits of 6 networks" in card
    assert "Run 1: its network was trained on 80 patients" in card
    assert "Run 2: its 5 networks were trained on 80 of 100 patients each" in card
    assert "Each run was measured by itself; the ensemble of all of them was not." in card
    assert "how many they are together was not known at export" in card


@pytest.mark.parametrize(
    ("runs", "cohort"),
    [
        ([run_of("a", [2]), run_of("b", [2], seeds=2)], {"patients": 80, "positive": 40}),
        ([run_of("a", range(5)), run_of("b", range(3))], {"patients": 100, "positive": 50}),
        ([run_of("a", [2]), run_of("b", [1])], {}),
        ([run_of("a", range(5)), run_of("b", range(5), dataset="b")], {}),
        ([run_of("a", range(5)), run_of("b", range(4), outer_fold=4)], {}),
    ],
)
def test_patients_of_several_runs_are_counted_only_where_they_are_surely_the_same(
    runs: list[Run], cohort: dict[str, int]
) -> None:
    assert export.contract_of(runs).cohort == cohort


def test_what_a_run_is_made_of_beside_the_packages_own_stands_on_the_card_and_in_the_contract():
    plain = run_of("run", [0])
    assert "Made of" not in card_of(plain)
    assert not {"code", "weights"} & export.contract_of([plain]).training[0].keys()
    code: list[dict[str, Any]] = [
        {"function": "net:f", "sha256": "a" * 64, "imports": {"medicai": "0.0.4"}},
        {"function": "einops:g", "sha256": "b" * 64, "package": "einops", "version": "0.8"},
    ]
    weights = [{"setting": "weights", "file": "s3://ours/start.keras", "sha256": "c" * 64}]
    own = dataclasses.replace(plain, code=tuple(code), weights=tuple(weights))
    card = card_of(plain, own)
    assert "- Run 2: `net:f` (source sha256 `aaaaaaaaaaaa`, with medicai 0.0.4)" in card
    assert "- Run 2: `einops:g` (einops 0.8, source sha256 `bbbbbbbbbbbb`)" in card
    assert "- Run 2 started from start.keras (sha256 `cccccccccccc`)" in card
    told = export.contract_of([own]).training[0]
    assert told["code"] == code
    assert told["weights"] == [{**weights[0], "file": "start.keras"}]
