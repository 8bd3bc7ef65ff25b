"""Steps on a GPU: every network in every precision, compiled by XLA and as it is.

One batch that is there already, without augmentation. What is measured is a step once it is
compiled, what the first one took beyond it, and the most memory that TensorFlow's allocator held.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from beam_jobs.common import cli

TITLES = ("network", "precision", "XLA", "ms a step", "first step, s", "peak GB")


class Steps(NamedTuple):
    """What a network's steps take; seconds, and bytes on the device."""

    step: float
    first: float
    peak: int


def gpu_name() -> str:
    """The first GPU that TensorFlow computes on.

    Raises:
      UsageError: there is none.
    """
    import tensorflow as tf

    if not (found := tf.config.list_physical_devices("GPU")):
        raise cli.UsageError(
            "--device gpu: TensorFlow finds no GPU here; `voxelbeam doctor` says what is missing"
        )
    details = tf.config.experimental.get_device_details(found[0])
    return str(details.get("device_name", found[0].name))


def forget_peak() -> None:
    """Peak memory counts from here."""
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats("GPU:0")


def peak_bytes() -> int:
    """The most memory that was held since."""
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def measured(make: Callable[[], Any], batch: Any, rows: int, *, steps: int, rounds: int) -> Steps:
    """The steps of a network in training.

    Args:
      make: a `Trainee`.
      batch: of `Trainee.step`.
      rows: patients in it.
      steps: that are timed together.
      rounds: of so many steps, whose median is taken.
    """
    gc.collect()
    forget_peak()
    trainee = make()

    def seconds(first: int, count: int) -> float:
        began = time.perf_counter()
        for number in range(first, first + count):
            loss = trainee.step(batch, number, rows)
        float(loss)  # until then nothing need have been computed
        return (time.perf_counter() - began) / count

    once = seconds(0, 1)
    step = statistics.median(seconds(1 + turn * steps, steps) for turn in range(rounds))
    return Steps(step, max(once - step, 0.0), peak_bytes())


def rows_of(
    networks: Sequence[str],
    precisions: Sequence[str],
    measure: Callable[[str, str, str], Steps],
) -> Iterator[tuple[str, ...]]:
    """The table's rows; what does not run is named on stderr, and has none of its figures.

    Args:
      networks: of the registry.
      precisions: policies.
      measure: (network, precision, "on" or "off") → what was measured.
    """
    import tensorflow as tf

    for network in networks:
        for precision in precisions:
            for xla in ("off", "on"):
                try:
                    found = measure(network, precision, xla)
                except tf.errors.OpError as error:  # memory, above all: the others may still run
                    line = " ".join(str(error).split())[:200]
                    print(f"{network} {precision} XLA {xla}: {line}", file=sys.stderr)
                    yield network, precision, xla, "failed", "", ""
                    continue
                print(f"{network} {precision} XLA {xla}: {1e3 * found.step:.1f}", file=sys.stderr)
                yield (
                    *(network, precision, xla, f"{1e3 * found.step:.1f}"),
                    *(f"{found.first:.1f}", f"{found.peak / 1e9:.2f}"),
                )
