"""KerasTuner's loop around trials, and its protocol between a chief and workers.

What is mended, of KerasTuner 1.4: an exception of any kind counts as a trial's; conditions that
travel are printed.
"""

from __future__ import annotations

from concurrent import futures
from typing import Any

import grpc
import keras_tuner as kt
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos  # the wire format has no public name
from keras_tuner.src.distribute import oracle_client
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.engine import conditions

from beam_jobs.common.cli import CommandError
from beam_jobs.common.files import interface as files
from trainer.search.oracles.durable import Durable

# Left from debugging: a value of every condition is printed whenever a trial travels.
conditions.print = lambda *_: None


class TrialLoop(BaseTuner):
    """KerasTuner's loop, in which a trial may fail and whatever else is wrong is raised.

    Args:
      oracle: what is tried next; it has a place of its own to be saved in.
    """

    def __init__(self, oracle: Durable) -> None:
        # KerasTuner makes a directory where it is begun; nothing is ever written there.
        with files.scratch("tune") as unused:
            super().__init__(oracle, directory=str(unused), project_name="unused")

    def _try_run_and_update_trial(self, trial: Trial, *args: Any, **kwargs: Any) -> None:
        # KerasTuner's catches whatever there is, prints a traceback, and counts it as a trial's.
        try:
            metrics = self.run_trial(trial)
        except kt.errors.FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)
            return
        self.oracle.update_trial(trial.trial_id, metrics)
        trial.status = TrialStatus.COMPLETED


class ChiefClient(oracle_client.OracleClient):
    """A worker's line to the chief.

    Args:
      oracle: what is known of it without a call.
      timeout: seconds that a call may take; KerasTuner's is an hour.
    """

    def __init__(self, oracle: Durable, timeout: float) -> None:
        super().__init__(oracle)
        oracle_client.TIMEOUT = timeout


class ChiefServer:
    """Answers workers' calls with an oracle, one at a time.

    Raises:
      CommandError: the address is not this machine's, or taken.
    """

    def __init__(self, oracle: Durable, address: str) -> None:
        self._servicer = OracleServicer(oracle)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=1), options=(("grpc.so_reuseport", 0),)
        )
        protos.get_service_grpc().add_OracleServicer_to_server(self._servicer, self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise CommandError(f"the chief cannot listen on {address}")
        self._server.start()

    @property
    def has_stopped_a_worker(self) -> bool:
        """Whether a worker got the answer that no trial is left."""
        return bool(self._servicer.stop_triggered)

    def close(self) -> None:
        """Ends it, calls under way within a second."""
        self._server.stop(grace=1).wait()
