"""Training one fold: batches in, the best epoch's network and its held-out predictions out.

An epoch learns from every training patient once, predicts the held-out fold whole, keeps the
network where its exact AUC is the best so far, and saves what a restart needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from beam_jobs.common.contract_json import ContractError
from beam_jobs.core.manifest import Manifest
from trainer.config.run import TrainConfig
from trainer.config.run_layout import BEST_NETWORK_NAME, FOLD_STATE_NAME, LAST_NETWORK_NAME
from trainer.data.records import Records, contract_error, open_records
from trainer.data.split import labels_of
from trainer.metrics.auc import auc
from trainer.training.checkpoint import Checkpoint, FoldState
from trainer.training.environment import Cluster, RunDirectories
from trainer.training.epoch import Batch, Learnt, Validated, learn, validate
from trainer.training.fold_result import FoldResult, HeldOutLogits
from trainer.training.optimization import class_weights
from trainer.training.predict_fold import inference, predict
from trainer.training.step import FoldSetup, Trainee
from trainer.training.tensorboard_log import HISTORY_COLUMNS, Journal


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
    """

    config: TrainConfig
    data: str
    manifest: Manifest
    labels: Mapping[str, int] | None
    directories: RunDirectories
    precision: str
    cluster: Cluster
    strategy: tf.distribute.Strategy
    cache: str = "auto"

    @property
    def request(self) -> str:
        """Identifies this run's states."""
        text = json.dumps(
            [self.config.to_json(), self.manifest.dataset_fingerprint, self.precision],
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()


def member_name(config: TrainConfig, fold: int, seed: int) -> str:
    """The directory of a member within its run."""
    return f"fold-{fold}" if config.repeats == 1 else f"fold-{fold}-seed-{seed}"


def train_fold(setup: RunSetup, *, fold: int, seed: int, later: int = 0) -> FoldResult | None:
    """Trains one network on all folds but one, and predicts that one with its best epoch.

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
    done = FoldResult.load(setup.directories.run / name)
    if done is not None:
        return done
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(setup.precision)
    others = [other for other in range(setup.manifest.folds) if other != fold]
    try:
        with _records(setup, others) as training, _records(setup, [fold]) as held_out:
            trainee = _trainee(setup, others, training, seed=seed)
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
    limits = {"epochs": config.epochs, "patience": config.patience}
    infer = inference(trainee.evaluated)
    state = FoldState() if books is None else books.resume(trainee)
    if hosts > 1:
        trainee.share_state()
        _share(trainee, state)
    begun = time.perf_counter() - state.seconds
    batches: Iterator[Batch] = iter(())
    if not state.stopped(**limits):
        batches = iter(
            training.training_batches(
                batch_size=config.batch_size,
                seed=seed,
                epochs=config.epochs,
                first_epoch=state.epoch,
                part=(setup.cluster.index, hosts),
            )
        )
    while not state.stopped(**limits):
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
        )
        network = trainee.settle()
        if books is None:
            state.epoch += 1
        else:
            validated = validate(trainee, infer, held_out, label=label)
            now = time.perf_counter()
            _note(state, learnt, validated, epoch_seconds=now - epoch_begun, seconds=now - begun)
            books.keep(state, trainee, network)
        if hosts > 1:
            _share(trainee, state)
    return state


def _note(
    state: FoldState,
    learnt: Learnt,
    validated: Validated,
    *,
    epoch_seconds: float,
    seconds: float,
) -> None:
    """Takes an epoch into the state; it is the best so far where its rank is."""
    state.epoch += 1
    is_best = validated.rank > state.best
    if is_best:
        state.best, state.best_epoch = validated.rank, state.epoch
    state.seconds = seconds
    row = {
        "epoch": state.epoch,
        **learnt._asdict(),
        **validated._asdict(),
        "best": int(is_best),
        "epoch_seconds": epoch_seconds,
    }
    state.history.append({column: row[column] for column in HISTORY_COLUMNS})


def _share(trainee: Trainee, state: FoldState) -> None:
    """The chief alone validates: the others take from it how far it is, and so when to stop."""
    own = np.array([state.epoch, state.best_epoch])
    state.epoch, state.best_epoch = trainee.from_chief(own).tolist()


class _Books:
    """What the chief writes of one member while it trains."""

    def __init__(self, setup: RunSetup, *, name: str, later: int) -> None:
        directories = setup.directories
        self.name = name
        self.directory = directories.run / name
        self.checkpoint = Checkpoint(
            directory=self.directory,
            state_directory=directories.checkpoints / name,
            request=setup.request,
            push=directories.push,
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        self.checkpoint.state_directory.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(
            name=name,
            directory=self.directory,
            logs=directories.logs / name,
            epochs=setup.config.epochs,
            later=later,
        )

    def close(self) -> None:
        self.journal.close()

    def resume(self, trainee: Trainee) -> FoldState:
        """The state of an earlier start, restored; a new one where there was none."""
        found = self.checkpoint.load()
        if found is None:
            self.journal.write_history([])
            return FoldState()
        state, arrays = found
        try:
            trainee.restore(arrays)
        except ValueError as error:
            file = self.checkpoint.state_directory / FOLD_STATE_NAME
            raise ContractError(f"{file}: {error}; --overwrite starts the run over") from error
        self.journal.say(f"resumes after epoch {state.epoch}")
        self.journal.write_history(state.history)
        return state

    def keep(self, state: FoldState, trainee: Trainee, network: keras.Model) -> None:
        """Saves an epoch, then reports it."""
        self.checkpoint.save(state, trainee.state(), network)
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
    """Predicts with the last epoch's network and with the best, read back from its file."""
    directory, batch_size = books.directory, trainee.config.batch_size
    last = trainee.settle()
    temporary = directory / f".{LAST_NETWORK_NAME}"
    last.save(temporary)
    temporary.replace(directory / LAST_NETWORK_NAME)
    _, _, last_logits = predict(inference(last), held_out, batch_size=batch_size)
    best = keras.saving.load_model(directory / BEST_NETWORK_NAME, compile=False)
    ids, truth, logits = predict(inference(best), held_out, batch_size=batch_size)
    rows = state.history[1:] or state.history
    result = FoldResult(
        fold=fold,
        seed=seed,
        path=f"{books.name}/{BEST_NETWORK_NAME}",
        best_epoch=state.best_epoch,
        epochs=state.epoch,
        val_auc=auc(truth, logits),
        step_seconds=statistics.median(row["step_seconds"] for row in rows),
        input_wait=statistics.median(row["input_wait"] for row in rows),
        seconds=state.seconds,
        held_out=HeldOutLogits(
            patient_ids=ids, labels=truth, logits=logits, last_logits=last_logits
        ),
    )
    result.save(directory)
    books.checkpoint.push()
    books.checkpoint.discard()
    return result


def _records(setup: RunSetup, folds: Sequence[int]) -> Records:
    assert setup.config.modalities is not None
    return open_records(
        setup.data,
        setup.manifest,
        folds,
        modalities=setup.config.modalities,
        labels=setup.labels,
        cache=setup.cache,
    )


def _trainee(setup: RunSetup, folds: Sequence[int], training: Records, *, seed: int) -> Trainee:
    """A fresh network for the training folds."""
    config, manifest = setup.config, setup.manifest
    known = setup.labels or labels_of(manifest)
    labels = [known[name] for name, _, own in manifest.patients if own in folds]
    return Trainee(
        config,
        FoldSetup(
            schema=manifest.schema,
            voxel_mm=_voxel_mm(manifest),
            precision=setup.precision,
            steps_per_epoch=training.steps(config.batch_size, parts=len(setup.cluster.workers)),
            weights=class_weights(config.class_weights, sum(labels) / len(labels)),
            seed=seed,
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
