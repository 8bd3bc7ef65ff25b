"""Beam's own options: quiet, a named local runner by default, and no unknown option let through.

Beam is imported where it is used: it takes seconds, and must be silenced before.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from beam_jobs.common import interrupts
from beam_jobs.common.cli import UsageError, log_level
from beam_jobs.common.imports import lasting
from beam_jobs.runners.engines import find_runner, runner_of
from beam_jobs.runners.job_server import check_job_server

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def quiet_beam() -> None:
    """Silences what Beam and Google's clients would print; to be called before Beam's import.

    With `--log_level` libraries write on stderr from that level on.
    """
    # One element is one core's work; BLAS threads inside it only get in each other's way.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    level = log_level()
    # A warning at Beam's import would install a handler of its own at the root.
    logging.basicConfig(
        level=(level or "error").upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    if level is not None:
        return
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its faults become reasons
    # Beam logs a failing worker's traceback; the command reports it in one line.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_not_a_job_servers)  # its messages go to the root
    warnings.filterwarnings("ignore", module=r"google\.|apache_beam\.|httplib2")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google")


def _not_a_job_servers(record: logging.LogRecord) -> bool:
    return record.module != "portable_runner"


def pipeline_options(argv: Sequence[str]) -> PipelineOptions:
    """Beam's options from the arguments a command does not know itself; `use_store_options`' hold.

    The local runner is FnApiRunner, in memory: "DirectRunner" may try to download another one.

    Raises:
      UsageError: an argument that no option of Beam's or of the runner's takes, a runner that there
        is none of or that cannot run our jobs, or one without the job server that it needs.
    """
    quiet_beam()
    use_store_options(argv)
    with lasting("apache_beam"):
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    _import_runner(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options_class in _with_subclasses(PipelineOptions):
        if "_add_argparse_args" in vars(options_class):
            # Several runners' options may share names; the first stands for all.
            parser.conflict_handler = "resolve"
            options_class._add_argparse_args(_lenient(parser))
    _, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]} (--help lists the options)")
    arguments = list(argv)
    if not any(argument.split("=")[0] == "--runner" for argument in arguments):
        arguments.append("--runner=FnApiRunner")
    options = PipelineOptions(arguments)
    if runner_of(options) in _OURS:
        options.view_as(StandardOptions).runner = "FnApiRunner"
    check_job_server(options)
    return options


# Beam's names of what is FnApiRunner here; its DirectRunner would try to download Prism.
_OURS = ("fnapi", "direct", "switchingdirect")
_UNFIT = {
    "dask": "mixes a transform's outputs, which our jobs tell apart by tags: records would be lost "
    "without a word",
    "trivial": "has no side inputs, which our jobs need",
    "interactive": "is for notebooks",
}


def _import_runner(argv: Sequence[str]) -> None:
    """Imports the module of `--runner`, which may define options of its own.

    Raises:
      UsageError: there is none of the name, it is not installed, or it cannot run our jobs.
    """
    parser = _lenient(argparse.ArgumentParser(add_help=False, allow_abbrev=False))
    parser.add_argument("--runner")
    if name := parser.parse_known_args(list(argv))[0].runner:
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions([f"--runner={name}"])
        if reason := _UNFIT.get(runner_of(options)):
            raise UsageError(f"--runner={name} {reason}")
        if runner_of(options) not in _OURS:
            find_runner(options)


# Beam's options of its own S3 client, and the variables by which the file layer finds a store.
_STORE_VARIABLES = {
    "s3_endpoint_url": "AWS_ENDPOINT_URL",
    "s3_region_name": "AWS_REGION",
    "s3_access_key_id": "AWS_ACCESS_KEY_ID",
    "s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "s3_session_token": "AWS_SESSION_TOKEN",
}
_NO_STORE_OPTIONS = ("s3_api_version", "s3_verify", "s3_disable_ssl")


def use_store_options(argv: Sequence[str]) -> None:
    """Lets Beam's `--s3_*` options hold for all files that this process and its children open.

    Raises:
      UsageError: one of them that the file layer has no counterpart of.
    """
    parser = _lenient(argparse.ArgumentParser(add_help=False, allow_abbrev=False))
    for name in (*_STORE_VARIABLES, *_NO_STORE_OPTIONS):
        parser.add_argument(f"--{name}", nargs="?", const="")
    given = vars(parser.parse_known_args(list(argv))[0])
    for name in _NO_STORE_OPTIONS:
        if given[name] is not None:
            raise UsageError(
                f"--{name} is of no use: --s3_endpoint_url takes http:// and https://, "
                "AWS_CA_BUNDLE names certificates"
            )
    _set_store_variables(given)


def use_workers_store_options() -> None:
    """The same in a worker on another machine, which has Beam's options and no such variables."""
    from apache_beam.options.value_provider import RuntimeValueProvider

    _set_store_variables(
        {name: RuntimeValueProvider.get_value(name, str, None) for name in _STORE_VARIABLES}
    )


def _set_store_variables(values: Mapping[str, str | None]) -> None:
    for name, variable in _STORE_VARIABLES.items():
        if value := values.get(name):
            os.environ[variable] = value
            if variable == "AWS_ENDPOINT_URL":
                os.environ.pop("AWS_ENDPOINT_URL_S3", None)  # would win otherwise


def _with_subclasses(base: Any) -> list[Any]:
    found = [base]
    for subclass in base.__subclasses__():
        found += _with_subclasses(subclass)
    return found


def _lenient(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, raising instead of exiting."""

    def error(message: str) -> None:
        raise UsageError(message)

    parser.error = error  # type: ignore[method-assign, assignment]
    return parser


_SAMPLED_MS = 10


def end_stages_at_once() -> None:
    """Lets a stage in this process end with its work; Beam's would wait for up to 200 ms more.

    Its thread that samples what a stage is busy with sleeps that long at last, and is joined; Beam
    has no option for it.
    """
    from apache_beam.runners.worker.statesampler import StateSampler

    StateSampler.__init__.__defaults__ = (_SAMPLED_MS,)


def make_pipeline(options: PipelineOptions, processes: int) -> Any:
    """A pipeline on the runner of the options.

    Raises:
      UsageError: `--runner` names none, or its own options do not fit together.
    """
    import apache_beam as beam

    end_stages_at_once()
    try:
        return beam.Pipeline(runner=local_runner(options, processes), options=options)
    except ValueError as error:
        raise UsageError(str(error)) from error


def local_runner(options: PipelineOptions, processes: int) -> Any:
    """The local runner, or None where `--runner` names another.

    In memory with one process. With more, voxels are worked on by processes of
    `beam_jobs.runners.worker`, while this one holds what is shuffled: plans, never voxels.

    Args:
      options: of the pipeline; `--direct_running_mode=multi_processing` with
        `--direct_num_workers` says the same as `processes`.
      processes: how many to work with.
    """
    from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

    if options.view_as(StandardOptions).runner != "FnApiRunner":
        return None
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.job.utils import dict_to_struct
    from apache_beam.runners.portability.fn_api_runner.fn_runner import (
        ExtendedProvisionInfo,
        FnApiRunner,
    )
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode == "multi_processing":
        processes = max(direct.direct_num_workers or os.cpu_count() or 1, processes)
        direct.direct_running_mode = "in_memory"
    direct.direct_num_workers = processes
    if processes <= 1:
        return FnApiRunner()
    # Beam's workers would get no options, and with them INFO lines by the page.
    level = (log_level() or "error").upper()
    settings = dict_to_struct({"beam:option:default_sdk_harness_log_level:v1": level})
    return FnApiRunner(
        default_environment=SubprocessSDKEnvironment.from_command_string(
            # Ctrl-C goes to the whole group, and the command may end before a worker can look.
            f"trap '' INT HUP; {interrupts.PARENT}={os.getpid()} "
            f"exec {shlex.quote(sys.executable)} -m beam_jobs.runners.worker"
        ),
        provision_info=ExtendedProvisionInfo(
            beam_provision_api_pb2.ProvisionInfo(
                retrieval_token="unused", pipeline_options=settings
            )
        ),
    )


# From here on the start-up of worker processes is worth it: 1.5 s on a quiet machine, some on any.
_FILES_FOR_PROCESSES = 20_000


def default_processes(files: int) -> int:
    """How many local processes to work with: one for a small input, else one a core."""
    return (os.cpu_count() or 1) if files >= _FILES_FOR_PROCESSES else 1
