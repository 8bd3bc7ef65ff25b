"""Small synthetic datasets for tests, straight from numpy: no DICOM, no Beam, no TensorFlow.

`write_dataset(directory)` makes cases and writes them; `write_cases` writes cases of your own.
Both leave what a conversion leaves: shards named by fold, and `manifest.json` written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.common.contract_json import fingerprint
from beam_jobs.core.cohort.covariates import Covariate
from beam_jobs.core.cohort.target import PLAIN, Label, Target, as_value
from beam_jobs.core.example import encode_case
from beam_jobs.core.manifest import MANIFEST_NAME, Manifest, ShardEntry, ShardPatient
from beam_jobs.core.record import PreparedCase, RecordSchema
from beam_jobs.core.tfrecord import write_record
from trainer.metrics.ensemble import Scored, metrics_of_members
from trainer.training.run_files import Member, Run

MODALITIES = ("FLAIR", "T1w", "T1wCE", "T2w")


def make_metrics(
    members: Collection[tuple[int, int]], *, patients: int = 20, no_claim: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Metrics of a run whose members (fold, seed) score so many patients a fold, half positive."""
    labels = np.arange(patients) % 2
    scored = [
        Scored(
            fold=fold,
            seed=seed,
            patients=[f"{fold}-{number}" for number in range(patients)],
            labels=labels,
            logits=labels + 2 * np.random.default_rng([fold, seed]).normal(size=patients),
            details={"epoch": 3, "epochs": 3, "optimistic": {"epoch": 2, "auc": 0.8}},
        )
        for fold, seed in members
    ]
    return metrics_of_members(scored, no_claim=no_claim)


def make_run(directory: Path, **given: Any) -> Run:
    """A run of one member, not saved; `given` are the fields that differ from case to case."""
    return Run(
        directory=str(directory),
        model="seed_cnn",
        members=(Member(fold=0, seed=1, path="fold-0/network.keras", epoch=2, val_auc=0.7),),
        searched_ids=("1", "3"),
        epoch_choice="last",
        no_claim=(),
        metrics=make_metrics([(0, 1)]),
        precision="float32",
        versions={"keras": "3"},
        wall_seconds=1.0,
        step_seconds=0.1,
        **given,
    )


def make_schema(
    *,
    shape: tuple[int, int, int] = (12, 12, 10),
    modalities: tuple[str, ...] = MODALITIES,
    dtype: str = "uint8",
    spec: Mapping[str, Any] | None = None,
    target: Target = PLAIN,
    covariates: tuple[Covariate, ...] = (),
) -> RecordSchema:
    """A schema whose fingerprint is that of `spec` (default: a spec made up from the shape)."""
    spec = spec or {"shape": list(shape), "modalities": list(modalities), "dtype": dtype}
    return RecordSchema(
        modalities=modalities,
        shape=shape,
        dtype=dtype,
        spec_fingerprint=fingerprint(spec),
        target=target,
        covariates=covariates,
    )


# A target a task, for `write_dataset`.
TARGETS = {
    "binary": PLAIN,
    "multiclass": Target(task="multiclass", labels=("grade",), classes=("2", "3", "4")),
    "multilabel": Target(task="multilabel", labels=("edema", "necrosis")),
    "regression": Target(task="regression", labels=("volume",), unit="ml"),
}
AGE_AND_SITE = (Covariate(name="age"), Covariate(name="site", categories=("A", "B")))


def _label_and_brightness(target: Target, index: int, draw: float) -> tuple[Label, float, float]:
    """A patient's label, and how bright (0 to 1) the inner and the outer head are for it.

    Args:
      target: what labels say.
      index: of the patient.
      draw: in 0 .. 1, of a value.
    """
    if target.task == "multiclass":
        label = index % target.outputs
        return label, label / (target.outputs - 1), 0.0
    if target.task == "multilabel":
        found = tuple((index >> place) % 2 for place in range(target.outputs))
        return found, float(found[0]), float(found[1])
    if target.task == "regression":
        return as_value(10 + 20 * draw), draw, 0.0
    return index % 2, float(index % 2), 0.0


def make_cases(
    schema: RecordSchema,
    *,
    patients: int = 24,
    folds: int = 3,
    unlabelled: int = 0,
    signal: float = 1.0,
    seed: int = 0,
) -> list[PreparedCase]:
    """Heads of noise; in positive patients the middle of every channel is brighter.

    Ids are "00000", "00001", ...; labels alternate, and folds hold all classes where they can. The
    second label of a multilabel makes the rim brighter; a value is how bright the middle is. The
    covariate "age" rises with the first label, other covariates are noise; every seventh patient
    lacks one.

    Args:
      schema: grid, channels and dtype of the cases.
      patients: labelled cases.
      folds: folds they are dealt to.
      unlabelled: further cases with neither label nor fold.
      signal: brightness of the positive's middle in units of the noise; 0 gives no signal.
      seed: same seed, same voxels.
    """
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in schema.shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))[..., None]
    top = 1.0 if schema.dtype == "float16" else float(np.iinfo(schema.dtype).max)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    cases = []
    draws = np.random.default_rng([seed, 1])
    block = {"multiclass": schema.target.outputs, "multilabel": 4}.get(schema.target.task, 2)
    for index in range(patients + unlabelled):
        labelled = index < patients
        draw = float(draws.random())
        label, inner, outer = _label_and_brightness(schema.target, index, draw)
        noise = rng.normal(0.4, 0.1, schema.volume_shape)
        bright = noise + 0.1 * signal * inner * (radius < 0.5)
        bright += 0.1 * signal * outer * (radius > 0.7)
        volume = np.clip(np.where(radius < 1.1, bright, 0.0), 0.0, 1.0) * top
        cases.append(
            PreparedCase(
                patient_id=f"{index:05d}",
                volume=volume.astype(schema.dtype),
                affine=affine,
                present=(True,) * len(schema.modalities),
                label=label if labelled else None,
                fold=index // block % folds if labelled else None,
                covariates=tuple(_covariate(one, index, inner, draws) for one in schema.covariates),
            )
        )
    return cases


def _covariate(one: Covariate, index: int, inner: float, draws: np.random.Generator) -> float:
    noise = float(np.float32(draws.random()))
    if index % 7 == 6:
        return float("nan")
    if one.is_number:
        return float(np.float32(50 + 20 * inner * (one.name == "age") + 5 * noise))
    return float(int(noise * len(one.categories)))


def write_cases(
    directory: Path,
    cases: Iterable[PreparedCase],
    schema: RecordSchema,
    *,
    folds: int,
    shards: int = 1,
    spec: Mapping[str, Any] | None = None,
) -> Manifest:
    """Writes a dataset: `shards` files a fold, one for the unlabelled, and the manifest."""
    directory.mkdir(parents=True, exist_ok=True)
    by_fold: dict[int | None, list[PreparedCase]] = {}
    for case in cases:
        by_fold.setdefault(case.fold, []).append(case)
    entries = []
    for fold, members in by_fold.items():
        prefix, count = ("unlabelled", 1) if fold is None else (f"fold-{fold}", shards)
        for part in range(count):
            name = f"{prefix}-{part:05d}-of-{count:05d}.tfrecord"
            chosen = members[part::count]
            with (directory / name).open("wb") as stream:
                for case in chosen:
                    write_record(stream, encode_case(case, schema))
            data = (directory / name).read_bytes()
            entries.append(
                ShardEntry(
                    name=name,
                    fold=fold,
                    bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                    patients=tuple(
                        ShardPatient(patient_id=case.patient_id, label=case.label)
                        for case in chosen
                    ),
                )
            )
    manifest = Manifest(
        schema=schema,
        spec=dict(
            spec
            or {
                "shape": list(schema.shape),
                "modalities": list(schema.modalities),
                "dtype": schema.dtype,
            }
        ),
        folds=folds,
        seed=0,
        id_policy="keep",
        counts={"patients": sum(entry.count for entry in entries)},
        shards=tuple(sorted(entries, key=lambda entry: entry.name)),
    )
    (directory / MANIFEST_NAME).write_text(manifest.dumps())
    return manifest


def write_dataset(
    directory: Path,
    *,
    patients: int = 24,
    folds: int = 3,
    unlabelled: int = 0,
    shape: tuple[int, int, int] = (12, 12, 10),
    modalities: tuple[str, ...] = MODALITIES,
    dtype: str = "uint8",
    signal: float = 1.0,
    seed: int = 0,
    shards: int = 1,
    target: Target = PLAIN,
    covariates: tuple[Covariate, ...] = (),
) -> Manifest:
    """Makes and writes a dataset in one call; see `make_cases` and `write_cases`."""
    spec = {"shape": list(shape), "modalities": list(modalities), "dtype": dtype}
    schema = make_schema(
        shape=shape,
        modalities=modalities,
        dtype=dtype,
        spec=spec,
        target=target,
        covariates=covariates,
    )
    cases = make_cases(
        schema,
        patients=patients,
        folds=folds,
        unlabelled=unlabelled,
        signal=signal,
        seed=seed,
    )
    return write_cases(directory, cases, schema, folds=folds, shards=shards, spec=spec)
