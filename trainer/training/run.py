"""A whole run: every member trained, the out-of-fold predictions and run.json written."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import quiet_tensorflow
from beam_jobs.common.csv_table import write_table
from beam_jobs.core.manifest import Manifest
from trainer.config.run import TrainConfig
from trainer.config.run_layout import OOF_COLUMNS, OOF_NAME
from trainer.data.split import labels_of, permuted_labels
from trainer.metrics.ensemble import Scored, metrics_of_members, pooled
from trainer.metrics.logits import sigmoid
from trainer.training.environment import Cluster, RunDirectories
from trainer.training.run_files import Member, Run

if TYPE_CHECKING:
    from trainer.training.fold_result import FoldResult


def train(
    config: TrainConfig,
    data: str,
    manifest: Manifest,
    folds: Sequence[int],
    directories: RunDirectories,
    cluster: Cluster,
    *,
    cache: str = "auto",
) -> Run | None:
    """Trains the members, writes the out-of-fold predictions, then run.json.

    Args:
      config: resolved.
      data: the dataset's address.
      manifest: the dataset's.
      folds: those to hold out.
      directories: claimed for this run.
      cluster: the processes that train together; all but the chief write nothing and get None.
      cache: how records are kept between epochs.

    Raises:
      ContractError: the dataset is not what its manifest says.
      FloatingPointError: training diverged.
    """
    quiet_tensorflow()
    # TensorFlow: seconds, only from here on
    from trainer.data.records import open_records
    from trainer.training.devices import prepare_devices, resolve_precision
    from trainer.training.fold import RunSetup, train_fold

    strategy = prepare_devices(cluster, seed=config.seed)
    setup = RunSetup(
        config=config,
        data=data,
        manifest=manifest,
        labels=permuted_labels(manifest, config.seed) if config.permute_labels else None,
        directories=directories,
        precision=resolve_precision(config.precision),
        cluster=cluster,
        strategy=strategy,
        cache=cache,
    )
    assert config.modalities is not None
    # Held open around all members: they share what is cached, and a store is read once.
    with open_records(
        data, manifest, range(manifest.folds), modalities=config.modalities, cache=cache
    ):
        members = [(fold, seed) for seed in config.seeds for fold in folds]
        made = [
            train_fold(setup, fold=fold, seed=seed, later=len(members) - place)
            for place, (fold, seed) in enumerate(members, 1)
        ]
    results = [result for result in made if result is not None]
    if not cluster.is_chief:
        return None
    _write_predictions(directories.run / OOF_NAME, results)
    return _finish(setup.precision, config, manifest, folds, directories, results)


def _finish(
    precision: str,
    config: TrainConfig,
    manifest: Manifest,
    folds: Sequence[int],
    directories: RunDirectories,
    results: Sequence[FoldResult],
) -> Run:
    """Writes run.json."""
    trained_on = [
        label
        for patient_id, label in labels_of(manifest).items()
        if len(folds) > 1 or patient_id not in results[0].held_out.patient_ids
    ]
    assert config.modalities is not None
    finished = Run(
        directory=str(directories.run),
        config=config.to_json(),
        schema=manifest.schema,
        spec=manifest.spec,
        dataset_fingerprint=manifest.dataset_fingerprint,
        modalities=config.modalities,
        model=config.network.name,
        members=tuple(
            Member(
                fold=result.fold,
                seed=result.seed,
                path=result.path,
                best_epoch=result.best_epoch,
                val_auc=result.val_auc,
            )
            for result in results
        ),
        prevalence=sum(trained_on) / len(trained_on),
        metrics=_metrics(results),
        precision=precision,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
        },
        wall_seconds=round(sum(result.seconds for result in results), 3),
        step_seconds=round(float(np.median([result.step_seconds for result in results])), 5),
        input_wait=round(float(np.median([result.input_wait for result in results])), 5),
    )
    finished.save()
    return finished


def _metrics(results: Sequence[FoldResult]) -> dict[str, Any]:
    """All held-out patients, each seed and fold, and the last epochs, which were not chosen."""

    def scored(result: FoldResult, logits: npt.NDArray[np.float64]) -> Scored:
        return Scored(
            fold=result.fold,
            seed=result.seed,
            patients=result.held_out.patient_ids,
            labels=result.held_out.labels,
            logits=logits,
            details={"best_epoch": result.best_epoch, "epochs": result.epochs},
        )

    return {
        **metrics_of_members([scored(result, result.held_out.logits) for result in results]),
        "last_epoch": pooled([scored(result, result.held_out.last_logits) for result in results]),
    }


def _write_predictions(file: Path, results: Sequence[FoldResult]) -> None:
    """oof_predictions.csv."""
    rows: list[tuple[Any, ...]] = []
    for result in results:
        held_out = result.held_out
        columns = (held_out.labels, held_out.logits, sigmoid(held_out.logits))
        rows += [
            (patient_id, label, result.fold, result.seed, logit, probability)
            for patient_id, label, logit, probability in zip(
                held_out.patient_ids, *(column.tolist() for column in columns), strict=True
            )
        ]
    write_table(file, OOF_COLUMNS, rows)
