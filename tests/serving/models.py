"""Tiny runs for tests of serving: untrained networks, written as the trainer leaves them."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from beam_jobs.common.contract_json import fingerprint
from beam_jobs.core.record import RecordSchema
from tests.datasets import make_metrics
from trainer.config.run_layout import NETWORK_NAME, OOF_COLUMNS
from trainer.training.run_files import Member, Run

ROOT = Path(__file__).resolve().parents[2]
MODALITIES = ("FLAIR", "T1w", "T1wCE")
SHAPE = (6, 5, 4)


def spec_of(**changes: Any) -> dict[str, Any]:
    """A recipe made up for tests, with some fields changed."""
    return {"shape": list(SHAPE), "modalities": list(MODALITIES), "dtype": "uint8", **changes}


def schema_of(spec: dict[str, Any]) -> RecordSchema:
    """The schema of volumes that `spec` makes."""
    return RecordSchema(
        modalities=spec["modalities"],
        shape=spec["shape"],
        dtype=spec["dtype"],
        spec_fingerprint=fingerprint(spec),
    )


def network(schema: RecordSchema, channels: int, seed: int) -> keras.Model:
    """A network whose answers differ from volume to volume by far more than rounding."""
    keras.utils.set_random_seed(seed)
    volume = keras.Input((*schema.shape, channels), dtype=schema.dtype)
    x = keras.layers.Rescaling(1 / 64, dtype="float32")(volume)
    x = keras.layers.Conv3D(8, 3, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(volume, keras.layers.Dense(1, dtype="float32")(x))


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
    """Writes a finished run with one untrained member a seed, which held out fold 0, 1, ..."""
    spec = spec_of() if spec is None else spec
    schema = schema_of(spec) if schema is None else schema
    members = []
    for fold, seed in enumerate(seeds):
        path = f"fold-{fold}/{NETWORK_NAME}"
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        keras.config.set_dtype_policy(precision)
        try:
            network(schema, len(modalities), seed).save(directory / path)
        finally:
            keras.config.set_dtype_policy("float32")
        members.append(Member(fold=fold, seed=seed, path=path, epoch=3, val_auc=0.6))
    run = Run(
        directory=str(directory),
        config=config or {},
        schema=schema,
        spec=spec,
        dataset_fingerprint=dataset_fingerprint,
        modalities=tuple(modalities),
        model="tiny",
        members=tuple(members),
        trained_on={"patients": trained_on[0], "positive": trained_on[1]},
        trained_ids=tuple(map(str, range(trained_on[0]))),
        epoch_choice="last",
        no_claim=no_claim,
        metrics=make_metrics([(member.fold, member.seed) for member in members]),
        precision=precision,
        versions={},
        wall_seconds=1.0,
        step_seconds=0.1,
    )
    run.save()
    return run


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
