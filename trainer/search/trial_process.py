"""A trial's process: `python -m trainer.search.trial_process REQUEST`, started by a search.

What is requested lies in request.json, what came out in result.json beside it, written last and
whole. A process of its own, because memory that TensorFlow has taken comes back only with the
process's end, and because one that the kernel kills for its memory takes nothing else along.
"""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect, leave_to_parent

    expect("")
    leave_to_parent()

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import CommandError, UsageError, run
from beam_jobs.common.files import interface as files
from beam_jobs.common.imports import quiet_tensorflow
from beam_jobs.common.json_file import write_json
from beam_jobs.core.manifest import read_manifest
from beam_jobs.core.record import RecordSchema
from trainer.config.code_identity import CODE, identities
from trainer.config.provenance import SEARCHED, require_same_code, split_provenance
from trainer.config.run import TrainConfig
from trainer.machine import gpus, system
from trainer.search.child_process import end_with_parent
from trainer.search.objective import objective_of, result_of
from trainer.search.trial import (
    ATTEMPT_NAME,
    BROKEN,
    DIVERGED,
    FIRST_REFUSAL,
    MEMORY,
    REFUSED,
    RESULT_NAME,
    Request,
)
from trainer.training.claim import LOCK_NAME, claim
from trainer.training.environment import Cluster, RunDirectories, pass_on
from trainer.training.run_files import Run

PROG = "python -m trainer.search.trial_process"


def main(argv: Sequence[str]) -> int:
    """Trains what request.json requests; 0 where result.json or attempt.json says how it went.

    What a disk refuses says nothing of the trial: that is the exit code's, for a full one takes no
    file that could tell.
    """
    if len(argv) != 1:
        raise UsageError(f"{PROG} REQUEST: it is started by trainer.tune")
    try:
        return _run(Path(argv[0]))
    except (OSError, CommandError) as error:
        refused = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(refused, OSError) or refused.errno not in files.REFUSALS:
            raise
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return FIRST_REFUSAL + files.REFUSALS.index(refused.errno)


def _run(file: Path) -> int:
    directory = file.parent
    end_with_parent()
    request = Request.load(file)
    with _turn(directory):
        if (directory / RESULT_NAME).is_file():  # another process was faster
            return 0
        kind, reason, more = BROKEN, "", {}
        try:
            result = _train(request, directory)
        except _TooLargeError as error:
            kind, reason, more = MEMORY, str(error), {"fits": error.fits}
        except FloatingPointError as error:
            kind, reason = DIVERGED, str(error)
        except MemoryError as error:
            kind, reason = MEMORY, f"MemoryError: {error}"
        except UsageError as error:
            kind, reason = REFUSED, str(error)
        except Exception as error:
            # TensorFlow's error classes cannot be named before it is imported.
            if type(error).__name__ != "ResourceExhaustedError":
                raise
            kind, reason = MEMORY, f"ResourceExhaustedError: {str(error).splitlines()[0]}"
        else:
            write_json(directory / RESULT_NAME, result)
            return 0
        write_json(directory / ATTEMPT_NAME, {"kind": kind, "reason": reason, **more})
    return 0


def _train(request: Request, directory: Path) -> dict[str, Any]:
    settings, searched_on = split_provenance(request.config)
    config = TrainConfig.from_json(settings)
    manifest = read_manifest(request.data)
    if manifest.dataset_fingerprint != request.dataset_fingerprint:
        raise CommandError(
            f"{request.data} is dataset {manifest.dataset_fingerprint[:12]} now, "
            f"the study was begun on {request.dataset_fingerprint[:12]}"
        )
    # TensorFlow: seconds, only from here on.
    quiet_tensorflow("2")
    from trainer.training.run import train

    code = identities(config.references)
    require_same_code(request.config, code)

    parameters = _check_memory(request, config, manifest.schema)
    place = directory / f"batch-{config.batch_size}"
    wanted = {
        "config": config.to_json(),
        "dataset_fingerprint": manifest.dataset_fingerprint,
        **({CODE: code} if code else {}),
    }
    if not claim(place, wanted, overwrite=False):
        logs = Path(request.logs)
        train(
            config,
            request.data,
            manifest,
            request.folds,
            RunDirectories(run=place, checkpoints=place, logs=logs),
            Cluster(),
            cache=request.cache,
            no_claim=(SEARCHED,),  # its networks may be exported
            tell=pass_on,
            searched_ids=searched_on,
            code=code,
        )
    result = {**result_of(Run.load(place)), "parameters": parameters}
    name = objective_of(manifest.schema.target)
    _write_hparams(Path(request.logs), request, result, name)
    return result


class _TooLargeError(Exception):
    """A configuration that cannot fit; `fits` is the largest batch that may, 0 for none."""

    def __init__(self, message: str, fits: int) -> None:
        super().__init__(message)
        self.fits = fits


def _check_memory(request: Request, config: TrainConfig, schema: RecordSchema) -> int:
    """Refuses a batch whose estimated memory is not there; gives the number of parameters."""
    import tensorflow as tf

    from trainer.networks.registry import activation_bytes, build_model
    from trainer.training.devices import resolve_precision

    assert config.modalities is not None
    model = build_model(
        config.network,
        schema.shape,
        len(config.modalities),
        schema.dtype,
        target=schema.target,
        covariates=config.chosen(schema.covariates),
    )
    precision = resolve_precision(config.precision)
    devices = max(1, len(tf.config.list_logical_devices("GPU")))
    gpu = bool(tf.config.list_physical_devices("GPU"))
    limit = request.memory or free_memory(gpu=gpu)

    def needed(batch: int) -> int:
        return activation_bytes(model, math.ceil(batch / devices), precision, gpu=gpu)

    if limit is not None and needed(config.batch_size) > limit:
        batch = config.batch_size
        while batch and needed(batch) > limit:
            batch //= 2
        alone = "" if batch else f" and {needed(1) / 2**30:.3g} at batch 1"
        raise _TooLargeError(
            f"about {needed(config.batch_size) / 2**30:.3g} GiB{alone} are needed, "
            f"{limit / 2**30:.3g} {'are allowed' if request.memory else 'are there'}",
            batch,
        )
    return int(model.count_params())


def free_memory(*, gpu: bool) -> int | None:
    """Bytes a trial can have, of the smallest GPU or of this machine; None where unknown."""
    if gpu:
        cards, *_ = gpus.cards_of("nvidia-smi")
        sizes = [card.total for card in cards]
    else:
        memory = system.memory()
        # A container's own limit, beside which the machine's memory means little.
        sizes = [memory.available, memory.limit]
    return min((size for size in sizes if size is not None), default=None)


def _write_hparams(logs: Path, request: Request, result: Mapping[str, Any], name: str) -> None:
    """What TensorBoard's HParams page shows of the trial; name: of the objective."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    with files.refused(logs):
        writer = tf.summary.create_file_writer(str(logs))
        with writer.as_default():
            api.hparams(dict(request.values), trial_id=request.trial)
            tf.summary.scalar(f"objective/{name}", result["objective"], step=result["epochs"])
        writer.close()


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Waits until no other process is at this trial: one that was given up may still be ending."""
    with contextlib.ExitStack() as stack:
        while True:
            lock = files.lock(
                directory / LOCK_NAME, f"{directory}: another process is at this trial"
            )
            try:
                stack.enter_context(lock)
                break
            except files.LockedError:
                time.sleep(0.2)
        yield


if __name__ == "__main__":
    run(main, PROG)
