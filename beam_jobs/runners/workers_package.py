"""Whether workers elsewhere have this project's code, and TensorFlow where they need it.

Beam starts its workers in containers of its own image unless another is named. That image has no
Voxelbeam, which `--setup_file` installs there. TensorFlow cannot be installed over it: 2.17 wants
numpy 1 and protobuf 4, and the image's Google clients need its numpy 2 and protobuf 6.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from beam_jobs.common.cli import UsageError
from beam_jobs.common.contract_json import ContractError, json_object
from beam_jobs.runners.engines import engine_of, runner_of

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def require_package(options: PipelineOptions, *, tensorflow: bool) -> None:
    """Refuses a job whose workers would lack what they import, before it costs anything.

    The package that `--setup_file` builds requires TensorFlow only where the job does.

    Args:
      options: Beam's.
      tensorflow: whether the job's workers need TensorFlow.

    Raises:
      UsageError: says which option names an image or a worker's program, or has the package
        installed.
    """
    from apache_beam.options.pipeline_options import SetupOptions

    _require_command(options)
    setup = options.view_as(SetupOptions)
    if setup.setup_file and not tensorflow:
        os.environ.setdefault("VOXELBEAM_REQUIRES", "conversion")  # setup.py reads it
    flag = _option_of_missing_image(options)
    if not flag:
        return
    engine = engine_of(options).name
    if tensorflow:
        raise UsageError(
            f"the workers of {engine} would run in Beam's own image, over whose packages no "
            f"TensorFlow can be installed: {flag}=IMAGE, of docker/Dockerfile.beam's target predict"
        )
    if not (setup.setup_file or setup.extra_packages or setup.requirements_file):
        raise UsageError(
            f"the workers of {engine} would run in Beam's own image, which has no voxelbeam: "
            f"--setup_file=./setup.py, or {flag}=IMAGE, of docker/Dockerfile.beam"
        )


def _require_command(options: PipelineOptions) -> None:
    """Refuses a PROCESS environment without its program: an engine may wait for it for ever."""
    from apache_beam.options.pipeline_options import PortableOptions

    portable = options.view_as(PortableOptions)
    if portable.environment_type not in ("PROCESS", "beam:env:process:v1"):
        return
    config, command = portable.environment_config, None
    if not config:
        command = portable.lookup_environment_option("process_command")
    else:
        with contextlib.suppress(ContractError):
            command = json_object(config).get("command")
    if not command:
        raise UsageError(
            '--environment_type=PROCESS needs --environment_config=\'{"command": "PATH"}\', the '
            f"program that starts a worker, not {config or 'nothing'}"
        )


def _option_of_missing_image(options: PipelineOptions) -> str:
    """The option that would name the workers' image where Beam's own is taken; "" elsewhere."""
    from apache_beam.options.pipeline_options import PortableOptions, WorkerOptions

    runner = runner_of(options)
    if runner == "dataflow":
        return "" if options.view_as(WorkerOptions).sdk_container_image else "--sdk_container_image"
    portable = options.view_as(PortableOptions)
    in_containers = portable.environment_type in (None, "DOCKER", "beam:env:docker:v1")
    if runner not in ("portable", "flink", "spark", "prism") or not in_containers:
        return ""  # here, or in processes and pools, which have what they have
    named = portable.environment_config or portable.lookup_environment_option(
        "docker_container_image"
    )
    return "" if named else "--environment_config"
