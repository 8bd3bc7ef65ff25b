"""One epoch: a pass over the training patients, and the network's answers for those held out.

Nothing is written here; `fold` keeps the books.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from beam_jobs.common.terminal import bar
from trainer.data.records import Records
from trainer.metrics.tasks.measure import measure_of
from trainer.training.environment import Pace
from trainer.training.predict_fold import inputs_of, predict
from trainer.training.step import Trainee

_TIMED_STEPS = 3
PICTURED = 4  # patients whose middle slices are shown

Batch = Mapping[str, tf.Tensor]


class Learnt(NamedTuple):
    """What a pass over the training patients gave, in columns of history.csv.

    Attributes:
      loss: mean over the patients, each seen by the network of its step.
      learning_rate: of the last step.
      step_seconds: mean over the steps.
      input_wait: share of the time that was spent waiting for a batch.
    """

    loss: float
    learning_rate: float
    step_seconds: float
    input_wait: float


class Validated(NamedTuple):
    """How well the held-out patients are answered, over the whole fold.

    Attributes:
      score: by the measure of the task: the AUC of a binary.
      loss: the mean of a patient by that measure: the log loss of a binary.
    """

    score: float
    loss: float


class FirstSteps:
    """Tells a run's pace once its first steps are done, on a CPU.

    Nothing is done for it but a batch predicted twice, which changes nothing. The first step and
    the first prediction, which make what the others use, do not count.

    Args:
      members, epochs: of the run.
      candidates: epochs whose networks predict again at the end.
      steps: of an epoch.
      predictions: batches of the held-out fold.
      infer: `predict_fold.inference` of a network like the one that is validated.
      tell: gets the pace.
    """

    def __init__(
        self,
        *,
        members: int,
        epochs: int,
        candidates: int,
        steps: int,
        predictions: int,
        infer: Any,
        tell: Callable[[Pace], object],
    ) -> None:
        self._members, self._epochs, self._candidates = members, epochs, candidates
        self._steps, self._predictions = steps, predictions
        self._infer, self._tell = infer, tell
        self._seconds: list[float] = []

    def __call__(self, seconds: float, batch: Batch) -> None:
        """Takes a step's time and its batch."""
        self._seconds.append(seconds)
        if len(self._seconds) != 1 + _TIMED_STEPS or tf.config.list_logical_devices("GPU"):
            return
        inputs = inputs_of(batch)
        self._infer(*inputs)
        begun = time.perf_counter()
        self._infer(*inputs).numpy()
        predicting = self._predictions * (time.perf_counter() - begun)
        pace = Pace(
            epoch_seconds=self._steps * statistics.median(self._seconds[1:]) + predicting,
            end_seconds=self._candidates * predicting,
            members=self._members,
            epochs=self._epochs,
        )
        self._tell(pace)


def learn(
    trainee: Trainee,
    batches: Iterator[Batch],
    *,
    epoch: int,
    patients: int,
    label: str,
    shown: bool,
    picture: Callable[[tf.Tensor, tf.Tensor], None] | None = None,
    stepped: Callable[[float, Batch], None] | None = None,
) -> Learnt:
    """Learns from every training patient once.

    Args:
      trainee: moves on by an epoch's steps.
      batches: this host's; those of one epoch are taken.
      epoch: from 0.
      patients: in all the batches of an epoch, over all hosts.
      label: of the epoch, for the terminal and in errors.
      shown: whether to show a bar.
      picture: gets the first volumes (`PICTURED`, row, column, slice, channel), stored and
        augmented.
      stepped: gets each step's time, the wait for its batch included, and the batch.

    Raises:
      FloatingPointError: a loss is not a number; the batch's patients are named.
    """
    steps, batch_size = trainee.setup.steps_per_epoch, trainee.config.batch_size
    total, learnt, waited = 0.0, 0, 0.0
    pending: tuple[tf.Tensor, Batch, int] | None = None
    started = time.perf_counter()
    with bar(label, steps, shown=shown) as advance:
        for number in range(steps):
            waiting = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - waiting
            rows = min(batch_size, patients - number * batch_size)
            if picture is not None and number == 0:
                volume, target = (batch[part][:PICTURED] for part in ("volume", "label"))
                picture(volume, trainee.augmented(volume, target, 0))
            loss = trainee.step(batch, epoch * steps + number, rows)
            # The loss of the step before is read only now: a GPU is never waited for in between.
            if pending is not None:
                total += _summed_loss(trainee, *pending, label=label)
            pending, learnt = (loss, batch, rows), learnt + rows
            advance()
            if stepped is not None:
                stepped(time.perf_counter() - waiting, batch)
        assert pending is not None
        total += _summed_loss(trainee, *pending, label=label)
    seconds = time.perf_counter() - started
    return Learnt(
        loss=total / learnt,
        learning_rate=float(trainee.optimizer.learning_rate),
        step_seconds=seconds / steps,
        input_wait=waited / seconds,
    )


def _summed_loss(
    trainee: Trainee, loss: tf.Tensor, batch: Batch, rows: int, *, label: str
) -> float:
    value = float(loss.numpy())
    if not math.isfinite(value):
        names = ", ".join(sorted(name.decode() for name in batch["patient_id"].numpy()))
        raise FloatingPointError(
            f"{label}: the loss is {value} on the batch of patients {names}; {_advice(trainee)}"
        )
    return value * rows


def validate(trainee: Trainee, infer: Any, held_out: Records, *, label: str) -> Validated:
    """Predicts the held-out fold whole.

    Args:
      trainee: in training.
      infer: `predict_fold.inference` of its `evaluated` network, brought up to date.
      held_out: their records.
      label: of the epoch, in errors.

    Raises:
      FloatingPointError: a prediction is not a number.
    """
    _, truth, answers = predict(infer, held_out, batch_size=trainee.config.batch_size)
    if not np.isfinite(answers).all():
        raise FloatingPointError(f"{label}: not every prediction is finite; {_advice(trainee)}")
    measure = measure_of(held_out.schema.target)
    return Validated(score=measure.score(truth, answers), loss=measure.loss(truth, answers))


def _advice(trainee: Trainee) -> str:
    return f"try a lower --learning_rate than {trainee.config.optimizer.learning_rate:g}"
