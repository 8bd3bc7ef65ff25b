"""A job on an engine that is no part of this process: it goes on without us unless it is cancelled.

submitted     its name, id and state are printed, and `mark` is told of it where it could go on
              without this process, however that ends
given up      cancelled, and waited for with a limit; what cannot be cancelled is
              `StillRunningError`, and the mark stays
ended         the mark is taken away
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from beam_jobs.common import interrupts
from beam_jobs.common.cli import CommandError, StillRunningError, is_quiet
from beam_jobs.runners.engines import Engine

_CANCEL_S = 60.0  # for an engine to end a job
_FAREWELL_S = 5.0  # where the job ends with this process anyway
_SUBMIT_S = 60.0  # for a submission that was begun: it cannot be taken back amid it
_STATE_S = 2.0
_AGAIN_S = 0.5
_QUIET_S = 1.0  # that a cancellation may take without a word
_TERMINAL = frozenset({"DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED"})

Mark = Callable[[str], None]


class SubmittedJob:
    """One job, from its submission to its end.

    Args:
      engine: what runs it.
      mark: told of a job that outlives this process, in one line, and "" once it has ended.
    """

    def __init__(self, engine: Engine, mark: Mark | None) -> None:
        self._engine = engine
        self._mark = None if engine.ends_with_command else mark
        self._result: Any = None
        self._id = ""
        self._state = ""
        self._ended = threading.Event()
        self._fault = ""
        self._told = False

    def begun(self, result: Any) -> None:
        """The engine has the job; `result` is Beam's."""
        if not getattr(result, "has_job", True):  # Dataflow's, of a template
            return
        get_id = getattr(result, "job_id", None)
        self._id = str(get_id() if get_id is not None else getattr(result, "_job_id", ""))
        self._result = result
        self._tell()
        threading.Thread(target=self._follow, daemon=True).start()

    def ended(self) -> None:
        """The job is known to have ended."""
        self._ended.set()
        interrupts.remark("")
        if self._mark is not None and self._told:
            self._mark("")

    def _tell(self) -> None:
        how = self._engine.how_to_cancel(self._id)
        if not self._engine.ends_with_command:
            interrupts.remark(f"{self} may still run; to end it: {how}")
        if self._mark is not None:
            self._told = True
            self._mark(f"{self}; to end it: {how}")

    def give_up(self, submission: threading.Thread) -> None:
        """Cancels the job and waits for its end; nothing where it has ended.

        Args:
          submission: the thread that submits it and waits for it.

        Raises:
          StillRunningError: it may still run.
        """
        outlives = not self._engine.ends_with_command
        seconds = _CANCEL_S if outlives else _FAREWELL_S
        if self._result is None and outlives:
            seconds += _SUBMIT_S
            if submission.is_alive():  # a second Ctrl-C would end this process without a word
                self._tell()
        interrupts.allow(seconds + _FAREWELL_S)
        thread = threading.Thread(target=self._cancel, args=(submission,), daemon=True)
        thread.start()
        begin, said = time.monotonic(), is_quiet()
        while thread.is_alive() and (waited := time.monotonic() - begin) < seconds:
            thread.join(0.1)
            if not said and waited > _QUIET_S:
                said = True
                self._say(f"cancelling {self}, for up to {seconds:.0f} s")
        if self._ended.is_set() or not outlives:
            self.ended()
            return
        self._ended.set()
        fault = self._fault or f"{self._state or 'no answer'} after {seconds:.0f} s"
        raise StillRunningError(
            f"{self} could not be cancelled ({fault}) and may still run; to end it: "
            f"{self._engine.how_to_cancel(self._id)}"
        )

    def __str__(self) -> str:
        of_engine = f" ({self._id})" if self._id else ""
        return f"job {self._engine.job_name}{of_engine} on {self._engine}"

    def _say(self, text: str) -> None:
        if not is_quiet():
            with contextlib.suppress(OSError):
                print(text, file=sys.stderr, flush=True)

    def _follow(self) -> None:
        """Prints the state when it changes."""
        with contextlib.suppress(Exception):  # the engine is gone: who waits for the job says so
            while not self._ended.is_set():
                state = str(self._result.state)
                if state != self._state:
                    self._state = state
                    self._say(f"{self}: {state}")
                if state in _TERMINAL:
                    return
                self._ended.wait(_STATE_S)

    def _cancel(self, submission: threading.Thread) -> None:
        """Ends the job, and says so by `_ended`; else why not by `_fault`."""
        while self._result is None and submission.is_alive():
            time.sleep(0.1)
        try:
            if self._result is not None:  # else it came to nothing
                self._cancel_by_beam()
        except Exception as error:
            self._fault = lost_connection(error) or str(error) or type(error).__name__
            gone_with_its_server = self._engine.in_server and lost_connection(error)
            if not gone_with_its_server and self._engine.cluster is None:
                return
        if self._engine.cluster is not None:  # its job server's word is not enough
            try:
                self._engine.cluster.end_job(self._engine.job_name)
            except CommandError as error:
                self._fault = str(error)
                return
        self._ended.set()

    def _cancel_by_beam(self) -> None:
        if str(self._result.state) not in _TERMINAL:
            self._result.cancel()
        while (state := str(self._result.state)) not in _TERMINAL:
            self._state = state
            time.sleep(_AGAIN_S)


def lost_connection(error: BaseException) -> str:
    """What gRPC says of a server that is gone; "" for any other error."""
    import grpc

    if isinstance(error, grpc.RpcError) and isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return ""
