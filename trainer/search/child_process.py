"""A process that trains for this one: alone, and ended with whoever started it.

    python -m trainer.search.child_process trainer.task --data dataset --output_dir run ...

runs a command that ends when its parent is gone, however that went. A process of its own, because
memory that TensorFlow has taken comes back only with the process's end.
"""

from __future__ import annotations

if __name__ == "__main__":  # signals may come amid the imports below
    from beam_jobs.common.interrupts import expect, leave_to_parent

    expect("")
    leave_to_parent()

import contextlib
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from beam_jobs.common.cli import CommandError, is_quiet
from beam_jobs.common.files import interface as files
from beam_jobs.common.files import scratch
from beam_jobs.common.json_file import read_json, write_json
from trainer.config.user_code import places
from trainer.training.environment import PACE, Pace

TRAIN = (sys.executable, "-m", "trainer.search.child_process", "trainer.task")
_LOOK_S = 0.5  # between looks for a child's pace
_END_S = 3.0  # that a child may take to tidy up
# Of the surroundings that belong to the parent, not to a child: it trains alone, where it is told.
_NOT_THE_CHILDS = (
    *("TF_CONFIG", "CLUSTER_SPEC"),
    *("AIP_MODEL_DIR", "AIP_CHECKPOINT_DIR", "AIP_TENSORBOARD_LOG_DIR"),
    *("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"),
)


def start(
    command: Sequence[str],
    *,
    log: IO[bytes] | None = None,
    alone: bool = True,
    sharing: bool = False,
    pace: str = "",
) -> subprocess.Popen[bytes]:
    """Starts a child; it ends when this process does (`end_with_parent`).

    Args:
      command: and its arguments.
      log: takes what it writes; None: it writes where this process does.
      alone: without the variables of a cluster, a search or Vertex AI.
      sharing: others use the same GPU: memory is taken as it is needed, not all at once.
      pace: a file that takes the `Pace` of what it trains; "" for nobody to tell.

    Raises:
      CommandError: it cannot be started.
    """
    left_out = _NOT_THE_CHILDS if alone else ()
    environ = {name: value for name, value in os.environ.items() if name not in left_out}
    environ[PACE] = pace
    if own := places():  # where the child would not look by itself
        environ["PYTHONPATH"] = os.pathsep.join([*own, *filter(None, [environ.get("PYTHONPATH")])])
    if sharing:
        environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the child that this process is gone
            stdout=log,
            stderr=None if log is None else subprocess.STDOUT,
            env=environ,
        )
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}: no process can be started") from error


def end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child that still works, by force where it does not hear; closes its input."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_S)
        child.kill()
        child.wait()
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()


def run_to_end(
    command: Sequence[str],
    *,
    log: IO[bytes] | None = None,
    alone: bool = True,
    tell: Callable[[Pace], object] | None = None,
) -> int:
    """Starts a child and gives its exit code; negative for a signal, as `subprocess` has it.

    Args:
      command, log, alone: as `start` takes them.
      tell: gets the pace of what the child trains, once that is known.
    """
    with contextlib.ExitStack() as stack:
        file = None if tell is None else stack.enter_context(files.scratch("pace")) / "pace.json"
        child = start(command, log=log, alone=alone, pace="" if file is None else str(file))
        stack.callback(end, child)
        ended = False
        while tell is not None and file is not None and not ended:
            ended = child.poll() is not None
            if file.is_file():
                tell(Pace(**read_json(file)))
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LOOK_S)
        return child.wait()


def train_arguments(
    data: str, output_dir: str, settings: files.StrPath, *, fold: int | None, cache: str
) -> list[str]:
    """Arguments of `trainer.task` for a run whose other settings stand in a file."""
    return [
        *("--data", data, "--output_dir", output_dir, "--hyperparameters", files.text(settings)),
        *(("--cross_validate",) if fold is None else ("--fold", str(fold))),
        *("--cache", cache),
        *(("--quiet",) if is_quiet() else ()),
    ]


def train_apart(
    data: str,
    output_dir: str,
    settings: Mapping[str, Any],
    *,
    cache: str,
    overwrite: bool,
    tell: Callable[[Pace], object] | None = None,
) -> None:
    """Trains a run in a process of its own, which writes where this one does.

    Args:
      data: the dataset's address.
      output_dir: of the run.
      settings: `TrainConfig`'s JSON, with its provenance where it has one.
      cache, overwrite: as `trainer.api.train` takes them.
      tell: as `run_to_end` takes it.

    Raises:
      CommandError: it fails; it has said why.
    """
    with files.scratch("train") as scratch:
        file = scratch / "settings.json"
        write_json(file, settings)
        arguments = train_arguments(data, output_dir, file, fold=settings["fold"], cache=cache)
        again = ("--overwrite",) if overwrite else ()
        if code := run_to_end([*TRAIN, *arguments, *again], alone=False, tell=tell):
            raise CommandError(f"{output_dir}: the run ended with exit code {code}")


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however it went.

    It holds the other end of this one's standard input, and the kernel closes it.
    """

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 1):
                pass
        scratch.stop_writing()
        scratch.remove_all()
        os._exit(1)

    if not sys.stdin.isatty():
        threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
