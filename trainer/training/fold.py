"""Training one fold: batches in, the best epoch's network and its held-out predictions out.

An epoch learns from every training patient once, predicts the held-out fold whole, keeps the
network where its exact AUC is the best so far, and saves what a restart needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from beam_jobs.common.contract_json import ContractError
from beam_jobs.common.terminal import bar
from beam_jobs.core.manifest import Manifest
from trainer.config.run import TrainConfig
from trainer.config.run_layout import BEST_NETWORK_NAME, FOLD_STATE_NAME, LAST_NETWORK_NAME
from trainer.data.records import contract_error, open_records
from trainer.data.split import labels_of
from trainer.metrics.auc import auc
from trainer.metrics.roc_and_calibration import log_loss
from trainer.training.checkpoint import Progress, keep_best, load_state, save_state, settle_best
from trainer.training.environment import Cluster, Places
from trainer.training.fold_result import FoldResult, HeldOut
from trainer.training.optimization import class_weights
from trainer.training.predict_fold import inference, predict
from trainer.training.step import Recipe, Trainee
from trainer.training.tensorboard_log import HISTORY_COLUMNS, PICTURED, Journal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all folds of a run share.

    Attributes:
      config: resolved (its modalities are named).
      data: the dataset's address.
      manifest: the dataset's.
      labels: replaces the records' labels (label permutation).
      places: where the run writes.
      precision: a policy, not "auto".
      cluster: the processes that train together.
      strategy: their devices.
      cache: how records are kept between epochs.
    """

    config: TrainConfig
    data: str
    manifest: Manifest
    labels: Mapping[str, int] | None
    places: Places
    precision: str
    cluster: Cluster
    strategy: tf.distribute.Strategy
    cache: str = "auto"

    @property
    def request(self) -> str:
        """Tells this run's states from another's."""
        text = json.dumps(
            [self.config.to_json(), self.manifest.dataset_fingerprint, self.precision],
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()


def member_name(config: TrainConfig, fold: int, seed: int) -> str:
    """The directory of a member within its run."""
    return f"fold-{fold}" if config.repeats == 1 else f"fold-{fold}-seed-{seed}"


def train_fold(setting: Setting, *, fold: int, seed: int, later: int = 0) -> FoldResult | None:
    """Trains one network on all folds but one, and predicts that one with its best epoch.

    Goes on where an earlier start was stopped; a fold that is done is read, not trained.

    Args:
      setting: what all folds share.
      fold: held out.
      seed: of this member.
      later: members that are trained after this one, for an estimate of the time that is left.

    Returns:
      None on hosts that are not the chief.

    Raises:
      ContractError: shards or records are not what the manifest says.
      FloatingPointError: training diverged.
    """
    name = member_name(setting.config, fold, seed)
    done = FoldResult.load(setting.places.run / name)
    if done is not None:
        return done
    training = _Training(setting, fold=fold, seed=seed, name=name, later=later)
    try:
        return training.run()
    except tf.errors.OpError as error:
        refusal = contract_error(error, data=setting.data, manifest=setting.manifest)
        if refusal is not None:
            raise refusal from error
        raise
    finally:
        training.close()


class _Training:
    """One fold, from its first epoch, or the first that is missing, to its result."""

    def __init__(self, setting: Setting, *, fold: int, seed: int, name: str, later: int) -> None:
        config = setting.config
        assert config.modalities is not None
        self.setting, self.config = setting, config
        self.fold, self.seed, self.name = fold, seed, name
        self.writes = setting.cluster.is_chief
        self.directory = setting.places.run / name
        self.state_directory = setting.places.checkpoints / name
        if self.writes:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.state_directory.mkdir(parents=True, exist_ok=True)
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        keras.config.set_dtype_policy(setting.precision)
        manifest = setting.manifest
        others = [other for other in range(manifest.folds) if other != fold]
        self.train, self.held_out = (
            open_records(
                setting.data,
                manifest,
                folds,
                modalities=config.modalities,
                labels=setting.labels,
                cache=setting.cache,
            )
            for folds in (others, [fold])
        )
        known = setting.labels or labels_of(manifest)
        learnt = [known[name] for name, _, own in manifest.patients if own in others]
        self.hosts = len(setting.cluster.workers)
        self.steps = self.train.steps(config.batch_size, parts=self.hosts)
        self.trainee = Trainee(
            config,
            Recipe(
                schema=manifest.schema,
                voxel_mm=_voxel_mm(manifest),
                precision=setting.precision,
                steps_per_epoch=self.steps,
                weights=class_weights(config.class_weights, sum(learnt) / len(learnt)),
                seed=seed,
            ),
            strategy=setting.strategy,
            cluster=setting.cluster,
        )
        self.infer = inference(self.trainee.evaluated)
        self.progress = Progress()
        self.journal = Journal(
            name=name,
            directory=self.directory,
            logs=setting.places.logs / name,
            epochs=config.epochs,
            shown=self.writes,
            later=later,
        )

    def close(self) -> None:
        self.journal.close()
        self.train.close()
        self.held_out.close()

    def run(self) -> FoldResult | None:
        """Trains what is missing, then predicts."""
        self._resume()
        started, before = time.perf_counter(), self.progress.seconds
        limits = {"epochs": self.config.epochs, "patience": self.config.patience}
        if not self.progress.stopped(**limits):
            batches = iter(
                self.train.training_batches(
                    batch_size=self.config.batch_size,
                    seed=self.seed,
                    epochs=self.config.epochs,
                    first_epoch=self.progress.epoch,
                    part=(self.setting.cluster.index, self.hosts),
                )
            )
            while not self.progress.stopped(**limits):
                learning = self._learn(batches)
                self.progress.seconds = before + time.perf_counter() - started
                self._validate(learning)
        return self._result()

    def _resume(self) -> None:
        """Takes up the chief's state on every host."""
        if self.writes:
            found = load_state(self.state_directory, request=self.setting.request)
            if found is not None:
                self.progress, arrays = found
                try:
                    self.trainee.restore(arrays)
                except ValueError as error:
                    raise ContractError(
                        f"{self.state_directory / FOLD_STATE_NAME}: {error}; "
                        "--overwrite starts the run over"
                    ) from error
                self.journal.say(f"goes on after epoch {self.progress.epoch}")
            settle_best(self.directory, self.progress.best_epoch)
            self.journal.write_history(self.progress.history)
        if self.hosts > 1:
            self.trainee.share_state()
            self._share_progress()

    def _learn(self, batches: Iterator[Mapping[str, tf.Tensor]]) -> dict[str, Any]:
        """One pass over the training patients; what it cost and how it went."""
        epoch, count = self.progress.epoch, self.train.count
        batch_size = self.config.batch_size
        total, learnt, waited = 0.0, 0, 0.0
        pending: tuple[tf.Tensor, Any, int] | None = None
        started = time.perf_counter()
        told = f"{self.name}  epoch {epoch + 1}"
        with bar(told, self.steps, shown=self.writes) as advance:
            for number in range(self.steps):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                rows = min(batch_size, count - number * batch_size)
                if epoch == 0 and number == 0 and self.writes:
                    volume, label = (batch[part][:PICTURED] for part in ("volume", "label"))
                    self.journal.picture(volume, self.trainee.augmented(volume, label, 0))
                loss = self.trainee.step(batch, epoch * self.steps + number, rows)
                # The step before is asked for only now: a GPU is never waited for in between.
                if pending is not None:
                    total += self._loss_of(*pending)
                pending, learnt = (loss, batch["patient_id"], rows), learnt + rows
                advance()
            assert pending is not None
            total += self._loss_of(*pending)
        seconds = time.perf_counter() - started
        return {
            "epoch": epoch + 1,
            "loss": total / learnt,
            "learning_rate": float(self.trainee.optimizer.learning_rate),
            "step_seconds": seconds / self.steps,
            "input_wait": waited / seconds,
        }

    def _loss_of(self, loss: tf.Tensor, patient_ids: Any, rows: int) -> float:
        """The summed loss of a step's patients.

        Raises:
          FloatingPointError: it is not a number; its patients are named.
        """
        value = float(loss.numpy())
        if not math.isfinite(value):
            names = ", ".join(sorted(name.decode() for name in patient_ids.numpy()))
            raise FloatingPointError(
                f"{self.name}, epoch {self.progress.epoch + 1}: the loss is {value} "
                f"on the batch of patients {names}; {self._advice()}"
            )
        return value * rows

    def _validate(self, learning: dict[str, Any]) -> None:
        """Predicts the held-out fold, keeps the best epoch, logs, saves.

        Better is a greater AUC; of equal AUCs, which small folds have often, the lesser log loss.
        """
        started, progress = time.perf_counter(), self.progress
        number = learning["epoch"]
        network = self.trainee.settle()
        if self.writes:
            _, truth, logits = self._predict(self.infer)
            if not np.isfinite(logits).all():
                raise FloatingPointError(
                    f"{self.name}, epoch {number}: not every prediction is finite; {self._advice()}"
                )
            val_auc, val_loss = auc(truth, logits), log_loss(truth, logits)
            is_best = (val_auc, -val_loss) > progress.best
            if is_best:
                keep_best(self.directory, network, number)
                progress.best, progress.best_epoch = (val_auc, -val_loss), number
            progress.epoch = number
            row = {**learning, "val_loss": val_loss, "val_auc": val_auc, "best": int(is_best)}
            training_seconds = learning["step_seconds"] * self.steps
            row["epoch_seconds"] = training_seconds + time.perf_counter() - started
            progress.history.append({name: row[name] for name in HISTORY_COLUMNS})
            progress.seconds += time.perf_counter() - started
            save_state(
                self.state_directory,
                progress,
                self.trainee.state(),
                request=self.setting.request,
            )
            settle_best(self.directory, progress.best_epoch)
            self.journal.write_history(progress.history)
            self.journal.log(progress.history)
        else:
            progress.epoch = number
        if self.hosts > 1:
            self._share_progress()

    def _share_progress(self) -> None:
        """The chief alone validates: the others learn from it how far it is and when to stop."""
        told = np.array([self.progress.epoch, self.progress.best_epoch])
        epoch, best_epoch = self.trainee.from_chief(told).tolist()
        self.progress.epoch, self.progress.best_epoch = epoch, best_epoch

    def _predict(self, infer: Any) -> Any:
        """Patient ids, labels and logits of the held-out fold."""
        return predict(infer, self.held_out, batch_size=self.config.batch_size)

    def _result(self) -> FoldResult | None:
        """Predicts with the last epoch's network and with the best, both read back.

        Only the chief has what to tell.
        """
        progress = self.progress
        network = self.trainee.settle()
        if not self.writes:
            return None
        temporary = self.directory / ".last.keras"
        network.save(temporary)
        temporary.replace(self.directory / LAST_NETWORK_NAME)
        _, _, last_logits = self._predict(self.infer)
        best = keras.saving.load_model(self.directory / BEST_NETWORK_NAME, compile=False)
        ids, truth, logits = self._predict(inference(best))
        rows = progress.history[1:] or progress.history
        result = FoldResult(
            fold=self.fold,
            seed=self.seed,
            path=f"{self.name}/{BEST_NETWORK_NAME}",
            best_epoch=progress.best_epoch,
            epochs=progress.epoch,
            val_auc=auc(truth, logits),
            step_seconds=statistics.median(row["step_seconds"] for row in rows),
            input_wait=statistics.median(row["input_wait"] for row in rows),
            seconds=progress.seconds,
            held_out=HeldOut(patient_ids=ids, labels=truth, logits=logits, last_logits=last_logits),
        )
        result.save(self.directory)
        (self.state_directory / FOLD_STATE_NAME).unlink(missing_ok=True)  # it is of no more use
        return result

    def _advice(self) -> str:
        rate = self.config.optimizer.learning_rate
        return f"try a lower --learning_rate than {rate:g}"


def _voxel_mm(manifest: Manifest) -> tuple[float, float, float]:
    """Size of a voxel along (row, column, slice), from the recipe; cubes of 1 mm without one."""
    fov = manifest.spec.get("fov_mm")
    if not fov:
        return (1.0, 1.0, 1.0)
    row, column, slice_ = (
        float(extent) / n for extent, n in zip(fov, manifest.schema.shape, strict=True)
    )
    return row, column, slice_
