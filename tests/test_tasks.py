"""The whole chain for labels of every task: from DICOM to the verdict, on phantoms.

Each step is the command, run in this process. At toy size it is checked that the pieces fit; what
they are worth is measured at the demo's size, against the same recipe on permuted labels.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from beam_jobs import dicom_to_tfrecord
from beam_jobs.phantoms.cohort import write_cohort
from beam_jobs.phantoms.labels import FINDINGS
from beam_jobs.phantoms.plan import PhantomConfig
from serving import batch_predict, export
from trainer import baseline, evaluate, task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """A cohort's labels and what is expected of the chain.

    Attributes:
      task: of the phantoms.
      columns: of the labels' CSV.
      convert: further flags of the conversion.
      answers: columns of predictions behind the id.
      measure: of the metrics.
      chance: of the measure.
      covariates: whether age, sex and site are known, and tell the label.
    """

    task: str
    columns: tuple[str, ...]
    convert: tuple[str, ...] = ()
    answers: tuple[str, ...]
    measure: str
    chance: float = 0.5
    covariates: bool = False


CHAINS = {
    "classes": Chain(
        task="multiclass",
        columns=("lesion",),
        answers=("class", "probability_halo", "probability_ring", "probability_solid"),
        measure="macro_auc",
    ),
    "findings": Chain(
        task="multilabel",
        columns=FINDINGS,
        answers=("probability_necrosis", "probability_edema"),
        measure="mean_auc",
    ),
    "values": Chain(
        task="regression",
        columns=("diameter_mm",),
        convert=("--label_unit", "mm"),
        answers=("value", "low", "high"),
        measure="spearman",
        chance=0.0,
    ),
    "findings and covariates": Chain(
        task="multilabel",
        columns=FINDINGS,
        convert=("--covariate_columns", "age,sex,site"),
        answers=("probability_necrosis", "probability_edema"),
        measure="mean_auc",
        covariates=True,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """What a chain has written."""

    cohort: Path
    data: Path
    run: Path
    model: Path
    answers: Path
    verdict: Path


def converted(chain: Chain, places: Places, phantoms: PhantomConfig, *flags: str) -> None:
    write_cohort(
        dataclasses.replace(phantoms, task=chain.task, covariates=chain.covariates),
        places.cohort,
        workers=1,
    )
    argv = ["--input", str(places.cohort / "train"), "--output", str(places.data)]
    argv += ["--labels", str(places.cohort / "train_labels.csv"), "--no_report"]
    argv += ["--label_column", *chain.columns, *chain.convert, *flags]
    if chain.covariates:
        argv += ["--covariates", str(places.cohort / "covariates.csv")]
    assert dicom_to_tfrecord.main(argv) == 0


def trained(places: Places, *flags: str, run: Path | None = None) -> dict[str, Any]:
    """metrics.json of a cross-validated run."""
    run = run or places.run
    argv = ["--data", str(places.data), "--output_dir", str(run), "--cross_validate"]
    assert task.main([*argv, "--model", "seed_cnn", "--precision", "float32", *flags]) == 0
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def judged(chain: Chain, places: Places) -> dict[str, Any]:
    """Exported, predicted from the DICOM of new patients, and held against their labels."""
    argv = ["--runs", str(places.run), "--data", str(places.data), "--output", str(places.model)]
    assert export.main(argv) == 0
    argv = ["--model", str(places.model), "--input", str(places.cohort / "test")]
    argv += ["--ids", str(places.cohort / "sample_submission.csv")]
    if chain.covariates:
        argv += ["--covariates", str(places.cohort / "covariates.csv")]
    assert batch_predict.main([*argv, "--output", str(places.answers)]) == 0
    argv = ["--predictions", str(places.answers), "--run", str(places.run)]
    argv += ["--labels", str(places.cohort / "truth" / "test_labels.csv")]
    argv += ["--label_column", *chain.columns, "--output", str(places.verdict)]
    assert evaluate.main(argv) == 0
    found: dict[str, Any] = json.loads((places.verdict / "metrics.json").read_text())
    return found


def places_in(directory: Path) -> Places:
    names = ("cohort", "data", "run", "model", "verdict")
    return Places(**{name: directory / name for name in names}, answers=directory / "answers.csv")


TOY = PhantomConfig(
    patients=12, test_patients=6, matrix=(16, 16), slices=(8, 8), modalities=("T1wCE",)
)


@pytest.mark.parametrize("name", ["classes", "values", "findings and covariates"])
def test_from_dicom_to_the_verdict(name: str, tmp_path: Path) -> None:
    chain, places = CHAINS[name], places_in(tmp_path)
    small = (
        "--shape",
        "10,10,10",
        "--modalities",
        "T1wCE",
        "--folds",
        "2",
        "--patients_per_shard",
        "6",
    )
    converted(chain, places, TOY, *small)
    found = trained(places, "--epochs", "1", "--width", "0.25", "--batch_size", "6")
    assert (found["task"], found["measure"], found["n"]) == (chain.task, chain.measure, 12)
    low, high = found["interval"]
    assert low <= found["score"] <= high
    verdict = judged(chain, places)
    assert (verdict["measure"], verdict["n"]) == (chain.measure, 6)
    answers = pd.read_csv(places.answers)
    assert list(answers)[1:] == list(chain.answers)
    assert len(answers) == 6
    assert (places.run / "report.html").exists()
    assert (places.verdict / "report.html").exists()
    probabilities = answers.filter(like="probability_")
    if chain.task == "multiclass":
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    contract = json.loads((places.model / "assets" / "contract.json").read_text())
    assert contract["schema"]["version"] == 2
    known = [one["name"] for one in contract["schema"].get("covariates", [])]
    assert known == ["age", "sex", "site"] * chain.covariates


DEMO = PhantomConfig(
    patients=90,
    test_patients=30,
    seed=1,
    matrix=(40, 48),
    slices=(16, 20),
    modalities=("FLAIR",),
)
FOLDS = ("--folds", "3", "--patients_per_shard", "10")
LEARNT = ("--epochs", "16", "--learning_rate", "2e-3", "--batch_size", "6", "--seed", "1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["classes", "findings", "values"])
def test_lesions_are_learnt_and_permuted_labels_are_not(name: str, tmp_path: Path) -> None:
    chain, places = CHAINS[name], places_in(tmp_path)
    converted(chain, places, DEMO, "--shape", "24,24,16", "--modalities", "FLAIR", *FOLDS)
    found = trained(places, *LEARNT)
    permuted = trained(places, *LEARNT, "--permute_labels", run=tmp_path / "permuted")
    assert found["better_than_chance"]
    assert found["score"] > permuted["score"] + 0.15
    assert permuted["interval"] is None  # no claim is made of permuted labels
    assert abs(permuted["score"] - chain.chance) < 0.2
    verdict = judged(chain, places)
    assert verdict["score"] > chain.chance + 0.1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_network_that_has_only_learnt_age_is_found_out(tmp_path: Path) -> None:
    chain, places = CHAINS["findings and covariates"], places_in(tmp_path)
    converted(chain, places, DEMO, "--shape", "24,24,16", "--modalities", "FLAIR", *FOLDS)
    images = trained(places, *LEARNT, "--covariates", "none", run=tmp_path / "images")
    assert not images["better_than_chance"]
    found = trained(places, *LEARNT)
    assert (places.run / "covariates_predictions.csv").exists()
    argv = ["--data", str(places.data), "--output_dir", str(tmp_path / "alone")]
    assert baseline.main([*argv, "--covariates_only"]) == 0
    argv = ["--predictions", str(places.run / "oof_predictions.csv")]
    argv += [str(tmp_path / "alone" / "oof_predictions.csv"), "--output", str(places.verdict)]
    assert evaluate.main(argv) == 0
    (other,) = json.loads((places.verdict / "metrics.json").read_text())["comparisons"]
    assert other["other_score"] > 0.95  # age tells all of it
    assert 0.9 < found["score"] <= other["other_score"] + 0.01
