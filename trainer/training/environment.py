"""What the machine around a run says: several hosts, and Vertex AI's directories. No TensorFlow.

    TF_CONFIG                     TensorFlow's description of a cluster and of this process in it
    CLUSTER_SPEC                  Vertex AI's; read where TF_CONFIG is not there
    AIP_MODEL_DIR                 the run's directory, where --output_dir does not say
    AIP_CHECKPOINT_DIR            what a restart needs
    AIP_TENSORBOARD_LOG_DIR       TensorBoard's files
    VOXELBEAM_PACE                a file for the run's `Pace`, of a process that has this one train

Vertex AI gives directories as gs:// addresses; any other place will do as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import UsageError, require_utf8
from beam_jobs.common.contract_json import json_object
from beam_jobs.common.files import interface as files
from beam_jobs.common.json_file import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes that train together.

    Attributes:
      workers: addresses, "host:port"; one alone is no cluster.
      index: of this process among them.
    """

    workers: tuple[str, ...] = ("localhost",)
    index: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run: exactly one does."""
        return self.index == 0

    def tf_config(self) -> str:
        """TF_CONFIG of this process, with the chief as worker 0."""
        return json.dumps(
            {
                "cluster": {"worker": list(self.workers)},
                "task": {"type": "worker", "index": self.index},
            }
        )


def cluster_of(environ: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that TF_CONFIG or CLUSTER_SPEC describes; of one process where neither is there.

    "chief" and "master" come before the workers, and Vertex AI's workerpool0 before its
    workerpool1. Evaluators and parameter servers are not for this trainer.

    Raises:
      UsageError: it is not such a description, or not one of workers.
    """
    for name in ("TF_CONFIG", "CLUSTER_SPEC"):
        if text := environ.get(name, "").strip():
            try:
                data = json_object(text)
                cluster, task = data.get("cluster") or {}, data.get("task") or {}
                return _cluster(cluster, task)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise UsageError(f"{name}: {error or type(error).__name__}: {text}") from error
    return Cluster()


def _cluster(cluster: Mapping[str, Any], task: Mapping[str, Any]) -> Cluster:
    roles = ("chief", "master", "worker", "workerpool0", "workerpool1")
    if others := sorted(role for role, addresses in cluster.items() if role not in roles):
        others = [role for role in others if cluster[role]]
        if others:
            raise ValueError(f"{', '.join(others)} cannot be used, only chief and workers can")
    places = [
        (role, index, str(address))
        for role in roles
        for index, address in enumerate(cluster.get(role) or ())
    ]
    if not places:
        return Cluster()
    own = (str(task["type"]), int(task["index"]))
    found = [place for place, (role, index, _) in enumerate(places) if (role, index) == own]
    if not found:
        raise ValueError(f"task {own[0]} {own[1]} is not in the cluster")
    return Cluster(workers=tuple(address for _, _, address in places), index=found[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunAddresses:
    """Where a run is to lie: local directories, or places in stores.

    Attributes:
      run: run.json and the members.
      checkpoints: what a restart needs; the run's own directory but on Vertex AI.
      logs: TensorBoard's files.
    """

    run: str
    checkpoints: str
    logs: str


def run_addresses(
    output_dir: files.StrPath | None, environ: Mapping[str, str] = os.environ
) -> RunAddresses:
    """Where a run is to lie: what --output_dir says, and Vertex AI's where it is silent.

    Raises:
      UsageError: neither says where, or one is a place that nothing can be written to, or is not
        UTF-8, in which TensorFlow is told of it.
    """
    run = output_dir if output_dir is not None else environ.get("AIP_MODEL_DIR")
    if not run:
        raise UsageError("--output_dir is required (or AIP_MODEL_DIR, on Vertex AI)")
    run = files.text(run)
    addresses = RunAddresses(
        run=run,
        checkpoints=environ.get("AIP_CHECKPOINT_DIR") or run,
        logs=environ.get("AIP_TENSORBOARD_LOG_DIR") or files.join(run, "logs"),
    )
    for address in dataclasses.astuple(addresses):
        files.require_writable(address)
        require_utf8(address)
    return addresses


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunDirectories:
    """Where a run is written, on this machine's disks.

    Attributes:
      run, checkpoints, logs: as in `RunAddresses`; each the place itself or its mirror.
      push: brings the mirrored places up to what lies here.
    """

    run: Path
    checkpoints: Path
    logs: Path
    push: Callable[[], None] = lambda: None


PACE = "VOXELBEAM_PACE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a run goes, by its first steps.

    Attributes:
      epoch_seconds: of an epoch of one member, with the predictions behind it.
      end_seconds: of a member's last predictions.
      members: of the run.
      epochs: of a member.
    """

    epoch_seconds: float
    end_seconds: float
    members: int
    epochs: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.members * (self.epochs * self.epoch_seconds + self.end_seconds)


def pass_on(pace: Pace, environ: Mapping[str, str] = os.environ) -> bool:
    """Leaves a pace to the process that has this one train; whether there is such a process."""
    if file := environ.get(PACE):
        write_json(Path(file), dataclasses.asdict(pace))
    return PACE in environ
