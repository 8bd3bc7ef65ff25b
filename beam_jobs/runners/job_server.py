"""A job server: a process that takes Beam's jobs, and lives as long as the command, and no longer.

Flink's and Spark's are Java programs, Prism is one of Go. Beam would start them itself, but
download them silently where none is named, take over Ctrl-C (which works in the main thread only),
and leave them running when the command is killed. One that runs already is named by
`--job_endpoint`, and is asked at once whether it is there. Beam is imported where it is used: it
takes seconds.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from beam_jobs.common import interrupts
from beam_jobs.common.cli import CommandError, UsageError
from beam_jobs.common.files import interface as files
from beam_jobs.runners.engines import Engine, cluster_of, engine_of, find_runner, runner_of
from beam_jobs.runners.flink_cluster import FlinkCluster

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_START_S = 120.0
_ANSWER_S = 10.0
_STOP_S = 10.0
_FOREVER_S = 10 * 365 * 86_400


def check_job_server(options: PipelineOptions) -> None:
    """Sees to it that there is a job server to be had, and nothing is downloaded for it.

    What the runner would fill in itself, and too late for us, is filled in.

    Raises:
      UsageError: there is neither one to start nor one that runs already.
    """
    if not _is_portable(options):
        return
    from apache_beam.options.pipeline_options import (
        DebugOptions,
        FlinkRunnerOptions,
        JobServerOptions,
        PortableOptions,
        PrismRunnerOptions,
    )
    from apache_beam.runners.portability.flink_runner import FlinkRunner
    from apache_beam.runners.portability.job_server import JavaJarJobServer
    from apache_beam.runners.portability.prism_runner import PrismJobServer
    from apache_beam.version import __version__ as version

    # Else Beam runs `pip freeze` for each job and sends what it says along: 0.8 s, and at Ctrl-C a
    # line of pip's own.
    options.view_as(DebugOptions).add_experiment("disable_logging_submission_environment")
    portable = options.view_as(PortableOptions)
    if not portable.environment_type and _works_in_this_process(options):
        portable.environment_type = "LOOPBACK"
    flink, prism = options.view_as(FlinkRunnerOptions), options.view_as(PrismRunnerOptions)
    flink.flink_master = FlinkRunner.add_http_scheme(flink.flink_master)
    if portable.job_endpoint:
        return
    runner = type(find_runner(options)).__name__
    if prism.prism_log_kind == "console":  # of lines of JSON, that nobody may have to read
        prism.prism_log_kind = "text"
    # FlinkRunner -> flink_job_server_jar
    engine = re.sub("(?<=[a-z])(?=[A-Z])", "_", runner.removesuffix("Runner")).lower()
    given, flag = options.get_all_options(), f"{engine}_job_server_jar"
    if flag in given:
        if not given[flag]:
            raise UsageError(
                f"--runner={runner} needs --{flag}=JAR, or --job_endpoint=HOST:PORT of a job "
                "server that runs (docs/how-to/flink.md)"
            )
        if not os.path.isfile(given[flag]):
            raise UsageError(f"--{flag} {given[flag]} is not a file (docs/how-to/flink.md)")
    server = _server_of(options)
    java = options.view_as(JobServerOptions).job_server_java_launcher
    if isinstance(server, JavaJarJobServer) and not shutil.which(java):
        raise UsageError(
            f"--runner={runner} needs Java 17: {java} is not on the PATH "
            "(--job_server_java_launcher names another)"
        )
    if isinstance(server, PrismJobServer):
        if not prism.prism_location:
            raise UsageError(
                f"--runner={runner} needs --prism_location=PATH of Beam's prism (go install "
                f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{version}), or "
                "--job_endpoint=HOST:PORT of one that runs"
            )
        if not os.path.isfile(prism.prism_location):
            raise UsageError(f"--prism_location {prism.prism_location} is not a file")
        # Else a bare name would be looked for on the PATH.
        prism.prism_location = os.path.abspath(prism.prism_location)


def _works_in_this_process(options: PipelineOptions) -> bool:
    """Whether Beam lets the workers be threads of this process where nothing else is requested."""
    return runner_of(options) in ("flink", "spark", "prism") and not cluster_of(options)


@contextlib.contextmanager
def job_server(options: PipelineOptions) -> Iterator[Engine]:
    """A job server for the time of the context, where the options need one; gives the job's engine.

    To be entered in the main thread, and before the pipeline is made, which copies the options: on
    Linux the server is killed when the thread ends that started it.

    Raises:
      CommandError: it does not start, or the one that was named does not answer.
    """
    from apache_beam.options.pipeline_options import JobServerOptions, PortableOptions

    engine = engine_of(options)
    if not _is_portable(options):
        yield engine
        return
    _quiet_harness()
    portable = options.view_as(PortableOptions)
    if engine.name == "Flink" and (master := cluster_of(options)):
        engine = dataclasses.replace(engine, cluster=FlinkCluster.found(options, master))
    server = _server_of(options)
    # Beam lets a job's stream of states end by this timeout of requests: after 300 s on Prism.
    portable.job_server_timeout = _FOREVER_S
    if server is None:
        if portable.job_endpoint:
            clusters = _names_cluster(portable.job_endpoint)
            engine = dataclasses.replace(engine, in_server=engine.in_server or not clusters)
        yield engine
        return
    with files.scratch("job_server") as directory:
        scratch, java = str(directory), options.view_as(JobServerOptions)
        java.job_server_jvm_properties = [
            f"-Djava.io.tmpdir={scratch}",
            *(java.job_server_jvm_properties or []),
        ]
        java.artifacts_dir = java.artifacts_dir or os.path.join(scratch, "artifacts")
        command, endpoint = _server_of(options).subprocess_cmd_and_endpoint()
        log = os.path.join(scratch, "log")
        with open(log, "wb") as output:
            # In a session of its own: Ctrl-C is the command's, which then stops the server.
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=interrupts.die_with_parent,
            )
        try:
            _wait_until_ready(process, engine.name, endpoint, log)
            portable.job_endpoint = endpoint
            # With no cluster to go to it is the engine itself.
            yield dataclasses.replace(engine, own_server=True, in_server=not engine.place)
        finally:
            portable.job_endpoint = None
            _stop(process)


def _is_portable(options: PipelineOptions) -> bool:
    if engine_of(options).local:
        return False
    from apache_beam.runners.portability.portable_runner import PortableRunner

    return isinstance(find_runner(options), PortableRunner)


def _server_of(options: PipelineOptions) -> Any:
    """Beam's description of the server to be started; None for none.

    Raises:
      UsageError: the runner has none of its own, and none is named.
    """
    from apache_beam.options.pipeline_options import PortableOptions
    from apache_beam.runners.portability.job_server import SubprocessJobServer
    from apache_beam.runners.portability.prism_runner import PrismJobServer

    if options.view_as(PortableOptions).job_endpoint:
        return None
    if runner_of(options) == "prism":  # the runner keeps one server for all jobs of a process
        return PrismJobServer(options)
    try:
        # The runner changes the options on its way.
        server = find_runner(options).default_job_server(copy.deepcopy(options))
    except NotImplementedError:
        raise UsageError(
            f"--runner={engine_of(options).name} needs --job_endpoint=HOST:PORT of a job server"
        ) from None
    server = getattr(server, "_job_server", server)  # without what stops it by Ctrl-C
    return server if isinstance(server, SubprocessJobServer) else None


def _quiet_harness() -> None:
    """With LOOPBACK this process is the worker, and Beam's worker prints a failure's traceback."""
    from apache_beam.runners.worker import sdk_worker

    sdk_worker.print = lambda *args, **kwargs: None


def _names_cluster(endpoint: str) -> bool:
    """Whether the job server that was named passes jobs on to a cluster, of all its options.

    Raises:
      CommandError: nothing answers there, or something else does.
    """
    if endpoint == "embed":  # Beam's own, in this process
        return False
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        try:
            said = service.DescribePipelineOptions(request, timeout=_ANSWER_S, wait_for_ready=True)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            answer = (
                f"no job server answers there within {_ANSWER_S:.0f} s"
                if code == grpc.StatusCode.DEADLINE_EXCEEDED
                else f"what answers there is no job server ({code})"
            )
            raise CommandError(f"--job_endpoint {endpoint}: {answer}") from error
    return any("master" in option.name for option in said.options)


def _wait_until_ready(process: subprocess.Popen[bytes], name: str, endpoint: str, log: str) -> None:
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
                raise CommandError(f"{name}'s job server does not start, {state}") from None


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
