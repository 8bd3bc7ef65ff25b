"""Flink's job server: a Java process that lives as long as the command, and no longer.

Beam would start it itself, but download it silently where no jar is named, take over Ctrl-C (which
works in the main thread only), and leave it running when the command is killed. Beam is imported
where it is used: it takes seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.files import interface as files

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_LOCAL_MASTERS = ("[local]", "[auto]")
_START_S = 120.0
_STOP_S = 10.0
_PR_SET_PDEATHSIG = 1  # prctl(2): the signal to get when the parent ends


def check_flink(options: PipelineOptions) -> None:
    """Sees to it that Flink can be had, and nothing is downloaded for it; fills in what is plain.

    Raises:
      UsageError: there is neither a job server to start nor one that runs already.
    """
    if not _is_flink(options):
        return
    from apache_beam.options.pipeline_options import (
        FlinkRunnerOptions,
        JobServerOptions,
        PortableOptions,
    )

    flink, portable = options.view_as(FlinkRunnerOptions), options.view_as(PortableOptions)
    if flink.flink_master in _LOCAL_MASTERS and not portable.environment_type:
        portable.environment_type = "LOOPBACK"
    if portable.job_endpoint:
        return
    jar = flink.flink_job_server_jar
    if not jar:
        raise UsageError(
            "--runner=FlinkRunner needs --flink_job_server_jar=JAR, or "
            "--job_endpoint=HOST:PORT of a job server that runs (docs/how-to/flink.md)"
        )
    if not os.path.isfile(jar):
        raise UsageError(f"--flink_job_server_jar {jar} is not a file (docs/how-to/flink.md)")
    java = options.view_as(JobServerOptions).job_server_java_launcher
    if not shutil.which(java):
        raise UsageError(
            f"--runner=FlinkRunner needs Java 17: {java} is not on the PATH "
            "(--job_server_java_launcher names another)"
        )


@contextlib.contextmanager
def job_server(options: PipelineOptions) -> Iterator[None]:
    """A job server for the time of the context, where the options need one.

    To be entered in the main thread: on Linux the server is killed when the thread ends that
    started it.

    Raises:
      CommandError: it does not start.
    """
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PortableOptions

    portable = options.view_as(PortableOptions)
    if not _is_flink(options):
        yield
        return
    _quiet_harness()
    if portable.job_endpoint or options.view_as(FlinkRunnerOptions).flink_submit_uber_jar:
        yield
        return
    with files.scratch("flink") as directory:
        scratch = str(directory)
        command, endpoint = _command(options, scratch)
        log = os.path.join(scratch, "log")
        with open(log, "wb") as output:
            # In a session of its own: Ctrl-C is the command's, which then stops the server.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        try:
            _wait_until_ready(process, endpoint, log)
            portable.job_endpoint = endpoint
            yield
        finally:
            portable.job_endpoint = None
            _stop(process)


def _is_flink(options: PipelineOptions) -> bool:
    from apache_beam.options.pipeline_options import StandardOptions

    name = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1].lower()
    return name in ("flinkrunner", "flink")


def _quiet_harness() -> None:
    """With LOOPBACK this process is the worker, and Beam's worker prints a failure's traceback."""
    from apache_beam.runners.worker import sdk_worker

    sdk_worker.print = lambda *args, **kwargs: None


def _command(options: PipelineOptions, scratch: str) -> tuple[list[str], str]:
    """The server's command line and address; what it writes lies below `scratch`."""
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, JobServerOptions
    from apache_beam.runners.portability.flink_runner import FlinkJarJobServer, FlinkRunner
    from apache_beam.utils.subprocess_server import pick_port

    server, flink = options.view_as(JobServerOptions), options.view_as(FlinkRunnerOptions)
    flink.flink_master = FlinkRunner.add_http_scheme(flink.flink_master)
    (port,) = pick_port(server.job_port)
    arguments = FlinkJarJobServer(options).java_arguments(
        port,
        server.artifact_port,
        server.expansion_port,
        server.artifacts_dir or os.path.join(scratch, "artifacts"),
    )
    command = [
        server.job_server_java_launcher,
        f"-Djava.io.tmpdir={scratch}",
        *server.job_server_jvm_properties,
        *("-jar", flink.flink_job_server_jar),
        *map(str, arguments),
    ]
    return command, f"localhost:{port}"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_ready(process: subprocess.Popen[bytes], endpoint: str, log: str) -> None:
    import grpc

    end = time.monotonic() + _START_S
    with grpc.insecure_channel(endpoint) as channel:
        ready = grpc.channel_ready_future(channel)
        while True:
            try:
                ready.result(timeout=0.2)
                return
            except grpc.FutureTimeoutError:
                code = process.poll()
                if code is not None:
                    state = f"exit code {code}: {_last_line(log)}"
                elif time.monotonic() > end:
                    state = f"no answer within {_START_S:.0f} s: {_last_line(log)}"
                else:
                    continue
                raise CommandError(f"Flink's job server does not start, {state}") from None


def _last_line(path: str) -> str:
    """The last line of a log that is no line of a Java stack."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip() and not line.startswith("\tat ")]
    return lines[-1] if lines else "its log is empty"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
