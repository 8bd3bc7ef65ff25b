"""Runs a trial's process, again with half the batch where memory ran out, and says how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.common.contract_json import ContractError, ListOf, Within, require_kinds
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import write_json
from trainer.metrics.stored import MOST
from trainer.search.child_process import run_to_end
from trainer.search.trial import (
    ATTEMPT_NAME,
    BROKEN,
    FAILED,
    FIRST_REFUSAL,
    LOG_NAME,
    MEMORY,
    REQUEST_NAME,
    RESULT_NAME,
    Request,
    disposable,
    read_if_there,
    read_result,
)
from trainer.training.claim import differences
from trainer.training.environment import Pace

COMMAND = (sys.executable, "-m", "trainer.search.trial_process")

# What TensorFlow, CUDA, C++ and Python say when there is no memory left.
_NO_MEMORY = re.compile(
    r"ResourceExhaustedError|RESOURCE_EXHAUSTED|OOM when allocating|CUDA_ERROR_OUT_OF_MEMORY"
    r"|std::bad_alloc|MemoryError"
)
_BATCH_NAME = ".batch.json"  # the batch that memory has come down to
_TAIL = 20_000  # bytes of the log in which a reason is looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended that left no result.

    Attributes:
      kind: MEMORY, DIVERGED, REFUSED or BROKEN.
      reason: a line.
      fits: the largest batch that may fit, where the process could tell; 0 for none.
    """

    kind: str
    reason: str
    fits: int | None = None


def run_trial(
    directory: Path,
    request: Request,
    command: Sequence[str] = COMMAND,
    tell: Callable[[Pace], object] | None = None,
) -> dict[str, Any]:
    """Runs a trial to its end and gives result.json; one that has a result is not run again.

    Args:
      directory: of the trial.
      request: what to train.
      command: starts the trial's process; the path of request.json is put behind it.
      tell: gets the pace of its run.

    Raises:
      CommandError: the trial's process cannot be started, or the dataset is another one now.
      ContractError: the result that is there is damaged, or of other hyperparameters.
      OSError: a disk is full, or refuses in another way; it is no fault of the trial's.
    """
    file = directory / RESULT_NAME
    if (there := read_result(file)) is not None:
        _require_same(directory, request)
        return there
    smaller: list[str] = []
    requested = int(request.config["batch_size"])
    started = time.monotonic()
    before = _read_batch(directory / _BATCH_NAME)
    if before:  # a killed study's trial had come down to this batch already
        smaller, batch = list(before["smaller"]), int(before["batch_size"])
        request = _with_batch(request, batch)
    while True:
        (directory / ATTEMPT_NAME).unlink(missing_ok=True)
        ended = _attempt(directory, request, command, tell)
        if ended is None:
            result = read_result(file)
            assert result is not None
            if smaller and "batch_sizes" not in result:
                reason = (
                    f"batch {result['batch_size']} instead of {requested}: {'; '.join(smaller)}"
                )
                result = {**result, "reason": reason, "batch_sizes": smaller}
                write_json(file, result)
            return result
        batch = int(request.config["batch_size"])
        fits = batch // 2 if ended.fits is None else ended.fits
        if ended.kind != MEMORY or not fits:
            result = {
                "status": FAILED,
                "kind": ended.kind,
                "reason": "; ".join([*smaller, _at(ended, batch)]),
                "batch_size": batch,
                "seconds": round(time.monotonic() - started, 3),
            }
            write_json(file, result)
            _delete_networks(directory)
            return result
        smaller.append(_at(ended, batch))
        request = _with_batch(request, fits)
        write_json(directory / _BATCH_NAME, {"batch_size": fits, "smaller": smaller})


def _require_same(directory: Path, request: Request) -> None:
    """Refuses a result that is there, and is of something else than is requested.

    The batch may have come down since, and the dataset may lie elsewhere now.
    """
    hint = f"delete {RESULT_NAME} to run the trial again"
    try:
        before = Request.load(directory / REQUEST_NAME)
    except FileNotFoundError as error:
        raise ContractError(
            f"{directory}: a result without {REQUEST_NAME}: put it back, or {hint}"
        ) from error
    told = ("values", "dataset_fingerprint", "folds", "round")
    there, asked = ({name: getattr(one, name) for name in told} for one in (before, request))
    if differing := differences(there, asked):
        raise ContractError(f"{directory} holds another trial's result ({differing}); {hint}")


def _read_batch(file: Path) -> dict[str, Any] | None:
    """What `_BATCH_NAME` says; None where there is none.

    Raises:
      ContractError: it is no such file; the message names the member.
    """
    if (found := read_if_there(file)) is not None:
        try:
            require_kinds(found, {"batch_size": Within(int, 1, MOST), "smaller": ListOf(str)})
        except ContractError as error:
            raise ContractError(
                f"{file}: {error}; delete it to begin with the batch asked for"
            ) from error
    return found


def _at(ended: Ended, batch: int) -> str:
    if ended.kind != MEMORY:
        return ended.reason
    if ended.fits is not None:
        return f"not started at batch {batch}: {ended.reason}"
    return f"out of memory at batch {batch} ({ended.reason})"


def _with_batch(request: Request, batch: int) -> Request:
    return dataclasses.replace(request, config={**request.config, "batch_size": batch})


def _delete_networks(directory: Path) -> None:
    names = [entry.path.removeprefix(f"{directory}/") for entry in files.entries(directory)]
    files.delete(directory / name for name in disposable(names))


def _attempt(
    directory: Path,
    request: Request,
    command: Sequence[str],
    tell: Callable[[Pace], object] | None,
) -> Ended | None:
    """One process; None where it left a result."""
    file = request.save(directory)
    log = directory / LOG_NAME
    with log.open("ab") as stream:
        begun = stream.tell()
        code = run_to_end([*command, str(file)], log=stream, tell=tell)
    if (directory / RESULT_NAME).is_file():
        return None
    with contextlib.suppress(ValueError, TypeError):
        if (said := read_if_there(directory / ATTEMPT_NAME)) is not None:
            require_kinds(said, {"kind": str, "reason": str})
            require_kinds(said, {"fits": Within(int, 0, MOST)} if "fits" in said else {})
            return Ended(**said)
    with log.open("rb") as stream:
        stream.seek(max(begun, log.stat().st_size - _TAIL))
        text = stream.read().decode(errors="replace")
    if (refused := _refusal(code, text)) is not None:
        raise OSError(refused, os.strerror(refused), str(directory))
    return classify(code, text)


def _refusal(code: int, text: str) -> int | None:
    """The number of what a disk refused a trial's process, None where it ended by something else.

    The code may be lost as the text may: a full disk takes no more of the log, and that fails too.
    """
    if 0 <= code - FIRST_REFUSAL < len(files.REFUSALS):
        return files.REFUSALS[code - FIRST_REFUSAL]
    last = text.rstrip().rpartition("\n")[2]
    return next((n for n in files.REFUSALS if code == 1 and last.endswith(os.strerror(n))), None)


def classify(code: int, text: str) -> Ended:
    """How a process ended that could not say so itself.

    Args:
      code: its exit code; negative for a signal, as `subprocess` has it.
      text: the end of what it wrote.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if _NO_MEMORY.search(line)]
    if found:
        return Ended(kind=MEMORY, reason=_short(found[-1]))
    if code in (-9, 137):
        # The kernel does so for its memory more often than a person does by hand.
        return Ended(kind=MEMORY, reason="the process was killed (SIGKILL), as for its memory")
    last = _short(lines[-1]) if lines else "it wrote nothing"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Ended(kind=BROKEN, reason=f"{how}: {last}")


def _short(line: str) -> str:
    return line if len(line) <= 200 else line[:197] + "..."
