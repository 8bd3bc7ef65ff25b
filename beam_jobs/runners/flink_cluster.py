"""A Flink cluster, asked over its REST API: before it gets a job, and when the job is to end.

Beam's job server passes a job on to a cluster that is gone, or has no room, and waits. It calls a
job cancelled at once, and may leave it running on the cluster.
https://nightlies.apache.org/flink/flink-docs-stable/docs/ops/rest_api/
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import CommandError, UsageError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_ANSWER_S = 10.0
_AGAIN_S = 0.5
_LONGEST = 64 << 20  # bytes of an answer
_NO_FLINK = "what answers there is not Flink"
_ENDED = frozenset({"FINISHED", "CANCELED", "FAILED"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlinkCluster:
    """A cluster as it was before it got our job.

    Attributes:
      master: its address, with the scheme.
      before: ids of the jobs that it had.
    """

    master: str
    before: frozenset[str]

    @classmethod
    def found(cls, options: PipelineOptions, master: str) -> FlinkCluster:
        """Finds out whether a cluster is there, and says where the job would wait in it.

        Args:
          options: Beam's.
          master: the cluster's address, with its scheme.

        Raises:
          CommandError: it does not answer.
          UsageError: with LOOPBACK it has several task managers.
        """
        from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions

        overview = _ask(master, "/overview")
        managers, free, slots = map(
            overview.get, ("taskmanagers", "slots-available", "slots-total")
        )
        if not (isinstance(managers, int) and isinstance(free, int) and isinstance(slots, int)):
            raise CommandError(f"--flink_master {master}: {_NO_FLINK}")
        if options.view_as(PortableOptions).environment_type == "LOOPBACK" and managers > 1:
            raise UsageError(
                f"--environment_type=LOOPBACK: Flink at {master} has {managers} task managers, "
                "whose workers in this process would bear the same names and end each other; "
                "EXTERNAL or PROCESS is needed (docs/how-to/flink.md)"
            )
        needed = max(1, options.view_as(FlinkRunnerOptions).parallelism)
        if free < needed:  # a cluster may grow, so it is for the user to say that it will not
            print(
                f"Flink at {master} has {free} of {slots} slots free and the job needs {needed}: "
                "it waits for them",
                file=sys.stderr,
            )
        return cls(master=master, before=frozenset(job["jid"] for job in _jobs(master)))

    def end_job(self, name: str) -> None:
        """Cancels the job of a name that came since, and waits until it has ended.

        Args:
          name: `--job_name`, as Flink has it.

        Raises:
          CommandError: the cluster does not answer, or refuses.
        """
        while running := [
            job["jid"]
            for job in _jobs(self.master)
            if job["name"] == name and job["jid"] not in self.before and job["state"] not in _ENDED
        ]:
            for jid in running:
                _ask(self.master, f"/jobs/{jid}?mode=cancel", method="PATCH")
            time.sleep(_AGAIN_S)


def _jobs(master: str) -> list[dict[str, str]]:
    jobs = _ask(master, "/jobs/overview").get("jobs")
    if isinstance(jobs, list) and all(
        isinstance(job, dict) and {"jid", "name", "state"} <= job.keys() for job in jobs
    ):
        return jobs
    raise CommandError(f"--flink_master {master}: {_NO_FLINK}")


def _ask(master: str, path: str, *, method: str = "GET") -> dict[str, Any]:
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(_answer(f"{master.rstrip('/')}{path}", method))
        except Exception as error:
            answer.set_exception(error)

    # A thread: neither the search for a host's name nor an answer that trickles in has a limit.
    threading.Thread(target=ask, daemon=True).start()
    fault = _NO_FLINK
    try:
        said = answer.result(_ANSWER_S)
        if isinstance(said, dict):
            return said
    except TimeoutError:  # an OSError too
        fault = f"nothing answers there within {_ANSWER_S:.0f} s"
    except urllib.error.HTTPError as error:
        fault = f"it answers with HTTP {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        fault = f"nothing answers there: {getattr(reason, 'strerror', None) or reason}"
    except (HTTPException, OverflowError, RecursionError, ValueError):
        pass
    raise CommandError(f"--flink_master {master}: {fault}")


def _answer(address: str, method: str) -> Any:
    # As Flink's own client: through no proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(address, method=method)
    with opener.open(request, timeout=_ANSWER_S) as answer:
        return json.loads(answer.read(_LONGEST))
