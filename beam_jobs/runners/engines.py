"""Which engine a job runs on, and whether its workers see this machine's paths.

    FnApiRunner, Direct...             workers are on this machine
    Flink, Spark, Prism, Portable      on this machine with --environment_type=LOOPBACK alone
    Dataflow, any other                elsewhere

Elsewhere they see no local path, unless `--shared_disk` says that they do: nobody can tell that
from Beam's options (a PROCESS or EXTERNAL environment may be on a mount that all machines share).
Beam is imported where it is used: it takes seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.common.cli import UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.runners.flink_cluster import FlinkCluster

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

SHARED_DISK_FLAG: dict[str, Any] = {
    "action": "store_true",
    "help": "the workers of the cluster see this machine's paths (a shared mount)",
}
# Runners that are a part of this process, in lower case.
_LOCAL = ("fnapi", "direct", "switchingdirect", "bundlebaseddirect", "testdirect")
_STARTED_LOCAL = re.compile(r"\[(local|auto)\]|local(\[.+\])?")  # Flink's and Spark's masters
_LONGEST_NAME = (
    36  # of an output's: whole names are labels in Google's cloud, 63 characters at most
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What runs a job.

    Attributes:
      name: for the user: "Flink", "Dataflow", "PortableRunner".
      place: where it is: a job server's address, a cluster's, a project and region; "" for one that
        lives in this process or is started by it.
      job_name: the job's own name.
      local: it is a part of this process.
      workers_here: its workers are on this machine, and end with this process.
      in_server: it is a part of the job server: where that is gone, the job is too.
      own_server: the command started that job server.
      cluster: a Flink cluster that was found.
    """

    name: str
    place: str = ""
    job_name: str = ""
    local: bool = False
    workers_here: bool = False
    in_server: bool = False
    own_server: bool = False
    cluster: FlinkCluster | None = None

    @property
    def ends_with_command(self) -> bool:
        """Whether a job cannot outlive this process, however that ends."""
        return self.local or self.workers_here or (self.own_server and self.in_server)

    def how_to_cancel(self, job_id: str) -> str:
        """What a user can do about a job that this process cannot cancel."""
        if self.name == "Dataflow":
            project, region = (word.split()[-1] for word in self.place.split(", "))
            what = f"cancel {job_id}" if job_id else f"list --filter=name={self.job_name}"
            return f"gcloud dataflow jobs {what} --project={project} --region={region}"
        if self.name == "Flink" and self.place.startswith("http"):
            return f"`flink list` and `flink cancel`, or {self.place} (its name is {self.job_name})"
        return f"cancel it there, or stop what is there ({self.place})"

    def __str__(self) -> str:
        return f"{self.name} ({self.place})" if self.place else self.name


def runner_of(options: PipelineOptions) -> str:
    """The runner's name in lower case, without its module and the word "runner"."""
    from apache_beam.options.pipeline_options import StandardOptions

    name = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1]
    return name.lower().removesuffix("runner")


def find_runner(options: PipelineOptions) -> Any:
    """The runner of the options.

    Raises:
      UsageError: there is none of the name, or it is not installed.
    """
    from apache_beam.options.pipeline_options import StandardOptions
    from apache_beam.runners.runner import PipelineRunner, create_runner

    name = options.view_as(StandardOptions).runner
    try:
        runner = create_runner(name)
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        raise UsageError(f"--runner={name}: {error}") from error
    if not isinstance(runner, PipelineRunner):
        raise UsageError(f"--runner={name} is not a runner of Beam's")
    return runner


def engine_of(options: PipelineOptions) -> Engine:
    """The engine that the options request."""
    from apache_beam.options.pipeline_options import (
        GoogleCloudOptions,
        PortableOptions,
        StandardOptions,
    )

    runner, portable = runner_of(options), options.view_as(PortableOptions)
    place = portable.job_endpoint or ""
    if runner == "dataflow":
        cloud = options.view_as(GoogleCloudOptions)
        place = f"project {cloud.project}, region {cloud.region}"
    elif master := cluster_of(options):
        place = master
    known = {"flink": "Flink", "spark": "Spark", "prism": "Prism", "dataflow": "Dataflow"}
    given = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1]
    local = runner in _LOCAL
    return Engine(
        name=known.get(runner, given),
        place=place,
        job_name=options.view_as(GoogleCloudOptions).job_name or "",
        local=local,
        workers_here=local or portable.environment_type == "LOOPBACK",
        in_server=runner == "prism",
    )


def cluster_of(options: PipelineOptions) -> str:
    """The address of the cluster that Flink's or Spark's options name; "" for none."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, SparkRunnerOptions

    master = ""
    if runner_of(options) == "flink":
        master = options.view_as(FlinkRunnerOptions).flink_master
    elif runner_of(options) == "spark":
        master = options.view_as(SparkRunnerOptions).spark_master_url
    return "" if _STARTED_LOCAL.fullmatch(master) else master


def workers_here(options: PipelineOptions) -> bool:
    """Whether the workers are known to be on this machine: its temporary files are theirs too."""
    return engine_of(options).workers_here


def shares_disk(options: PipelineOptions, shared_disk: bool) -> bool:
    """Whether the workers see this machine's paths.

    Args:
      options: Beam's.
      shared_disk: what `--shared_disk` says.
    """
    return shared_disk or workers_here(options)


def require_reachable(
    options: PipelineOptions,
    paths: Mapping[str, str],
    *,
    shared_disk: bool,
    spool: Sequence[str] = (),
) -> None:
    """Refuses local paths where the workers cannot be known to see them.

    Args:
      options: Beam's.
      paths: flag → path.
      shared_disk: what `--shared_disk` says.
      spool: flags about the spool of this machine.

    Raises:
      UsageError: names the flag, the engine, and what would help.
    """
    if spool and not workers_here(options):
        raise UsageError(
            f"{spool[0]} is about this machine, where the workers of {engine_of(options).name} are "
            "not: VOXELBEAM_SPOOL in their environment names their spool"
        )
    if shares_disk(options, shared_disk):
        return
    for flag, path in paths.items():
        if files.names_local_file(path):
            raise UsageError(
                f"{flag} takes ids from a file of this machine (@FILE), where the workers of "
                f"{engine_of(options).name} cannot reach it: put the ids into the search, or "
                "--shared_disk where they see this machine's paths (a shared mount)"
            )
        if not files.is_remote(path):
            raise UsageError(
                f"{flag} {path} is on this machine, where the workers of "
                f"{engine_of(options).name} cannot reach it: gs://, s3:// or az:// is needed, or "
                "--shared_disk where they see this machine's paths (a shared mount)"
            )


def name_job(options: PipelineOptions, command: str, output: str) -> None:
    """Gives the job a name that says what it is, where `--job_name` gives none.

    The same output has the same name, and Dataflow refuses a job whose name another bears that
    still runs.

    Args:
      options: Beam's.
      command: "convert", "predict".
      output: where to.
    """
    from apache_beam.options.pipeline_options import GoogleCloudOptions

    cloud = options.view_as(GoogleCloudOptions)
    if not cloud.job_name:
        # Dataflow's rule: lower-case letters, digits and hyphens, a letter first.
        last = re.sub(r"[^a-z0-9]+", "-", output.rstrip("/").rsplit("/", 1)[-1].lower())
        digest = hashlib.sha256(output.encode(errors="surrogateescape")).hexdigest()[:8]
        words = ("voxelbeam", command, last.strip("-")[:_LONGEST_NAME].strip("-"), digest)
        cloud.job_name = "-".join(word for word in words if word)
