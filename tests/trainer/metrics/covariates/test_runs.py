"""A whole run where age decides and images say nothing: every reader of its score is told so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.datasets import AGE_AND_SITE, TARGETS, write_dataset
from trainer.evaluate import main as evaluate
from trainer.task import main as train
from trainer.training.run_files import Run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("multiclass", ("--covariates", "none")),
        ("regression", ("--permute_labels",)),
        ("binary", ("--fold", "1")),
    ],
)
def test_a_run_keeps_and_tells_what_covariates_alone_say(
    tmp_path: Path, task: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    write_dataset(
        data,
        patients=36,
        shape=(10, 10, 10),
        modalities=("A",),
        signal=0.0,
        target=TARGETS[task],
        covariates=AGE_AND_SITE,
    )
    folds = () if "--fold" in options else ("--cross_validate",)
    argv = ["--data", str(data), "--output_dir", str(run), "--epochs", "1", "--width", "0.25"]
    assert train([*argv, *folds, *options]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "covariates alone: " in told
    with (run / "covariates_predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (run / "oof_predictions.csv").open(newline="") as stream:
        own = list(csv.DictReader(stream))
    cells = ("patient_id", "label", "fold")
    assert {tuple(row[name] for name in cells) for row in rows} == {
        tuple(row[name] for name in cells) for row in own
    }
    found = json.loads((run / "metrics.json").read_text())
    said = found["covariates_alone"]["said"]
    assert found["reading"][-1].endswith(said)
    assert said in " ".join((run / "report.html").read_text().replace("&#39;", "'").split())
    if "--permute_labels" in options:
        assert "of permuted labels" in said
        assert {row["no_claim"] for row in rows} == {"permuted"}
    else:
        assert found["covariates_alone"]["estimate"]["better_than_chance"]
        assert said.endswith(("they may have learnt no more.", "less than covariates do."))
    assert Run.load(run).schema.covariates == AGE_AND_SITE

    alone = str(run / "covariates_predictions.csv")
    assert evaluate(["--predictions", str(run / "oof_predictions.csv"), alone]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "against covariates_predictions: " in out
    assert f"covariates alone: {said}" in out

    before = (run / "covariates_predictions.csv").read_bytes()
    (run / "covariates_predictions.csv").unlink()
    assert train([*argv, *folds, *options, "--overwrite"]) == 0
    assert (run / "covariates_predictions.csv").read_bytes() == before
