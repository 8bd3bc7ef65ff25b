"""Paths that are local or in a store: `gs://`, `s3://`, `az://`, `hdfs://`.

Local paths cost no TensorFlow here. Stores are TensorFlow's file systems: gs:// comes with it, the
others with tensorflow-io, which is imported when such a path is read and not before.

What the s3:// file system heeds (tensorflow-io's s3_filesystem.cc and the AWS SDK beneath it):
AWS_ACCESS_KEY_ID and the other credentials, AWS_DEFAULT_REGION or AWS_REGION, S3_ENDPOINT,
S3_CA_FILE, S3_CONNECT_TIMEOUT_MSEC, S3_REQUEST_TIMEOUT_MSEC. It knows nothing of AWS_ENDPOINT_URL,
which the conversion and boto3 take: that is passed on as S3_ENDPOINT.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from types import ModuleType

from beam_jobs.common.cli import CommandError, UsageError, quiet_tensorflow

SCHEMES = ("gs", "s3", "az", "hdfs")
_CONNECT_MS = "10000"  # tensorflow-io waits five minutes for a store that does not answer


def is_remote(path: str) -> bool:
    """Whether `path` lies in a store.

    Raises:
      UsageError: it has a scheme that is not one of `SCHEMES`.
    """
    scheme, separator, _ = path.partition("://")
    if separator and scheme not in SCHEMES:
        raise UsageError(
            f"{path}: cannot read {scheme}://; known: local paths, "
            + ", ".join(f"{known}://" for known in SCHEMES)
        )
    return bool(separator)


def join(directory: str, *names: str) -> str:
    """The path of a file below a directory, local or in a store.

    >>> join("gs://bucket/dataset/", "manifest.json")
    'gs://bucket/dataset/manifest.json'
    """
    return "/".join((directory.rstrip("/"), *names))


def is_dir(path: str) -> bool:
    """Whether `path` is a directory; in a store, whether there is anything below it."""
    if not is_remote(path):
        return os.path.isdir(path)
    tf = _tensorflow(path)
    try:
        return bool(tf.io.gfile.isdir(path))
    except tf.errors.OpError as error:
        raise _told(path, error, tf) from error


def size(path: str) -> int:
    """Bytes of a file.

    Raises:
      OSError: there is no such file, or it cannot be read (FileNotFoundError: the first).
      CommandError: the store refuses or cannot be reached.
    """
    if not is_remote(path):
        return os.stat(path).st_size
    tf = _tensorflow(path)
    try:
        return int(tf.io.gfile.stat(path).length)
    except tf.errors.OpError as error:
        raise _told(path, error, tf) from error


def read_bytes(path: str) -> bytes:
    """A whole file. In a store one large request, not one for every buffer.

    Raises:
      OSError: there is no such file, or it cannot be read (FileNotFoundError: the first).
      CommandError: the store refuses or cannot be reached.
    """
    if not is_remote(path):
        with open(path, "rb") as stream:
            return stream.read()
    tf = _tensorflow(path)
    try:
        return bytes(tf.io.read_file(path).numpy())
    except tf.errors.OpError as error:
        raise _told(path, error, tf) from error


def _tensorflow(path: str) -> ModuleType:
    """TensorFlow, with the file system of `path` in it.

    Raises:
      CommandError: tensorflow-io is wanted and not there, or does not load.
    """
    quiet_tensorflow()
    scheme = path.partition("://")[0]
    if scheme == "s3":
        _settle_s3()
    import tensorflow as tf

    if scheme != "gs":
        try:
            import tensorflow_io  # noqa: F401 - it registers its file systems
        except (ImportError, NotImplementedError, tf.errors.OpError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CommandError(f"{path}: {scheme}:// needs tensorflow-io: {line}") from error
        _end_without_destructors()
    return tf


@functools.cache
def _end_without_destructors() -> None:
    """Ends the process before its libraries' static destructors, with the code it exits with.

    tensorflow-io 0.37.1 aborts in them ("pure virtual method called", tensorflow/io issue 2039)
    once s3:// was used, and a finished run would count as failed. Python is shut down and its
    streams are flushed by then. `on_exit` is glibc's, as are TensorFlow's wheels.
    """
    c_library = ctypes.CDLL(None)
    if hasattr(c_library, "on_exit"):
        c_library.on_exit(ctypes.cast(c_library._exit, ctypes.c_void_p), None)


def _settle_s3() -> None:
    """Passes on what boto3 knows by other names; what is set for tensorflow-io itself wins."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            os.environ.setdefault("S3_ENDPOINT", os.environ[name])
    os.environ.setdefault("S3_CONNECT_TIMEOUT_MSEC", _CONNECT_MS)


def _told(path: str, error: Exception, tf: ModuleType) -> Exception:
    """A store's error in one line."""
    if isinstance(error, tf.errors.NotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object or bucket", path)
    line = " ".join(str(getattr(error, "message", error)).split())[:300]
    if isinstance(error, tf.errors.PermissionDeniedError | tf.errors.UnauthenticatedError):
        return CommandError(f"{path}: not allowed, or no credentials found: {line}")
    return CommandError(f"{path}: cannot be read: {line or type(error).__name__}")
