"""Tiny runs for tests of serving: untrained networks, written as the trainer leaves them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from beam_jobs.common.contract_json import fingerprint
from beam_jobs.common.csv_table import write_table
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Label, Target
from beam_jobs.core.record import RecordSchema
from serving.model.calibration import Calibration
from serving.model.contract import Contract
from serving.model.temperatures import Interval, Temperatures
from tests.datasets import AGE_AND_SITE, make_cases, make_metrics
from trainer.config.run_layout import NETWORK_NAME, OOF_COLUMNS
from trainer.data.targets import targets_of, truth_of
from trainer.data.trained_on import trained_on as numbers_of
from trainer.metrics.ensemble import Scored, metrics_of_members
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows
from trainer.networks.tasks.layers import Covariates, Value
from trainer.networks.tasks.statistics import set_statistics
from trainer.training.run_files import Member, Run

ROOT = Path(__file__).resolve().parents[2]
MODALITIES = ("FLAIR", "T1w", "T1wCE")
SHAPE = (6, 5, 4)
PATIENTS = 40  # of a task's run


def spec_of(**changes: Any) -> dict[str, Any]:
    """A recipe made up for tests, with some fields changed."""
    return {"shape": list(SHAPE), "modalities": list(MODALITIES), "dtype": "uint8", **changes}


def schema_of(
    spec: dict[str, Any], *, target: Target = PLAIN, covariates: Sequence[Covariate] = ()
) -> RecordSchema:
    """The schema of volumes that `spec` makes."""
    return RecordSchema(
        modalities=spec["modalities"],
        shape=spec["shape"],
        dtype=spec["dtype"],
        spec_fingerprint=fingerprint(spec),
        target=target,
        covariates=tuple(covariates),
    )


def network(
    schema: RecordSchema, channels: int, seed: int, covariates: Sequence[Covariate] = ()
) -> keras.Model:
    """A network whose answers differ from volume to volume by far more than rounding.

    Covariates, where it takes some, are encoded and joined as the trainer's networks do it; a value
    is 20 and more in the label's unit.
    """
    keras.utils.set_random_seed(seed)
    volume = keras.Input((*schema.shape, channels), dtype=schema.dtype)
    x = keras.layers.Rescaling(1 / 64, dtype="float32")(volume)
    x = keras.layers.Conv3D(8, 3, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Flatten()(x)
    inputs: Any = volume
    if covariates:
        given = keras.Input((len(covariates),), dtype="float32")
        known = Covariates([len(one.categories) for one in covariates])(given)
        x, inputs = keras.layers.Concatenate(dtype="float32")([x, known]), [volume, given]
    answer = keras.layers.Dense(schema.target.outputs, dtype="float32")(x)
    if schema.target.task == "regression":
        answer = Value()(answer)
    model = keras.Model(inputs, answer)
    if schema.target.task == "regression" or covariates:
        ages = np.array([[50.0] * len(covariates), [70.0] * len(covariates)])
        set_statistics(model, np.array([[20.0], [26.0]]), ages)
    return model


def task_contract(target: Target, **changes: Any) -> Contract:
    """A contract of two members that look at one channel and at both covariates."""
    fields: dict[str, Any] = {
        "schema": schema_of(spec_of(), target=target, covariates=AGE_AND_SITE),
        "spec": spec_of(),
        "modalities": ("T1wCE",),
        "covariates": ("site", "age"),
        "members": tuple(
            {**dict.fromkeys(("fold", "seed", "epoch"), n), "run": "1", "model": "tiny"}
            | {"epoch_choice": "last", "precision": "float32"}
            | {"val_auc" if target.task == "binary" else "val_score": 0.6}
            for n in range(2)
        ),
        "ensemble": "logits",
        "calibration": Calibration() if target.task == "binary" else Temperatures(),
        "prior": (0.25,) * target.outputs,
        "cohort": {},
        "training": (
            {
                **{"run": "1", "dataset_fingerprint": "0", "no_claim": [], "said": "score 0.7"},
                **{"trained_on": {"patients": 40}, "metrics": {"n": 40, "folds": [{"n": 20}]}},
            },
        ),
        "versions": {},
    }
    if target.task == "regression":
        fields["interval"] = Interval(level=0.9, half_width=2.5, n=40, coverage=0.9)
    return Contract(**{**fields, **changes})


def write_run(
    directory: Path,
    *,
    spec: dict[str, Any] | None = None,
    schema: RecordSchema | None = None,
    modalities: Sequence[str] = MODALITIES,
    seeds: Sequence[int] = (0, 1),
    trained_on: tuple[int, int] = (100, 52),
    precision: str = "float32",
    dataset_fingerprint: str = "0" * 64,
    config: dict[str, Any] | None = None,
    no_claim: tuple[str, ...] = (),
) -> Run:
    """Writes a finished run with one untrained member a seed, which held out fold 0, 1, ...

    Of a schema with other labels than 0 and 1 it was trained on 40 patients of `make_cases`; the
    members take the covariates that `config` names.
    """
    spec = spec_of() if spec is None else spec
    schema = schema_of(spec) if schema is None else schema
    members = []
    named = {one.name: one for one in schema.covariates}
    taken = [named[name] for name in (config or {}).get("covariates", ())]
    told: dict[str, Any] = {"patients": trained_on[0], "positive": trained_on[1]}
    score, metrics = "val_auc", make_metrics([*enumerate(seeds)])
    if schema.target.task != "binary":
        told, score = numbers_of(schema.target, _labels(schema)), "val_score"
        metrics = _metrics_of_task(schema, seeds)
    for fold, seed in enumerate(seeds):
        path = f"fold-{fold}/{NETWORK_NAME}"
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        keras.config.set_dtype_policy(precision)
        try:
            network(schema, len(modalities), seed, taken).save(directory / path)
        finally:
            keras.config.set_dtype_policy("float32")
        members.append(Member(fold=fold, seed=seed, path=path, epoch=3, **{score: 0.6}))
    run = Run(
        directory=str(directory),
        config=config or {},
        schema=schema,
        spec=spec,
        dataset_fingerprint=dataset_fingerprint,
        modalities=tuple(modalities),
        model="tiny",
        members=tuple(members),
        trained_on=told,
        trained_ids=tuple(map(str, range(told["patients"]))),
        epoch_choice="last",
        no_claim=no_claim,
        metrics=metrics,
        precision=precision,
        versions={},
        wall_seconds=1.0,
        step_seconds=0.1,
    )
    run.save()
    return run


def _labels(schema: RecordSchema) -> list[Label]:
    cases = make_cases(schema, patients=PATIENTS, folds=2)
    return [case.label for case in cases if case.label is not None]


def _answers(schema: RecordSchema, seed: int) -> npt.NDArray[Any]:
    """Of `PATIENTS` patients logits that are too sharp, or values that are off by 2 or so."""
    rng = np.random.default_rng(seed)
    targets = targets_of(schema.target, truth_of(schema.target, _labels(schema)))
    if schema.target.task == "regression":
        values: npt.NDArray[Any] = targets[:, 0] + 2 * rng.normal(size=len(targets))
        return values
    return np.asarray(3.0 * (targets + rng.normal(size=targets.shape)))


def _metrics_of_task(schema: RecordSchema, seeds: Sequence[int]) -> dict[str, Any]:
    truth, target = truth_of(schema.target, _labels(schema)), schema.target
    scored = []
    for fold, seed in enumerate(seeds):
        held = np.arange(PATIENTS) // 4 % 2 == fold
        details = {"epoch": 3, "epochs": 3, "optimistic": {"epoch": 2, "score": 0.8}}
        patients = [f"{number:05d}" for number in np.flatnonzero(held)]
        scored.append(
            Scored(
                fold=fold,
                seed=0,
                patients=patients,
                labels=truth[held],
                logits=_answers(schema, seed)[held],
                details=details,
            )
        )
    return metrics_of_members(scored, target)


def write_out_of_fold_of_task(run: Run) -> npt.NDArray[Any]:
    """oof_predictions.csv of a task's run; what it says, of `PATIENTS` patients in their order."""
    cases = make_cases(run.schema, patients=PATIENTS, folds=2)
    answers = np.zeros(_answers(run.schema, 0).shape)
    rows: list[Any] = []
    for member in run.members:
        held = np.array([case.fold == member.fold for case in cases])
        answers[held] = _answers(run.schema, member.seed)[held]
        rows += oof_rows(
            run.target,
            patient_ids=[case.patient_id for case in cases if case.fold == member.fold],
            truth=truth_of(run.target, [c.label for c in cases if c.fold == member.fold]),
            answers=answers[held],
            fold=member.fold,
            seed=member.seed,
            chosen=(3, "last", ""),
        )
    write_table(Path(run.directory, "oof_predictions.csv"), oof_columns(run.target), rows)
    return answers


def write_out_of_fold(run: Run, *, patients: int, sharpness: float = 3.0) -> None:
    """oof_predictions.csv of patients 00000, ... dealt as `make_cases` does, logits too sharp."""
    rng = np.random.default_rng(1)
    lines = [",".join(OOF_COLUMNS)]
    for number in range(patients):
        label, fold = number % 2, number // 2 % len(run.members)
        logit = sharpness * (rng.normal() + (1.0 if label else -1.0))
        seed = run.members[fold].seed
        probability = 1 / (1 + np.exp(-logit))
        lines.append(f"{number:05d},{label},{fold},{seed},{logit},{probability},3,last,")
    Path(run.directory, "oof_predictions.csv").write_text("\n".join(lines) + "\n")


def python(code: str, *, cwd: Path, path: str = "") -> str:
    """Runs code in a fresh interpreter that sees only `path` beside the installed packages."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
