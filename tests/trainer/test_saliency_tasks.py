"""Maps of classes, findings and values, with covariates held as they are: whole commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from beam_jobs.common.cli import UsageError
from beam_jobs.common.csv_table import write_table
from beam_jobs.core.cohort.target import Target
from beam_jobs.core.record import PreparedCase
from tests.datasets import AGE_AND_SITE, TARGETS, make_cases, make_schema, write_cases
from trainer.data.targets import targets_of, truth_of
from trainer.data.trained_on import trained_on
from trainer.explain.cases import logit_of
from trainer.metrics.ensemble import Scored, metrics_of_members
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows
from trainer.saliency import main
from trainer.training.run_files import Member, Run

pytestmark = pytest.mark.slow
SHAPE = (10, 12, 10)


class Made(NamedTuple):
    data: Path
    run: Path
    target: Target
    cases: dict[str, PreparedCase]
    answers: dict[str, Any]  # of the member that held the patient out


def _made(base: Path, task: str) -> Made:
    """A dataset with covariates, and a run of untrained members that answer loudly."""
    import keras

    from trainer.config.network import NetworkConfig
    from trainer.networks.registry import build_model
    from trainer.networks.tasks.statistics import set_statistics

    target = TARGETS[task]
    schema = make_schema(shape=SHAPE, modalities=("A", "B"), target=target, covariates=AGE_AND_SITE)
    cases = make_cases(schema, patients=24, folds=2)
    manifest = write_cases(base / "data", cases, schema, folds=2)
    truth = truth_of(target, [case.label for case in cases])
    known = np.array([case.covariates for case in cases], np.float32)
    members, scored, rows = [], [], []
    answers: dict[str, Any] = {}
    for fold in (0, 1):
        keras.utils.set_random_seed(fold)
        config = NetworkConfig(width=0.25)
        model = build_model(config, SHAPE, 2, "uint8", target=target, covariates=AGE_AND_SITE)
        set_statistics(model, targets_of(target, truth), known)
        kernel = model.get_layer("logit").kernel
        kernel.assign(kernel * 200)  # an untrained network hardly answers
        path = f"fold-{fold}/network.keras"
        (base / "run" / path).parent.mkdir(parents=True)
        model.save(base / "run" / path)
        own = [place for place, case in enumerate(cases) if case.fold == fold]
        volumes = np.stack([cases[place].volume for place in own])
        found = model([volumes, known[own]], training=False).numpy().astype(np.float64)
        given = found[:, 0] if target.outputs == 1 else found
        ids = [cases[place].patient_id for place in own]
        answers |= dict(zip(ids, given, strict=True))
        score = "val_auc" if task == "binary" else "val_score"
        members.append(Member(fold=fold, seed=0, path=path, epoch=1, **{score: 0.5}))
        details = {"epoch": 1, "epochs": 1}
        scored.append(
            Scored(fold=fold, seed=0, patients=ids, labels=truth[own], logits=given,
                   details=details)
        )  # fmt: skip
        rows += oof_rows(target, patient_ids=ids, truth=truth[own], answers=given, fold=fold,
                         seed=0, chosen=(1, "last", ""))  # fmt: skip
    Run(
        directory=str(base / "run"),
        config={"covariates": [one.name for one in AGE_AND_SITE]},
        schema=schema,
        spec=manifest.spec,
        dataset_fingerprint=manifest.dataset_fingerprint,
        modalities=("A", "B"),
        model="seed_cnn",
        members=tuple(members),
        trained_on=trained_on(target, [c.label for c in cases if c.label is not None]),
        trained_ids=tuple(case.patient_id for case in cases),
        epoch_choice="last",
        no_claim=(),
        metrics=metrics_of_members(scored, target),
        precision="float32",
        versions={},
        wall_seconds=1.0,
        step_seconds=0.1,
    ).save()
    write_table(base / "run" / "oof_predictions.csv", oof_columns(target), rows)
    return Made(base / "data", base / "run", target, {c.patient_id: c for c in cases}, answers)


@pytest.fixture(scope="module", params=["binary", "multiclass", "multilabel", "regression"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _made(tmp_path_factory.mktemp(request.param), request.param)


def _explained(made: Made, output: Path, *more: str) -> dict[str, Any]:
    argv = ["--run", str(made.run), "--data", str(made.data), "--output", str(output), *more]
    assert main(argv) == 0
    summary: dict[str, Any] = json.loads((output / "saliency.json").read_text())
    return summary


def test_what_is_explained_is_what_the_run_answered_and_the_map_adds_up(
    made: Made, tmp_path: Path
) -> None:
    """Covariates of every patient, an unknown age among them, are those of the record."""
    summary = _explained(made, tmp_path / "out", "--patients", "1", "6", "9")
    assert summary["covariates"] == ["age", "site"]
    assert np.isnan(made.cases["00006"].covariates[0])
    for patient in summary["patients"]:
        answer = np.atleast_1d(made.answers[patient["patient_id"]])
        name, output = "logit", 0
        if made.target.task == "regression":
            name = "value"
        elif made.target.outputs > 1:
            output = int(answer.argmax())
            kind = "class" if made.target.task == "multiclass" else "finding"
            assert patient[kind] == made.target.names[output]
        several = answer if made.target.outputs > 1 else answer[0]
        expected = float(logit_of(made.target, np.array([several]), output)[0])
        assert patient[name] == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert patient[f"oof_{name}"] == pytest.approx(expected, rel=1e-9)
        assert patient[name] != patient[f"baseline_{name}"]
        assert patient["completeness_gap"] <= max(
            0.05 * abs(patient[name] - patient[f"baseline_{name}"]), 0.01
        )
        assert patient["random_weights"]["rank_correlation"] is not None
    page = (tmp_path / "out" / "saliency.html").read_text()
    assert "(age, site) is held as it is" in page
    if made.target.task == "regression":
        assert "Logit" not in page
        assert f"{made.target.unit} <small>" in page


def test_default_patients_are_explained_by_grad_cam(made: Made, tmp_path: Path) -> None:
    summary = _explained(made, tmp_path / "out", "--method", "gradcam")
    assert 2 <= len(summary["patients"]) <= 8
    assert all(patient["completeness_gap"] is None for patient in summary["patients"])


def test_another_class_or_finding_is_explained_when_it_is_asked_for(
    made: Made, tmp_path: Path
) -> None:
    if made.target.outputs == 1:
        with pytest.raises(UsageError, match="the map has both directions"):
            _explained(made, tmp_path / "out", "--class", "1")
        assert not (tmp_path / "out").exists()
        return
    flag = "--class" if made.target.task == "multiclass" else "--label"
    logits = {}
    for output, name in enumerate(made.target.names):
        summary = _explained(made, tmp_path / name, "--patients", "3", flag, name)
        (patient,) = summary["patients"]
        logits[name] = patient["logit"]
        expected = logit_of(made.target, made.answers["00003"][np.newaxis], output)[0]
        assert patient["logit"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert len(set(logits.values())) == len(logits)
    if made.target.task == "multiclass":
        total = sum(1 / (1 + np.exp(-logit)) for logit in logits.values())
        assert total == pytest.approx(1, abs=1e-3)
