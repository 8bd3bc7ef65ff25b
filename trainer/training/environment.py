"""What the machine around a run says: several hosts, and Vertex AI's directories. No TensorFlow.

    TF_CONFIG                     TensorFlow's description of a cluster and of this process in it
    CLUSTER_SPEC                  Vertex AI's; read where TF_CONFIG is not there
    AIP_MODEL_DIR                 the run's directory, where --output_dir does not say
    AIP_CHECKPOINT_DIR            what a restart needs
    AIP_TENSORBOARD_LOG_DIR       TensorBoard's files

Vertex AI gives directories as gs:// addresses and mounts every bucket under /gcs: they are written
there as files.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beam_jobs.common.cli import UsageError

_MOUNT = Path("/gcs")


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
                data = json.loads(text)
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
class RunDirectories:
    """Where a run writes.

    Attributes:
      run: run.json and the members.
      checkpoints: what a restart needs; the run's own directory but on Vertex AI.
      logs: TensorBoard's files.
    """

    run: Path
    checkpoints: Path
    logs: Path

    def push(self) -> None:
        """Brings a store up to what lies here."""


def run_directories(
    output_dir: Path | None, environ: Mapping[str, str] = os.environ
) -> RunDirectories:
    """The directories of a run: what --output_dir says, and Vertex AI's where it is silent.

    Raises:
      UsageError: neither says where, or a gs:// address whose bucket is not mounted.
    """
    if output_dir is not None:
        run = output_dir
    elif address := environ.get("AIP_MODEL_DIR"):
        run = _mounted(address, "AIP_MODEL_DIR")
    else:
        raise UsageError("--output_dir is required (or AIP_MODEL_DIR, on Vertex AI)")
    checkpoints = environ.get("AIP_CHECKPOINT_DIR")
    logs = environ.get("AIP_TENSORBOARD_LOG_DIR")
    return RunDirectories(
        run=run,
        checkpoints=_mounted(checkpoints, "AIP_CHECKPOINT_DIR") if checkpoints else run,
        logs=_mounted(logs, "AIP_TENSORBOARD_LOG_DIR") if logs else run / "logs",
    )


def _mounted(address: str, name: str) -> Path:
    if not address.startswith("gs://"):
        return Path(address)
    bucket, _, path = address.removeprefix("gs://").partition("/")
    if not (_MOUNT / bucket).is_dir():
        raise UsageError(f"{name}={address}: the bucket is not mounted at {_MOUNT / bucket}")
    return _MOUNT / bucket / path
