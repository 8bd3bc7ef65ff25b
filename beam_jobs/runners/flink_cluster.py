"""A Flink cluster, asked over its REST API before it gets a job.

Beam's job server passes a job on to a cluster that is gone, or has no room, and waits.
https://nightlies.apache.org/flink/flink-docs-stable/docs/ops/rest_api/ (`/overview`)
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import CommandError, UsageError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_ANSWER_S = 10.0


def require_cluster(options: PipelineOptions, master: str) -> None:
    """Finds out whether a cluster is there, and says where the job would wait in it.

    Args:
      options: Beam's.
      master: the cluster's address, with its scheme.

    Raises:
      CommandError: it does not answer.
      UsageError: with LOOPBACK it has several task managers.
    """
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions

    overview = _overview(master)
    managers = overview.get("taskmanagers", 0)
    if options.view_as(PortableOptions).environment_type == "LOOPBACK" and managers > 1:
        raise UsageError(
            f"--environment_type=LOOPBACK: Flink at {master} has {managers} task managers, whose "
            "workers in this process would bear the same names and end each other; EXTERNAL or "
            "PROCESS is needed (docs/how-to/flink.md)"
        )
    free, slots = overview.get("slots-available", 0), overview.get("slots-total", 0)
    needed = max(1, options.view_as(FlinkRunnerOptions).parallelism)
    if free < needed:  # a cluster may grow, so it is for the user to say that it will not
        print(
            f"Flink at {master} has {free} of {slots} slots free and the job needs {needed}: it "
            "waits for them",
            file=sys.stderr,
        )


def _overview(master: str) -> dict[str, Any]:
    # As Flink's own client: through no proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    fault = "what answers there is not Flink"
    try:
        with opener.open(f"{master.rstrip('/')}/overview", timeout=_ANSWER_S) as answer:
            said = json.load(answer)
        if isinstance(said, dict) and "taskmanagers" in said:
            return said
    except urllib.error.HTTPError as error:
        fault = f"it answers with HTTP {error.code}"
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        fault = f"nothing answers there: {getattr(reason, 'strerror', None) or reason}"
    except ValueError:
        pass
    raise CommandError(f"--flink_master {master}: {fault}")
