"""Runs of classes, findings and values, exported: what is fitted, said, refused and answered."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import Manifest
from serving import batch_predict, export
from serving.api import load_model
from serving.model.contract import CARD_NAME, load_contract
from serving.model.out_of_fold import OutOfFold
from serving.model.temperatures import Temperatures, fit_temperatures
from tests.commands import outcome
from tests.datasets import AGE_AND_SITE, TARGETS, make_cases, write_cases
from tests.serving.models import (
    PATIENTS,
    schema_of,
    spec_of,
    write_out_of_fold_of_task,
    write_run,
)
from trainer.training.run_files import Run

TASKS = ("multiclass", "multilabel", "regression")


def dataset(directory: Path, task: str) -> Manifest:
    schema = schema_of(spec_of(), target=TARGETS[task], covariates=AGE_AND_SITE)
    cases = make_cases(schema, patients=PATIENTS, folds=2, unlabelled=3)
    return write_cases(directory, cases, schema, folds=2, spec=spec_of())


def run_of(directory: Path, manifest: Manifest, **given: Any) -> Run:
    return write_run(
        directory,
        schema=manifest.schema,
        dataset_fingerprint=manifest.dataset_fingerprint,
        **{"config": {"covariates": ["site", "age"]}, **given},
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_run_becomes_a_model_that_answers_its_dataset(
    task: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = dataset(tmp_path / "data", task)
    run = run_of(tmp_path / "run", manifest)
    answers = write_out_of_fold_of_task(run)
    argv = ["--runs", tmp_path / "run", "--data", tmp_path / "data", "--output", tmp_path / "model"]
    code, out, err = outcome(export.main, argv, capsys, monkeypatch)
    assert (code, err) == (0, "")
    assert "on FLAIR, T1w, T1wCE, site, age" in out
    contract = load_contract(tmp_path / "model")
    assert contract.target == TARGETS[task]
    assert contract.prior == pytest.approx(run.prior)
    assert contract.cohort == {name: pytest.approx(value) for name, value in run.trained_on.items()}
    assert contract.covariates == ("site", "age")
    assert contract.members[0]["val_score"] == 0.6
    truth = [label for _, label, _ in sorted(manifest.patients) if label is not None]
    if task == "regression":
        residuals = np.sort(np.abs(answers - np.array(truth)))
        interval = contract.interval
        assert interval is not None
        assert (interval.n, interval.level) == (PATIENTS, 0.9)
        assert interval.half_width == pytest.approx(residuals[int(np.ceil(41 * 0.9)) - 1])
        assert interval.coverage is not None
        assert "interval    ± " in out
    else:
        evidence = OutOfFold(
            patients=tuple(map(str, range(PATIENTS))),
            labels=np.array(truth, np.int64 if task == "multiclass" else np.float64),
            logits=tuple(row[np.newaxis] for row in answers),
            target=TARGETS[task],
        )
        expected = fit_temperatures(evidence, "logits", None)
        assert isinstance(contract.calibration, Temperatures)
        assert contract.calibration.method == "temperature"
        assert contract.calibration.temperatures == pytest.approx(expected.temperatures)
        assert "calibration temperature" in out
    card = (tmp_path / "model" / CARD_NAME).read_text()
    assert f"{PATIENTS} patients: " in card
    assert "takes site (one of A and B) and age of the patient" in card
    assert "positive" not in card
    given = ["--model", tmp_path / "model", "--input", tmp_path / "data", "--output"]
    code, out, err = outcome(batch_predict.main, [*given, tmp_path / "p.csv"], capsys, monkeypatch)
    assert (code, err) == (0, "")
    assert "not known   a covariate of 6 patients, predicted without" in out
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert len(lines) == PATIENTS + 4
    found = load_model(tmp_path / "model").predict(tmp_path / "data")
    header = lines[0].split(",")[1:]
    rows = [
        ",".join([row[0], *map(str, row[1:])])
        for row in found[["patient_id", *header]].itertuples(index=False)
    ]
    for row, line in zip(sorted(rows), lines[1:], strict=True):
        for one, two in zip(row.split(","), line.split(","), strict=True):
            assert one == two or np.float32(one) == np.float32(two)
    assert sorted(found[found.missing == "site,age"].patient_id) == [
        f"{number:05d}" for number in range(6, 43, 7)
    ]
    # By pattern, with the manifest beside the shards, and as the records' own cases.
    code, _, err = outcome(
        batch_predict.main,
        [*given[:3], tmp_path / "data" / "*.tfrecord", "--output", tmp_path / "q.csv"],
        capsys,
        monkeypatch,
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "q.csv").read_bytes() == (tmp_path / "p.csv").read_bytes()


@pytest.mark.slow
def test_a_mixed_precision_run_of_values_with_covariates_is_served_in_float32(
    tmp_path: Path,
) -> None:
    manifest = dataset(tmp_path / "data", "regression")
    run_of(tmp_path / "run", manifest, precision="mixed_float16")
    argv = ["--runs", tmp_path / "run", "--output", tmp_path / "model"]
    assert export.main([*map(str, argv)]) == 0
    interval = load_contract(tmp_path / "model").interval
    assert interval is not None
    assert (interval.half_width, interval.why) == (None, "run 1 has no oof_predictions.csv")
    found = load_model(tmp_path / "model").predict(tmp_path / "data")
    assert found.low.isna().all()
    assert found.value.between(0, 100).all()


@pytest.mark.parametrize(
    ("other", "config", "message"),
    [
        ("multilabel", {"covariates": ["site", "age"]}, "target.task: 'multiclass' in run .*one, "),
        (
            "multiclass",
            {"covariates": ["age"]},
            r"covariates: \['site', 'age'\] in run .*one, \['age'\]",
        ),
    ],
)
def test_runs_that_do_not_answer_the_same_are_refused_by_field(
    other: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    runs = []
    for name, task, given in (
        ("one", "multiclass", {"covariates": ["site", "age"]}),
        ("two", other, config),
    ):
        schema = schema_of(spec_of(), target=TARGETS[task], covariates=AGE_AND_SITE)
        runs.append(write_run(tmp_path / name, schema=schema, config=given, seeds=(0,)))
    with pytest.raises(ContractError, match=message):
        export.contract_of(runs)


def test_options_of_probabilities_are_refused_of_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = schema_of(spec_of(), target=TARGETS["regression"])
    write_run(tmp_path / "run", schema=schema, seeds=(0,))
    for flag in (("--calibration", "temperature"), ("--ensemble", "probabilities")):
        argv = ["--runs", tmp_path / "run", "--output", tmp_path / "model", *flag]
        code, _, err = outcome(export.main, argv, capsys, monkeypatch)
        assert (code, err.count("\n")) == (2, 1)
        assert "--calibration and --ensemble are for probabilities" in err
