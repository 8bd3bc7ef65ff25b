"""Training one fold: batches in, networks of some epochs and their held-out predictions out.

An epoch learns from every training patient once, predicts the held-out fold whole, keeps the
network where the epoch is a candidate, and saves what a restart needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.terminal import row
from beam_jobs.core.cohort.target import Label, Target
from beam_jobs.core.manifest import Manifest
from trainer.config.run import TrainConfig
from trainer.config.run_layout import FOLD_STATE_NAME, file_name, history_columns, member_name
from trainer.data.records import Records, contract_error, open_records
from trainer.data.split import folds_in_use
from trainer.data.targets import targets_of
from trainer.metrics.epoch_choice import candidate_epochs
from trainer.metrics.tasks.measure import Measure, measure_of
from trainer.networks.registry import rebuilt_model
from trainer.networks.stored import load_network, read_weights
from trainer.training.checkpoint import FoldState, candidate, load_state, save_network, save_state
from trainer.training.environment import Cluster, Pace, RunDirectories
from trainer.training.epoch import Batch, FirstSteps, Learnt, Validated, learn, validate
from trainer.training.fold_result import FoldResult, HeldOutLogits
from trainer.training.optimization import class_weights
from trainer.training.predict_fold import inference, predict
from trainer.training.step import FoldSetup, Trainee
from trainer.training.tensorboard_log import Journal


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What all folds of a run share.

    Attributes:
      config: resolved (its modalities are named).
      data: the dataset's address.
      manifest: the dataset's.
      labels: replaces the records' labels (label permutation).
      directories: where the run writes.
      precision: a policy, not "auto".
      cluster: the processes that train together.
      strategy: their devices.
      cache: how records are kept between epochs.
      code: identities of the user's functions that the config names.
      tell: gets the run's pace, by the first steps of its first member.
      weights: the files that networks start from.
      said: rows that were printed: each member would say the same.
    """

    config: TrainConfig
    data: str
    manifest: Manifest
    labels: Mapping[str, Label] | None
    directories: RunDirectories
    precision: str
    cluster: Cluster
    strategy: tf.distribute.Strategy
    cache: str = "auto"
    code: tuple[Mapping[str, Any], ...] = ()
    tell: Callable[[Pace], object] | None = None
    weights: tuple[Mapping[str, str], ...] = ()
    said: set[tuple[str, str]] = dataclasses.field(default_factory=set)

    def say(self, rows: Iterable[tuple[str, str]]) -> None:
        """Prints rows that the run has not printed yet."""
        for name, text in rows:
            if (name, text) not in self.said and self.cluster.is_chief:
                self.said.add((name, text))
                row(name, text)

    @property
    def target(self) -> Target:
        """What the labels say."""
        return self.manifest.schema.target

    @property
    def candidates(self) -> tuple[int, ...]:
        """Epochs whose networks are kept until all folds are done."""
        epochs = self.config.epochs
        return candidate_epochs(epochs) if self.config.epoch_choice == "crossfit" else (epochs,)

    @property
    def request(self) -> str:
        """Identifies this run's states."""
        told = [self.config.to_json(), self.manifest.dataset_fingerprint, self.precision]
        text = json.dumps([*told, *self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def train_fold(setup: RunSetup, *, fold: int, seed: int, later: int = 0) -> FoldResult | None:
    """Trains one network on all folds but one, and predicts that one at each candidate epoch.

    Resumes where an earlier start was stopped; a fold that is done is read, not trained.

    Args:
      setup: what all folds share.
      fold: held out.
      seed: of this member.
      later: members that are trained after this one, for an estimate of the time that is left.

    Returns:
      None on hosts that are not the chief.

    Raises:
      ContractError: shards or records are not what the manifest says.
      FloatingPointError: training diverged.
    """
    name = member_name(setup.config, fold, seed)
    left = setup.directories.checkpoints / name / FOLD_STATE_NAME
    done = FoldResult.load(setup.directories.run / name, setup.target) or _train_fold(
        setup, name=name, fold=fold, seed=seed, later=later
    )
    if setup.cluster.is_chief:
        left.unlink(missing_ok=True)
    return done


def _train_fold(
    setup: RunSetup, *, name: str, fold: int, seed: int, later: int
) -> FoldResult | None:
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(setup.precision)
    in_use = folds_in_use(setup.manifest, setup.config.outer_fold)
    others = [other for other in in_use if other != fold]
    try:
        with _records(setup, others) as training, _records(setup, [fold]) as held_out:
            trainee = _trainee(setup, training, seed=seed)
            setup.say(trainee.rows)
            if not setup.cluster.is_chief:
                _train(setup, trainee, training, held_out, None, name=name, seed=seed)
                return None
            with contextlib.closing(_Books(setup, name=name, later=later)) as books:
                state = _train(setup, trainee, training, held_out, books, name=name, seed=seed)
                return _finish(books, trainee, state, held_out, fold=fold, seed=seed)
    except tf.errors.OpError as error:
        refusal = contract_error(error, data=setup.data, manifest=setup.manifest)
        if refusal is not None:
            raise refusal from error
        raise


def _train(
    setup: RunSetup,
    trainee: Trainee,
    training: Records,
    held_out: Records,
    books: _Books | None,
    *,
    name: str,
    seed: int,
) -> FoldState:
    """Trains the epochs that are missing. The chief alone validates and keeps books."""
    config, hosts = setup.config, len(setup.cluster.workers)
    infer = inference(trainee.evaluated)
    state = FoldState() if books is None else books.resume(trainee)
    if hosts > 1:
        trainee.share_state()
        state.epoch = int(trainee.from_chief([np.array(state.epoch)])[0])
    begun = time.perf_counter() - state.seconds
    batches: Iterator[Batch] = iter(())
    if state.epoch < config.epochs:
        batches = iter(
            training.training_batches(
                batch_size=config.batch_size,
                seed=seed,
                epochs=config.epochs,
                first_epoch=state.epoch,
                part=(setup.cluster.index, hosts),
            )
        )
    stepped = None
    if setup.tell is not None and books is not None and not state.epoch:
        stepped = FirstSteps(
            members=books.journal.later + 1,
            epochs=config.epochs,
            candidates=len(books.candidates),
            steps=trainee.setup.steps_per_epoch,
            predictions=math.ceil(held_out.count / config.batch_size),
            infer=infer,
            tell=setup.tell,
        )
    while state.epoch < config.epochs:
        epoch_begun = time.perf_counter()
        label = f"{name}, epoch {state.epoch + 1}"
        learnt = learn(
            trainee,
            batches,
            epoch=state.epoch,
            patients=training.count,
            label=label,
            shown=books is not None,
            picture=books.journal.picture if books and state.epoch == 0 else None,
            stepped=stepped,
        )
        network = trainee.settle()
        if books is None:
            state.epoch += 1
        else:
            validated = validate(trainee, infer, held_out, label=label)
            now = time.perf_counter()
            seconds = {"epoch_seconds": now - epoch_begun, "seconds": now - begun}
            _note(state, learnt, validated, measure_of(setup.target), **seconds)
            books.keep(state, trainee, network)
    return state


def _note(
    state: FoldState,
    learnt: Learnt,
    validated: Validated,
    measure: Measure,
    *,
    epoch_seconds: float,
    seconds: float,
) -> None:
    """Takes an epoch into the state."""
    state.epoch += 1
    state.seconds = seconds
    row = {
        "epoch": state.epoch,
        **learnt._asdict(),
        "val_loss": validated.loss,
        f"val_{measure.name}": validated.score,
        "epoch_seconds": epoch_seconds,
    }
    state.history.append({column: row[column] for column in history_columns(measure.name)})


class _Books:
    """What the chief writes of one member while it trains."""

    def __init__(self, setup: RunSetup, *, name: str, later: int) -> None:
        directories = setup.directories
        self.candidates, self.push = setup.candidates, directories.push
        self.directory = directories.run / name
        self._states, self._request = directories.checkpoints / name, setup.request
        self._file, self.target = file_name(setup.config), setup.target
        for directory in (self.directory, self._states):
            directory.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(
            name=name,
            directory=self.directory,
            logs=directories.logs / name,
            epochs=setup.config.epochs,
            later=later,
            target=setup.target,
        )

    def close(self) -> None:
        self.journal.close()

    def candidate(self, epoch: int) -> Path:
        """Where the network of an epoch lies that may become the member."""
        return candidate(self.directory, epoch, name=self._file)

    def resume(self, trainee: Trainee) -> FoldState:
        """The state of an earlier start, restored; a new one where there was none."""
        columns = history_columns(measure_of(self.target).name)
        found = load_state(self._states, request=self._request, columns=columns)
        if found is None:
            self.journal.write_history([])
            return FoldState()
        state, arrays = found
        try:
            trainee.restore(arrays)
        except ValueError as error:
            file = self._states / FOLD_STATE_NAME
            raise ContractError(f"{file}: {error}; delete it to begin the fold anew") from error
        self.journal.say(f"resumes after epoch {state.epoch}")
        self.journal.write_history(state.history)
        return state

    def keep(self, state: FoldState, trainee: Trainee, network: keras.Model) -> None:
        """Saves an epoch, then reports it."""
        if state.epoch in self.candidates:
            save_network(network, self.candidate(state.epoch))
        save_state(self._states, state, trainee.state(), request=self._request)
        self.push()
        self.journal.write_history(state.history)
        self.journal.log(state.history)


def _finish(
    books: _Books,
    trainee: Trainee,
    state: FoldState,
    held_out: Records,
    *,
    fold: int,
    seed: int,
) -> FoldResult:
    """Predicts with the candidates' networks, read back from their files."""
    answers = []
    for epoch in books.candidates:
        network = _read_back(trainee, books.candidate(epoch))
        ids, truth, found = predict(
            inference(network), held_out, batch_size=trainee.config.batch_size
        )
        answers.append(found)
    rows = state.history[1:] or state.history
    measure = measure_of(trainee.setup.target)
    column = f"val_{measure.name}"
    best = max(state.history, key=lambda row: (row[column], -row["val_loss"]))
    result = FoldResult(
        fold=fold,
        seed=seed,
        epochs=books.candidates,
        optimistic={"epoch": best["epoch"], measure.key: best[column]},
        step_seconds=statistics.median(row["step_seconds"] for row in rows),
        input_wait=statistics.median(row["input_wait"] for row in rows),
        seconds=state.seconds,
        held_out=HeldOutLogits(patient_ids=ids, labels=truth, logits=np.array(answers)),
    )
    result.save(books.directory, books.target)
    books.push()
    return result


def _read_back(trainee: Trainee, file: Path) -> keras.Model:
    """A candidate's network from its file."""
    config, schema = trainee.config, trainee.setup.schema
    if not config.network.has_own_code:
        return load_network(file)
    assert config.modalities is not None
    made_of = (config.network, schema.shape, len(config.modalities), schema.dtype)
    model = rebuilt_model(*made_of, target=schema.target, covariates=trainee.setup.covariates)
    read_weights(model, file)
    return model


def _records(setup: RunSetup, folds: Sequence[int]) -> Records:
    assert setup.config.modalities is not None
    return open_records(
        setup.data,
        setup.manifest,
        folds,
        modalities=setup.config.modalities,
        covariates=setup.config.covariates or (),
        labels=setup.labels,
        cache=setup.cache,
    )


def _trainee(setup: RunSetup, training: Records, *, seed: int) -> Trainee:
    """A fresh network for the training folds."""
    config, manifest = setup.config, setup.manifest
    weights = 1.0, 1.0
    if setup.target.task == "binary":
        share = training.labels.sum() / training.count
        weights = class_weights(config.class_weights, float(share))
    return Trainee(
        config,
        FoldSetup(
            schema=manifest.schema,
            voxel_mm=_voxel_mm(manifest),
            precision=setup.precision,
            steps_per_epoch=training.steps(config.batch_size, parts=len(setup.cluster.workers)),
            weights=weights,
            seed=seed,
            target=setup.target,
            covariates=config.chosen(manifest.schema.covariates),
            targets=targets_of(setup.target, training.labels),
            known=training.covariates,
        ),
        strategy=setup.strategy,
        cluster=setup.cluster,
    )


def _voxel_mm(manifest: Manifest) -> tuple[float, float, float]:
    """Size of a voxel along (row, column, slice), from the recipe; cubes of 1 mm without one."""
    fov = manifest.spec.get("fov_mm")
    if not fov:
        return (1.0, 1.0, 1.0)
    row, column, slice_ = (
        float(extent) / n for extent, n in zip(fov, manifest.schema.shape, strict=True)
    )
    return row, column, slice_
