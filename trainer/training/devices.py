"""The devices of a run, and the precision that suits them."""

from __future__ import annotations

import contextlib
import ctypes

import keras
import tensorflow as tf

from beam_jobs.common.cli import UsageError
from trainer.training.environment import Cluster


def make_strategy(cluster: Cluster) -> tf.distribute.Strategy:
    """The devices to train on: all GPUs of this machine, and the other hosts of a cluster.

    Made before anything else of TensorFlow runs where there are several hosts.
    """
    if len(cluster.workers) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy(
            tf.distribute.cluster_resolver.SimpleClusterResolver(
                tf.train.ClusterSpec({"worker": list(cluster.workers)}),
                task_type="worker",
                task_id=cluster.index,
                rpc_layer="grpc",
            )
        )
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def resolve_precision(precision: str) -> str:
    """The policy that "auto" means here: float32 on a CPU, what the GPU is fast at on a GPU."""
    if precision != "auto":
        return precision
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "float32"
    capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
    if not capability or capability < (7, 0):
        return "float32"
    return "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"


def uses_xla(requested: str, replicas: int) -> bool:
    """Whether to compile the step: on a CPU XLA is several times slower at 3D convolutions.

    Raises:
      UsageError: it is requested on several devices.
    """
    if replicas > 1:
        if requested == "on":
            raise UsageError("--xla on: only on one device")
        return False
    return requested == "on" or (
        requested == "auto" and bool(tf.config.list_physical_devices("GPU"))
    )


# Of glibc's malloc.h, with what they are set to: never map an array on its own (up to 1 GB), never
# give freed memory back, and one heap for all threads.
_MALLOC = {-3: 1 << 30, -1: (1 << 31) - 1, -8: 1}


def keep_memory() -> None:
    """Freed memory stays with this process: the next step needs as much again.

    glibc gives large arrays back at once, and each step has the kernel clear fresh pages for them:
    up to an eighth of a step's CPU time. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC.items():
            mallopt(option, value)


def prepare_devices(cluster: Cluster, *, seed: int) -> tf.distribute.Strategy:
    """Makes this process ready: devices that take part, operations that repeat themselves.

    On a CPU every operation is made deterministic, so that a run that was killed ends as one that
    was not. On a GPU that costs speed; there a restart resumes, but not bit for bit.
    """
    strategy = make_strategy(cluster)
    keras.utils.set_random_seed(seed)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
        keep_memory()
    return strategy
