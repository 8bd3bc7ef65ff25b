"""What a fold's training leaves to be read: history.csv, TensorBoard's files, a line an epoch."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from beam_jobs.common.files import interface as files
from beam_jobs.common.printable import in_digits
from beam_jobs.common.terminal import duration, say_parts
from beam_jobs.core.cohort.target import PLAIN, Target
from trainer.config.run_layout import HISTORY_NAME, history_columns
from trainer.metrics.tasks.measure import measure_of


class Journal:
    """Writes for one member.

    Args:
      name: of the member, on the terminal.
      directory: takes history.csv.
      logs: takes TensorBoard's files, made with the first thing to show.
      epochs: of the config.
      later: members that come after this one.
      target: what labels say, and so how held-out patients are scored.
    """

    def __init__(
        self,
        *,
        name: str,
        directory: Path,
        logs: Path,
        epochs: int,
        later: int,
        target: Target = PLAIN,
    ) -> None:
        self.name, self.epochs, self.later = name, epochs, later
        self._measure = measure_of(target)
        self._columns = history_columns(self._measure.name)
        self._history, self._logs = directory / HISTORY_NAME, logs
        self._writer: Any = None

    def say(self, *parts: str) -> None:
        """Prints a line of this member."""
        say_parts(self.name, *parts)

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """history.csv anew: it says what the state says, whatever was lost in between."""
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(self._history, stream.getvalue())

    def log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """The last epoch of a history, as TensorBoard's scalars and a line."""
        row = history[-1]
        with files.refused(self._logs), self._summaries():
            for name in self._columns[1:]:
                tf.summary.scalar(name, row[name], step=row["epoch"])
            self._writer.flush()
        seconds = row["epoch_seconds"]
        # A mean absolute error is in the label's unit, in which it may be millions or millionths.
        is_error = self._measure.task == "regression"
        lost = in_digits(row["val_loss"]) if is_error else f"{row['val_loss']:.3f}"
        took = f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
        self.say(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}",
            f"loss {row['loss']:.3f}",
            f"val {lost}",
            f"{self._measure.title} {row[f'val_{self._measure.name}']:.3f}",
            f"{took}{self._left(history)}",
        )

    def _left(self, history: Sequence[Mapping[str, Any]]) -> str:
        """What the run will still take; the first epoch makes graphs."""
        epochs = self.epochs - history[-1]["epoch"] + self.later * self.epochs
        if len(history) < 2:
            return ""
        left = epochs * statistics.median(row["epoch_seconds"] for row in history[1:])
        return f", {duration(left)} left" if left >= 1 else ""

    def picture(self, stored: tf.Tensor, augmented: tf.Tensor) -> None:
        """Middle slices of a few volumes, channels side by side, on one scale of grey.

        Args:
          stored: (patients, row, column, slice, channel).
          augmented: the same volumes as the network sees them.
        """
        stored = tf.cast(stored, tf.float32)
        top = tf.maximum(tf.reduce_max(stored), 1e-6)
        with files.refused(self._logs), self._summaries():
            for name, volumes in (("stored", stored), ("augmented", augmented)):
                middle = volumes[:, :, :, volumes.shape[3] // 2]
                pictures = tf.concat(tf.unstack(middle / top, axis=-1), axis=2)[..., None]
                tf.summary.image(name, pictures, step=0, max_outputs=len(volumes))

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self._writer is not None:
            with files.refused(self._logs):
                self._writer.close()

    def _summaries(self) -> Any:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._logs))
        return self._writer.as_default()
