"""`python -m tests.trainer.search.watched MODULE ...`: a real command, with notes of who it reads.

$WATCHED gets a JSON line for each: the id of every patient whose record is opened ("opened"), that
a network learns from ("trained") or that it predicts ("scored"), as the batches really hold them.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Iterable
from typing import Any

from beam_jobs.common.imports import quiet_tensorflow
from trainer.search.child_process import end_with_parent


def _note(part: str, ids: Iterable[bytes]) -> None:
    with open(os.environ["WATCHED"], "a") as stream:
        line = {"part": part, "ids": sorted({one.decode() for one in ids}), "argv": sys.argv}
        stream.write(json.dumps(line) + "\n")


def _watch() -> None:
    quiet_tensorflow("2")
    import tensorflow as tf

    from trainer.data import records

    def watched(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(ids: Any) -> Any:
            _note(part, ids.tolist())
            return ids

        def batches(self: Any, **options: Any) -> Any:
            def through(batch: dict[str, Any]) -> dict[str, Any]:
                ids = tf.numpy_function(noted, [batch["patient_id"]], tf.string)
                return {**batch, "patient_id": tf.ensure_shape(ids, batch["patient_id"].shape)}

            return method(self, **options).map(through)

        return batches

    def opened(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        _note("opened", found.patient_ids.tolist())
        return found

    real, kind = records.open_records, records.Records
    records.open_records = opened
    kind.training_batches = watched("trained", kind.training_batches)  # type: ignore[method-assign]
    kind.evaluation_batches = watched("scored", kind.evaluation_batches)  # type: ignore[method-assign]


if __name__ == "__main__":
    end_with_parent()
    _watch()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
