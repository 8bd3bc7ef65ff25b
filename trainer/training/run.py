"""A whole run: members trained, epochs chosen, out-of-fold predictions and run.json written."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from beam_jobs.common.cli import UsageError
from beam_jobs.common.csv_table import write_table
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.core.manifest import Manifest
from trainer.config.run import TrainConfig
from trainer.config.run_layout import COVARIATE, OOF_NAME, file_name, member_name
from trainer.config.stack import TENSORFLOW, tensorflow_version
from trainer.data.split import folds_in_use, labels_of, permuted_labels
from trainer.data.trained_on import trained_on
from trainer.metrics.ensemble import Scored, metrics_of_members
from trainer.metrics.epoch_choice import crossfit
from trainer.metrics.tasks.measure import measure_of
from trainer.metrics.tasks.oof_table import oof_columns, oof_rows
from trainer.training.environment import Cluster, Pace, RunDirectories
from trainer.training.run_files import Member, Run

if TYPE_CHECKING:
    from trainer.training.fold import RunSetup
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
    no_claim: Sequence[str] = (),
    searched_ids: Collection[str] = (),
    code: Sequence[Mapping[str, Any]] = (),
    tell: Callable[[Pace], object] | None = None,
    weights: Sequence[Mapping[str, str]] = (),
) -> Run | None:
    """Trains the members, chooses their epochs, writes the out-of-fold predictions, then run.json.

    Args:
      config: resolved.
      data: the dataset's address.
      manifest: the dataset's.
      folds: those to hold out.
      directories: claimed for this run.
      cluster: the processes that train together; all but the chief write nothing and get None.
      cache: how records are kept between epochs.
      no_claim: reason codes for which the scores allow no claim, beside those of the config.
      searched_ids: patients on whom the settings were searched, scored here or not; for run.json.
      code: identities of the user's functions that the config names; for run.json.
      tell: gets the run's pace after its first steps, where it begins and on a CPU.
      weights: the files that networks start from, as `start_files` has them; for run.json.

    Raises:
      UsageError: epochs are to be chosen by other folds, and only one is held out.
      ContractError: the dataset is not what its manifest says.
      FloatingPointError: training diverged.
    """
    if config.epoch_choice == "crossfit" and len(folds) < 2:
        raise UsageError("--epoch_choice crossfit needs at least 2 folds to hold out")
    quiet_tensorflow()
    # TensorFlow: seconds, only from here on
    from trainer.data.records import open_records
    from trainer.training.checkpoint import keep
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
        code=tuple(code),
        weights=tuple(weights),
    )
    assert config.modalities is not None
    # Held open around all members: they share what is cached, and a store is read once.
    in_use = folds_in_use(manifest, config.outer_fold)
    names = manifest.schema.covariate_names
    with open_records(
        data, manifest, in_use, modalities=config.modalities, covariates=names, cache=cache
    ) as every:
        known = dict(
            zip((one.decode() for one in every.patient_ids), every.covariates, strict=True)
        )
        members = [(fold, seed) for seed in config.seeds for fold in folds]
        made = [
            train_fold(
                dataclasses.replace(setup, tell=tell if place == 1 else None),
                fold=fold,
                seed=seed,
                later=len(members) - place,
            )
            for place, (fold, seed) in enumerate(members, 1)
        ]
    if not cluster.is_chief:
        return None
    results = _at_chosen_epochs(setup, [result for result in made if result is not None])
    kept = {directories.run / member_name(config, r.fold, r.seed): r.epochs[0] for r in results}
    keep(kept, directories.push, name=file_name(config))
    reasons = (*no_claim, "permuted") if config.permute_labels else tuple(no_claim)
    _write_predictions(setup, results, reasons, known)
    if manifest.schema.covariates:
        # pandas and scikit-learn: a second
        from trainer.metrics.covariates.against import write_alone

        places = {name: fold for name, _, fold in manifest.patients if fold in in_use}
        write_alone(
            directories.run,
            setup.target,
            manifest.schema.covariates,
            labels=setup.labels or labels_of(manifest),
            folds=places,
            known=known,
            held_out=folds,
            no_claim=reasons,
        )
    return _finish(setup, folds, results, reasons, tuple(sorted(searched_ids)))


def _at_chosen_epochs(setup: RunSetup, results: Sequence[FoldResult]) -> list[FoldResult]:
    """Each member's result at the one epoch whose network is kept."""
    if setup.config.epoch_choice == "last":
        return list(results)
    loss = measure_of(setup.target).loss
    losses: dict[int, list[list[float]]] = {}
    for result in results:
        held_out = result.held_out
        of_candidates = [loss(held_out.labels, answers) for answers in held_out.logits]
        losses.setdefault(result.fold, []).append(of_candidates)
    chosen = crossfit(losses)
    return [result.at(chosen[result.fold]) for result in results]


def _finish(
    setup: RunSetup,
    folds: Sequence[int],
    results: Sequence[FoldResult],
    no_claim: tuple[str, ...],
    searched_ids: tuple[str, ...],
) -> Run:
    """Writes run.json."""
    config, manifest = setup.config, setup.manifest
    in_use = folds_in_use(manifest, config.outer_fold)
    learnt = {
        name: label
        for name, label, own in manifest.patients
        if own in in_use and label is not None and any(fold != own for fold in folds)
    }
    metrics = _metrics(setup, results, no_claim)
    score = measure_of(setup.target).key
    assert config.modalities is not None
    finished = Run(
        directory=str(setup.directories.run),
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
                path=f"{member_name(config, result.fold, result.seed)}/{file_name(config)}",
                epoch=result.epochs[0],
                **{f"val_{score}": of_fold[score]},
            )
            for result, of_fold in zip(results, metrics["folds"], strict=True)
        ),
        trained_on=trained_on(setup.target, list(learnt.values())),
        trained_ids=tuple(learnt),
        searched_ids=searched_ids,
        code=setup.code,
        weights=setup.weights,
        epoch_choice=config.epoch_choice,
        no_claim=no_claim,
        metrics=metrics,
        precision=setup.precision,
        versions={
            "python": platform.python_version(),
            TENSORFLOW: tensorflow_version(),
            **{name: importlib.metadata.version(name) for name in ("keras", "numpy")},
        },
        wall_seconds=round(sum(result.seconds for result in results), 3),
        step_seconds=round(float(np.median([result.step_seconds for result in results])), 5),
        input_wait=round(float(np.median([result.input_wait for result in results])), 5),
    )
    finished.save()
    return finished


def _metrics(
    setup: RunSetup, results: Sequence[FoldResult], no_claim: Sequence[str]
) -> dict[str, Any]:
    """All held-out patients, each seed and each fold."""
    members = [
        Scored(
            fold=result.fold,
            seed=result.seed,
            patients=result.held_out.patient_ids,
            labels=result.held_out.labels,
            logits=result.held_out.logits[0],
            details={
                "epoch": result.epochs[0],
                "epochs": setup.config.epochs,
                "optimistic": result.optimistic,
            },
        )
        for result in results
    ]
    return metrics_of_members(members, target=setup.target, no_claim=no_claim)


def _write_predictions(
    setup: RunSetup,
    results: Sequence[FoldResult],
    no_claim: Sequence[str],
    known: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """oof_predictions.csv; behind its columns the covariates that the networks got.

    Args:
      setup: of the run.
      results: its members'.
      no_claim: reason codes.
      known: patient_id → the record's covariates.
    """
    schema = setup.manifest.schema
    rows: list[tuple[Any, ...]] = []
    for result in results:
        rows += oof_rows(
            setup.target,
            patient_ids=result.held_out.patient_ids,
            truth=result.held_out.labels,
            answers=result.held_out.logits[0],
            fold=result.fold,
            seed=result.seed,
            chosen=(result.epochs[0], setup.config.epoch_choice, "+".join(no_claim)),
        )
    columns = oof_columns(setup.target)
    for one in setup.config.chosen(schema.covariates):
        place = schema.covariate_names.index(one.name)
        columns = (*columns, f"{COVARIATE}{one.name}")
        rows = [(*row, one.text(float(known[row[0]][place]))) for row in rows]
    write_table(setup.directories.run / OOF_NAME, columns, rows)
