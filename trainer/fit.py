"""Training one fold: batches in, the best epoch's network and its held-out predictions out."""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from beam_jobs.core.manifest import Manifest
from beam_jobs.core.record import ContractError
from trainer.config import TrainConfig
from trainer.evaluate import auc, log_loss
from trainer.input_pipeline import Records, contract_error, open_records
from trainer.models import build_model
from trainer.split import labels_of

HISTORY_COLUMNS = (
    "epoch",
    "loss",
    "val_loss",
    "val_auc",
    "best",
    "learning_rate",
    "step_seconds",
    "epoch_seconds",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out patients, in one order for all arrays (n,).

    Attributes:
      patient_ids: as in the records.
      labels: 0 or 1; permuted ones where the run permutes them.
      logits: of the best epoch's network, read back from its file.
      last_logits: of the last epoch's network: no epoch chosen on these very patients.
    """

    patient_ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    last_logits: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What training one fold gave.

    Attributes:
      fold: the fold held out.
      best_epoch: from 1; its weights are in best.keras.
      epochs: trained until the early stop or the end.
      val_auc: of the best epoch.
      step_seconds: median over epochs, the first (tracing) left out where there are more.
      held_out: predictions for the fold.
    """

    fold: int
    best_epoch: int
    epochs: int
    val_auc: float
    step_seconds: float
    held_out: HeldOut


def resolve_precision(precision: str) -> str:
    """The policy that "auto" means here: float32 on a CPU, what the GPU is fast at on a GPU."""
    if precision != "auto":
        return precision
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "float32"
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
    if not capability or capability < (7, 0):
        return "float32"
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"


def train_fold(
    config: TrainConfig,
    *,
    data: Path,
    manifest: Manifest,
    fold: int,
    labels: Mapping[str, int] | None,
    run_directory: Path,
    precision: str,
) -> FoldResult:
    """Trains one network on all folds but one, and predicts that one with its best epoch.

    Args:
      config: resolved (its modalities are named).
      data: the dataset's directory.
      manifest: the dataset's.
      fold: held out.
      labels: replaces the records' labels (label permutation).
      run_directory: takes fold-K/ and logs/fold-K/.
      precision: a policy, not "auto".

    Raises:
      ContractError: shards or records are not what the manifest says.
      FloatingPointError: training diverged.
    """
    assert config.modalities is not None
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(precision)
    others = [other for other in range(manifest.folds) if other != fold]
    train, held_out = (
        open_records(data, manifest, folds, modalities=config.modalities, labels=labels)
        for folds in (others, [fold])
    )
    model = build_model(
        config.model, manifest.schema.shape, len(config.modalities), manifest.schema.dtype
    )
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(
                config.optimizer.learning_rate,
                config.optimizer.decay_steps,
                config.optimizer.decay_rate,
                staircase=True,
            )
        ),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile="auto" if tf.config.list_physical_devices("GPU") else False,
    )
    known = labels or labels_of(manifest)
    expected = {name: known[name] for name, _, own in manifest.patients if own == fold}
    validate = _Validate(
        config=config,
        fold=fold,
        held_out=held_out,
        expected=expected,
        steps=train.steps(config.batch_size),
        directory=run_directory / f"fold-{fold}",
        logs=run_directory / "logs" / f"fold-{fold}",
    )
    try:
        model.fit(
            train.training_batches(
                batch_size=config.batch_size, seed=config.seed, epochs=config.epochs
            ),
            epochs=config.epochs,
            steps_per_epoch=train.steps(config.batch_size),
            callbacks=[validate],
            shuffle=False,
            verbose=0,
        )
        best = keras.saving.load_model(validate.directory / "best.keras", compile=False)
        patient_ids, truth, logits = predict(
            inference(best), held_out, batch_size=config.batch_size
        )
    except tf.errors.OpError as error:
        refusal = contract_error(error, directory=data, manifest=manifest)
        if refusal is not None:
            raise refusal from error
        raise
    finally:
        validate.close()
    return FoldResult(
        fold=fold,
        best_epoch=validate.best_epoch,
        epochs=len(validate.step_seconds),
        val_auc=auc(truth, logits),
        step_seconds=statistics.median(validate.step_seconds[1:] or validate.step_seconds),
        held_out=HeldOut(
            patient_ids=patient_ids,
            labels=truth,
            logits=logits,
            last_logits=validate.last_logits,
        ),
    )


def inference(model: keras.Model) -> Any:
    """The model as a graph function, stored volumes → logits (batch, 1); weights stay live.

    One trace serves every batch size, unlike `predict_on_batch`; less overhead than `predict`.
    """
    signature = [tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype)]
    return tf.function(lambda volume: model(volume, training=False), input_signature=signature)


def predict(
    infer: Any, records: Records, *, batch_size: int
) -> tuple[tuple[str, ...], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Patient ids, labels (-1: none) and logits of every record, in shard order."""
    ids: list[str] = []
    labels, logits = [], []
    for batch in records.evaluation_batches(batch_size=batch_size):
        ids += [patient_id.decode() for patient_id in batch["patient_id"].numpy()]
        labels.append(batch["label"].numpy())
        logits.append(infer(batch["volume"]).numpy().astype(np.float64)[:, 0])
    return tuple(ids), np.concatenate(labels), np.concatenate(logits)


class _Validate(keras.callbacks.Callback):
    """After each epoch: predicts the held-out fold, keeps the best epoch, logs, stops early.

    Better is a greater AUC; of equal AUCs, which small folds have often, the lesser log loss.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        fold: int,
        held_out: Records,
        expected: Mapping[str, int],
        steps: int,
        directory: Path,
        logs: Path,
    ) -> None:
        super().__init__()
        self.config = config
        self.fold = fold
        self.held_out = held_out
        self.expected = expected
        self.steps = steps
        self.directory = directory
        self.best: tuple[float, float] = (-math.inf, -math.inf)
        self.best_epoch = 0
        self.last_logits = np.empty(0)
        self.step_seconds: list[float] = []
        self.started = 0.0
        directory.mkdir(parents=True, exist_ok=True)
        self.history_file = (directory / "history.csv").open("w", newline="", encoding="utf-8")
        self.history = csv.DictWriter(self.history_file, HISTORY_COLUMNS)
        self.history.writeheader()
        self.summaries = tf.summary.create_file_writer(str(logs))

    def close(self) -> None:
        self.history_file.close()
        self.summaries.close()

    def on_train_begin(self, logs: Any = None) -> None:
        self.infer = inference(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        number, loss = epoch + 1, float((logs or {})["loss"])
        self.step_seconds.append((time.perf_counter() - self.started) / self.steps)
        ids, truth, logits = predict(self.infer, self.held_out, batch_size=self.config.batch_size)
        found = dict(zip(ids, truth.tolist(), strict=True))
        if found != self.expected or len(found) != len(ids):
            odd = sorted({name for name, _ in found.items() ^ self.expected.items()})
            raise ContractError(
                f"fold {self.fold}: records and manifest differ in patients or labels: "
                f"{', '.join(odd[:5]) or 'a patient stands twice'}"
            )
        if not (math.isfinite(loss) and np.isfinite(logits).all()):
            raise FloatingPointError(
                f"fold {self.fold}, epoch {number}: loss {loss}, not every prediction is finite; "
                f"try a lower --learning_rate than {self.config.optimizer.learning_rate:g}"
            )
        self.last_logits = logits
        val_auc, val_loss = auc(truth, logits), log_loss(truth, logits)
        is_best = (val_auc, -val_loss) > self.best
        self._save("last.keras", is_best=is_best)
        if is_best:
            self.best, self.best_epoch = (val_auc, -val_loss), number
        elif number - self.best_epoch >= self.config.patience:
            self.model.stop_training = True
        row = {
            "epoch": number,
            "loss": loss,
            "val_loss": val_loss,
            "val_auc": val_auc,
            "best": int(is_best),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "step_seconds": self.step_seconds[-1],
            "epoch_seconds": time.perf_counter() - self.started,
        }
        self.history.writerow(row)
        self.history_file.flush()
        with self.summaries.as_default():
            for name in ("loss", "val_loss", "val_auc", "learning_rate", "step_seconds"):
                tf.summary.scalar(name, row[name], step=number)
        print(
            f"fold {self.fold}  epoch {number:>{len(str(self.config.epochs))}}/"
            f"{self.config.epochs}  loss {loss:.4f}  val_loss {val_loss:.4f}  "
            f"val_auc {val_auc:.4f}{'*' if is_best else ' '}  {row['epoch_seconds']:.1f} s",
            flush=True,
        )

    def _save(self, name: str, *, is_best: bool) -> None:
        """Writes the model whole or not at all; the best is a copy of the last."""
        temporary = self.directory / f".{name}"  # Keras wants the suffix
        self.model.save(temporary)
        if is_best:
            copy = self.directory / ".best.keras"
            shutil.copyfile(temporary, copy)
            copy.replace(self.directory / "best.keras")
        temporary.replace(self.directory / name)
