"""For Python users: a dataset as a `tf.data.Dataset`, and a run from a config.

    from trainer.api import TrainConfig, open_records, train

    with open_records("dataset", folds=[1, 2, 3, 4], modalities=["T1wCE"]) as records:
        for batch in records.training_batches(batch_size=8, seed=1, epochs=1):
            print(batch["volume"].shape, batch["label"].numpy().ravel())

    run = train("dataset", "run", TrainConfig(epochs=10, fold=0))
    print(run.metrics["auc"], run.metrics["auc_interval"])

Paths are text or `os.PathLike`: local, `gs://`, `s3://`, `az://`, `https://` (to read).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import CommandError
from beam_jobs.common.contract_json import ContractError, fingerprint
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.common.terminal import say
from beam_jobs.core.cohort.ids import normalised_id
from beam_jobs.core.cohort.patient_column import names_among
from beam_jobs.core.cohort.target import Label
from beam_jobs.core.manifest import read_manifest
from trainer.config.code_identity import CODE, identities
from trainer.config.network import START_FILES
from trainer.config.provenance import (
    PROVENANCE,
    SEARCHED,
    require_same_code,
    split_provenance,
)
from trainer.config.run import TrainConfig
from trainer.config.run_layout import OOF_NAME, RUN_NAME
from trainer.config.start_files import WEIGHTS, start_files
from trainer.data.split import check_folds, folds_to_train
from trainer.search.child_process import train_apart
from trainer.search.outlook import tell_of_run
from trainer.search.permutations import check_permutations, retrain
from trainer.training.claim import claimed, require_this_run
from trainer.training.environment import (
    Pace,
    RunDirectories,
    cluster_of,
    pass_on,
    run_addresses,
)
from trainer.training.run import train as train_members
from trainer.training.run_files import Run

if TYPE_CHECKING:
    from trainer.data.records import Records

__all__ = ["Run", "TrainConfig", "open_records", "train"]


def open_records(
    data: files.StrPath,
    *,
    folds: Iterable[int | None] | None = None,
    modalities: Iterable[str] | None = None,
    covariates: Iterable[str] | None = None,
    labels: Mapping[str, Label] | None = None,
    cache: str = "auto",
) -> Records:
    """Opens a dataset's records for training or evaluation; a context manager.

    Every record is held against the manifest. `training_batches` gives them in an order that
    depends on seed and epoch alone, `evaluation_batches` in shard order; volumes are
    (batch, row, column, slice, channel), as stored.

    Args:
      data: the dataset's directory.
      folds: which to read, None among them for patients without a label. Default: all that have.
      modalities: channels to deliver, in this order. Default: all.
      covariates: to deliver beside the volumes, in this order. Default: all.
      labels: patient_id → label, in place of the records' own.
      cache: between epochs: "memory", "file", "none" or "auto".

    Raises:
      UsageError: no dataset there, or no such cache, fold or modality.
      ContractError: shards or records are not what the manifest says.
      CommandError: a store refuses or fails.
    """
    quiet_tensorflow()
    # TensorFlow: seconds, only from here on
    from trainer.data.records import open_records as open_checked

    manifest = read_manifest(data)
    known = manifest.schema.covariate_names
    wanted = None if covariates is None else names_among(tuple(covariates), known)
    config = TrainConfig(
        modalities=None if modalities is None else tuple(modalities), covariates=wanted
    ).resolve(manifest.schema.modalities, known)
    assert config.modalities is not None
    return open_checked(
        data,
        manifest,
        range(manifest.folds) if folds is None else folds,
        modalities=config.modalities,
        covariates=(config.covariates or ()) if wanted is None else wanted,
        labels=labels,
        cache=cache,
    )


def train(
    data: files.StrPath,
    output_dir: files.StrPath | None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    cache: str = "auto",
    permutations: int = 0,
    processes: int = 1,
    command: Sequence[str] = (),
) -> Run | None:
    """Trains every member of a run and writes its report; what `voxelbeam train` does.

    An interrupted run of the same config is resumed after its last epoch; a finished one is read.

    Args:
      data: the dataset's directory.
      output_dir: of the run; None where Vertex AI's environment says it.
      config: what is to be trained, or its JSON; default `TrainConfig()`. A `fold` is held out
        alone, otherwise each in turn. JSON may carry its provenance: where the run scores patients
        on whom its settings were searched, run.json makes no claim of the scores; `searched_ids`
        there names them for test sets.
      overwrite: replace the run that lies there.
      cache: how records are kept between epochs.
      permutations: whole retrainings on permuted labels after the run itself, those of earlier
        starts among them; all then train in processes of their own.
      processes: retrainings at the same time.
      command: the command line that this is: a run that will take long suggests a smaller one.

    Returns:
      The finished run; None in the processes of a cluster that are not its chief.

    Raises:
      UsageError: no dataset there, a value or a function that cannot be, or `output_dir` holds
        something else.
      ContractError: the dataset is not what its manifest says, another run lies there, or a
        user's function or TensorFlow is not what it was when the run was begun.
      CommandError: training diverged, another process trains this run, or a store fails.
    """
    addresses, cluster = run_addresses(output_dir), cluster_of()
    manifest = read_manifest(data)
    searched_on: frozenset[str] = frozenset()
    told: Mapping[str, Any] = {}
    if not isinstance(config, TrainConfig):
        told = config or {}
        settings, searched_on = split_provenance(told)
        config = TrainConfig.from_json(settings)
    config = config.resolve(manifest.schema.modalities, manifest.schema.covariate_names)
    known = () if overwrite else _known_weights(config, addresses.run)
    weights = start_files(config.network, known)
    quiet_tensorflow()  # which a user's module may import
    code = identities(config.references)
    require_same_code(told, code)
    folds = folds_to_train(manifest, config.fold, config.outer_fold)
    check_folds(manifest)
    scored = {normalised_id(name) for name, _, fold in manifest.patients if fold in folds}
    searched = not scored.isdisjoint(searched_on)
    if permutations or processes < 1:
        check_permutations(
            config, permutations, processes, cluster=len(cluster.workers) > 1, searched=searched
        )

    def tell(pace: Pace) -> None:
        if not pass_on(pace):
            tell_of_run(
                pace,
                fold=folds[0],
                directory=addresses.run,
                permutations=permutations,
                command=command,
            )

    def train_into(directories: RunDirectories) -> None:
        try:
            train_members(
                config,
                files.text(data),
                manifest,
                folds,
                directories,
                cluster,
                cache=cache,
                no_claim=(SEARCHED,) if searched else (),
                searched_ids=searched_on,
                code=code,
                tell=tell,
                weights=weights,
            )
        except FloatingPointError as error:
            raise CommandError(str(error)) from error

    if not cluster.is_chief:
        # It reads which folds are done, and writes nothing.
        if overwrite or not files.exists(files.join(addresses.run, RUN_NAME)):
            run, checkpoints, logs = map(Path, dataclasses.astuple(addresses))
            train_into(RunDirectories(run=run, checkpoints=checkpoints, logs=logs))
        return None
    request: dict[str, Any] = {
        "config": config.to_json(),
        "dataset_fingerprint": manifest.dataset_fingerprint,
    }
    settings = config.to_json()
    if searched_on:
        settings[PROVENANCE] = {"patients": sorted(searched_on)}
        request[PROVENANCE] = fingerprint(settings[PROVENANCE])  # with and without are two runs
    if code:
        request[CODE] = code
        settings[PROVENANCE] = {**settings.get(PROVENANCE, {}), CODE: code}
    if config.network.weights is not None:
        # Those of an encoder are not asked for: runs of versions that did not note them go on.
        request[WEIGHTS] = {
            one["file"]: one["sha256"] for one in weights if one["setting"] == WEIGHTS
        }
    if permutations:
        # TensorFlow keeps a GPU's memory to the end of its process: the run has one of its own.
        if overwrite or not files.exists(files.join(addresses.run, RUN_NAME)):
            if not overwrite:  # the process would refuse it too, and this one say that it ended
                require_this_run(addresses.run, request)
            train_apart(
                *(files.text(data), addresses.run, settings),
                cache=cache,
                overwrite=overwrite,
                tell=tell,
            )
        overwrite = False
    with claimed(addresses, request, overwrite=overwrite) as (directories, finished):
        if not finished:
            train_into(directories)
        elif permutations:
            retrain(
                directories.run,
                config,
                data=files.text(data),
                count=permutations,
                processes=processes,
                cache=cache,
                push=directories.push,
                resumable=not files.is_remote(addresses.run),
                code=code,
            )
        else:
            say(f"{addresses.run} is this very run, finished already; --overwrite trains it again")
        _decide(directories.run)
        _write_report(directories.run, files.text(data))
    return Run.load(addresses.run)


def _known_weights(config: TrainConfig, run: str) -> tuple[Mapping[str, str], ...]:
    """What a finished run has started from; nothing of any other."""
    named = any(getattr(config.network, name) is not None for name in START_FILES)
    if not named or not files.exists(files.join(run, RUN_NAME)):
        return ()
    return Run.load(run).weights


def _decide(directory: Path) -> None:
    """Puts what retrainings on permuted labels decide into run.json, where there are any."""
    # pandas: half a second
    from trainer.metrics.run_facts import decided

    done = Run.load(directory)
    metrics = decided(done.metrics, directory)
    if metrics != done.metrics:
        dataclasses.replace(done, metrics=metrics).save()


def _write_report(directory: Path, data: str) -> None:
    """Writes metrics.json and report.html of a finished run, by scanner and plane if it can."""
    # matplotlib: a second
    from trainer.metrics.predictions import read_predictions
    from trainer.reports.evaluation import write_report

    predictions = read_predictions(directory / OOF_NAME, target=Run.load(directory).target)
    series = files.join(data, "series.csv")
    if files.stat(series) is not None:
        # Its ids may not be those of the records.
        with contextlib.suppress(ContractError), files.fetched(series) as table:
            write_report(directory, predictions, series=table, run=directory)
            return
    write_report(directory, predictions, run=directory)
