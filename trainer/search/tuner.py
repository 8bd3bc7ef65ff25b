"""The search itself: one process, or a chief that hands out trials to workers that come and go.

KerasTuner's own protocol and surroundings (KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and
KERASTUNER_ORACLE_PORT). All processes see the study's directory: workers leave a heartbeat there,
and a trial whose worker has had none for a while is handed out again.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import keras_tuner as kt
from keras_tuner.engine.trial import Trial, TrialStatus

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import interface as files
from beam_jobs.common.terminal import row
from trainer.search.oracles.durable import Durable
from trainer.search.oracles.loop import ChiefClient, ChiefServer, TrialLoop
from trainer.search.roles import Role
from trainer.search.study import WORKERS, Study
from trainer.search.trial import COMPLETED

_BEATS = 5  # heartbeats in the time after which a worker counts as lost
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

RunTrial = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]


class StudyTuner(TrialLoop):
    """KerasTuner's loop around trials that run elsewhere.

    Args:
      oracle: what is tried next.
      directory: of the study.
      role: of this process.
      run_trial: runs a trial of this id and these values, and gives its result.json.
      on_trial_end: is called after each trial that this process, or one of its workers, has ended.
      timeout: seconds without a heartbeat after which a worker, or the chief, counts as lost.
    """

    def __init__(
        self,
        oracle: Durable,
        *,
        directory: str,
        role: Role,
        run_trial: RunTrial,
        on_trial_end: Callable[[], None],
        timeout: float,
    ) -> None:
        super().__init__(oracle)
        oracle.directory = directory
        self.tuner_id = role.tuner_id
        self._study, self._role, self._run_trial = directory, role, run_trial
        self._on_trial_end, self._timeout = on_trial_end, timeout
        self._idle = False
        if role.is_worker:
            self.oracle = _Client(oracle, directory=directory, timeout=timeout)
        else:
            oracle.reload()

    def save(self) -> None:
        """Nothing of its own: the oracle saves itself with every change."""

    def search(self) -> None:
        """Runs trials, or hands them out, until there are none left.

        Raises:
          CommandError, ContractError, OSError: nothing more can be run here; a trial that fails is
            no error.
        """
        if self._role.is_chief:
            self._serve()
        elif self._role.is_worker:
            with _heartbeat(self._study, self.tuner_id, self._timeout):
                super().search()
        else:
            super().search()

    def pre_create_trial(self) -> None:
        if self._idle:  # there was none just before: others' trials must end first
            time.sleep(0.5)
        self._idle = True

    def on_trial_begin(self, trial: Trial) -> None:
        self._idle = False

    def run_trial(self, trial: Trial) -> dict[str, float]:
        result = self._run_trial(trial.trial_id, trial.hyperparameters.values)
        if result["status"] != COMPLETED:
            raise kt.errors.FailedTrialError(result["reason"])
        return {self.oracle.objective.name: float(result["objective"])}

    def on_trial_end(self, trial: Trial) -> None:
        self.oracle.end_trial(trial)
        self._on_trial_end()

    def _serve(self) -> None:
        """Hands out trials until none is left, and takes those back whose worker is lost."""
        oracle, server = self.oracle, ChiefServer(self.oracle, self._role.address)
        watch, ended = _Watch(self._study, self._timeout), len(oracle.end_order)
        try:
            while True:
                time.sleep(min(0.5, self._timeout / 10))
                for lost in watch.lost(set(oracle.tuner_ids) | set(oracle.ongoing_trials)):
                    trial = oracle.give_up(lost)
                    if trial is not None:
                        row("worker", f"{lost} is lost: trial {trial} will be run again")
                if len(oracle.end_order) != ended:
                    ended = len(oracle.end_order)
                    self._on_trial_end()
                over = oracle.is_over or (server.has_stopped_a_worker and not oracle.ongoing_trials)
                # Workers learn one by one that there is nothing left.
                if over and not oracle.tuner_ids:
                    return
        finally:
            server.close()


class _Client(ChiefClient):
    """A worker's line to the chief, which may be gone for a while and come back."""

    def __init__(self, oracle: Durable, *, directory: str, timeout: float) -> None:
        super().__init__(oracle, timeout=max(1.0, timeout / 4))
        self._directory, self._timeout = directory, timeout

    def create_trial(self, tuner_id: str) -> Trial:
        trial = self._call(super().create_trial, tuner_id)
        return Trial(None, status=TrialStatus.STOPPED) if trial is None else trial

    def update_trial(self, trial_id: str, metrics: Mapping[str, float], step: int = 0) -> Any:
        return self._call(super().update_trial, trial_id, metrics, step)

    def end_trial(self, trial: Trial) -> None:
        self._call(super().end_trial, trial)

    def _call(self, call: Callable[..., Any], *args: Any) -> Any:
        """The chief's answer; None where the study is over and the chief has left."""
        given_up = time.monotonic() + self._timeout
        while True:
            try:
                return call(*args)
            except grpc.RpcError as error:
                if Study(self._directory).is_over:
                    return None
                if error.code() not in _UNREACHABLE:
                    raise CommandError(f"the chief failed: {error.details()}") from error
                if time.monotonic() > given_up:
                    where = ":".join(
                        os.environ[f"KERASTUNER_ORACLE_{part}"] for part in ("IP", "PORT")
                    )
                    raise CommandError(
                        f"the chief at {where} has not answered for {self._timeout:g} s"
                    ) from error
                time.sleep(0.2)


class _Watch:
    """Says which workers have no heartbeat, by this process's own clock alone."""

    def __init__(self, study: str, timeout: float) -> None:
        self._study, self._timeout = study, timeout
        self._seen: dict[str, tuple[str, float]] = {}

    def lost(self, tuner_ids: set[str]) -> list[str]:
        now, lost = time.monotonic(), []
        for name in sorted(tuner_ids):
            try:
                beat = files.read_text(_heartbeat_file(self._study, name))
            except FileNotFoundError:
                beat = ""
            if self._seen.get(name, (None, 0.0))[0] != beat:
                self._seen[name] = (beat, now)
            elif now - self._seen[name][1] > self._timeout:
                lost.append(name)
                del self._seen[name]
        return lost


@contextlib.contextmanager
def _heartbeat(study: str, tuner_id: str, timeout: float) -> Iterator[None]:
    """Writes a count into this worker's file again and again while the block runs."""
    file, stop = _heartbeat_file(study, tuner_id), threading.Event()

    def beat() -> None:
        count = 0
        while True:
            count += 1
            with contextlib.suppress(OSError, CommandError):  # a store that is away for a moment
                files.write_text(file, f"{os.getpid()} {count}\n")
            if stop.wait(timeout / _BEATS):
                return

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeat of {tuner_id}")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _heartbeat_file(study: str, tuner_id: str) -> str:
    return files.join(study, WORKERS, re.sub(r"[^\w.-]", "_", tuner_id))
